"""Taking photos in from web addresses: a URL list as a source, against img2dataset on the same loopback server.

Both download, decode, hash (SHA-256), shrink to 256 pixels and write pictures and a table. Ours also keeps the
originals and looks at each picture in a guarded worker; img2dataset throws the originals away. Its imports are not
counted, its processes are one a core as ours are. It pins libraries of its own, so it gets a virtual environment of its
own below the home folder, kept for the next time; where it cannot be installed this benchmark says so and ends.
``python -m benchmarks.ingest_over_http --files 2000``.
"""

import argparse
import contextlib
import http.server
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.ingest import THUMBNAIL_SIDE, draw_photos, file_number
from genai_assets.datasets.arrivals import look
from genai_assets.datasets.ingestion import MANIFEST, Batch, ingest
from genai_assets.settings import Settings

FILES = 2_000
TURNS = 2
AT_ONCE = 64
GOAL = 2.0
PEER = "img2dataset"

_PEERS_PROGRAM = """
import os, time
from img2dataset import download

if __name__ == "__main__":
    begun = time.perf_counter()
    download(
        url_list="urls.parquet", input_format="parquet", url_col="url", caption_col="caption", output_folder="pictures",
        output_format="files", processes_count=os.cpu_count(), thread_count={at_once}, image_size={side},
        resize_mode="keep_ratio_largest", resize_only_if_bigger=True, encode_quality=85, compute_hash="sha256",
        number_sample_per_shard={shard}, enable_wandb=False, disallowed_header_directives=[],
    )
    print("SECONDS", time.perf_counter() - begun)
"""


class Unavailable(RuntimeError):
    """The peer cannot be had here; the message says why."""


def peer_python(settings: Settings) -> Path:
    """Python of a virtual environment that has the peer; made when there is none yet.

    Raises:
        Unavailable: it cannot be installed.
    """
    folder = settings.home / "peers" / PEER
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    uv = Path(sys.executable).parent / "uv"
    shutil.rmtree(folder, ignore_errors=True)
    for command in ([uv, "venv", "-q", folder], [uv, "pip", "install", "-q", "--python", python, PEER]):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{PEER} cannot be installed here: {done.stderr.strip()[-500:]}")
    (folder / "installed").touch()
    return python


@contextlib.contextmanager
def serving(photos: list[bytes]) -> Iterator[str]:
    """A web server in a process of its own that has every numbered file; gives its address."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(photos, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(photos: list[bytes], told: Connection) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = file_number(photos, int(self.path.strip("/").removesuffix(".jpg")))
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 1024

    with Server(("127.0.0.1", 0), Handler) as server:
        told.send(server.server_port)
        server.serve_forever()


def ours(urls: pd.DataFrame, folder: Path) -> tuple[float, pd.DataFrame]:
    """Seconds, and id, width and height of every picture."""
    urls.to_parquet(folder / "urls.parquet")
    source = {
        "kind": "url-list",
        "path": str(folder / "urls.parquet"),
        "allow_private_addresses": True,
        "at_once": AT_ONCE,
        "at_once_a_host": AT_ONCE,
        "delay_seconds": 0,
    }
    dataset = {"sources": [source], "icon_sets": [], "folder_licence": "CC0-1.0"}
    settings = Settings.model_validate({"home": folder / "home", "dataset": dataset})
    begun = time.perf_counter()
    ingest(settings, look(settings), folder, batch=Batch(1, "000001"))
    seconds = time.perf_counter() - begun
    return seconds, pd.read_parquet(folder / MANIFEST)[["id", "width", "height"]]


def peer(python: Path, urls: pd.DataFrame, folder: Path) -> tuple[float, pd.DataFrame]:
    """The same of the peer."""
    urls.to_parquet(folder / "urls.parquet")
    shard = -(-len(urls) // (4 * (os.cpu_count() or 1)))
    program = _PEERS_PROGRAM.format(at_once=AT_ONCE, side=THUMBNAIL_SIDE, shard=shard)
    (folder / "peer.py").write_text(program)
    quiet = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run([python, "peer.py"], cwd=folder, env=quiet, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not told:
        raise Unavailable(f"{PEER} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    table = pd.concat([pd.read_parquet(path) for path in sorted((folder / "pictures").glob("*.parquet"))])
    table = table.loc[table["status"] == "success", ["sha256", "original_width", "original_height"]]
    return float(told[0].split()[1]), table.set_axis(["id", "width", "height"], axis="columns")


def main() -> None:
    """Measure and print the result as JSON."""
    parser = argparse.ArgumentParser(description=f"Taking photos in over HTTP, against {PEER}.")
    parser.add_argument("--files", type=int, default=FILES, help=f"how many a turn; {FILES} when not given")
    wanted = parser.parse_args()
    try:
        python = peer_python(Settings())
    except Unavailable as error:
        sys.exit(f"skipped: {error}")
    photos = draw_photos()
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    with serving(photos) as address:
        for turn in range(TURNS):
            numbers = range(turn * wanted.files, (turn + 1) * wanted.files)
            urls = pd.DataFrame(
                {
                    "url": [f"{address}/{number}.jpg" for number in numbers],
                    "caption": [f"photo {number}" for number in numbers],
                    "licence": "CC0-1.0",
                }
            )
            tables: dict[str, pd.DataFrame] = {}
            with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".ingest-") as folder:
                for who in ("ours", "peer") if turn % 2 else ("peer", "ours"):
                    place = Path(folder, who)
                    place.mkdir()
                    seconds, tables[who] = ours(urls, place) if who == "ours" else peer(python, urls, place)
                    rates[who].append(wanted.files / seconds)
            assert len(tables["ours"]) == wanted.files
            same = [table.astype({"id": str}).sort_values("id").values.tolist() for table in tables.values()]
            assert same[0] == same[1], "the tables disagree"
            print(*(f"{who} {found[-1]:.0f}/s" for who, found in rates.items()), sep=", ", file=sys.stderr)
    middle = {who: statistics.median(found) for who, found in rates.items()}
    result = {
        "name": "photos taken in over HTTP, a second",
        "ours": round(middle["ours"], 1),
        "peer": round(middle["peer"], 1),
        "ratio": round(middle["ours"] / middle["peer"], 2),
        "goal": GOAL,
        "quality": (
            f"{TURNS} × {wanted.files:,} JPEGs from a loopback server; ids and sizes equal, none lost; ours also keeps "
            f"the originals; peer {PEER} without its imports"
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
