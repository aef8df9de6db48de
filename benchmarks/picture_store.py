"""Keeping many pictures durably: ``PictureStore.put_many`` against one flush a file.

The peer is what a careful program does for each picture: write beside the place, fsync, rename. Both start empty on the
same disk and take turns, so that a busy moment of the disk meets both; the median of the turns counts.
"""

import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from genai_assets.datasets.picture_store import PictureStore
from genai_assets.durable import digest_bytes

PICTURES = 1_000
BYTES = 6_000  # a 64-pixel icon as PNG
TURNS = 3
GOAL = 3.0


def put_one_by_one(root: Path, pictures: list[bytes]) -> list[str]:
    """The peer: every picture is flushed by itself before it takes its name."""
    ids = []
    for data in pictures:
        picture = digest_bytes(data)
        path = root / picture[:2] / picture[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        ids.append(picture)
    return ids


def main() -> None:
    """Measure and print the result as JSON."""
    draw = random.Random(0)
    pictures = [draw.randbytes(BYTES) for _ in range(PICTURES)]
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    # Beside the code, not in /tmp: that may be memory, where a flush costs nothing.
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".picture_store-") as folder:
        for turn in range(TURNS):
            kept: dict[str, list[str]] = {}
            for who in ("ours", "peer") if turn % 2 else ("peer", "ours"):
                root = Path(folder, f"{who}{turn}")
                os.sync()
                begun = time.perf_counter()
                kept[who] = PictureStore(root).put_many(pictures) if who == "ours" else put_one_by_one(root, pictures)
                rates[who].append(PICTURES / (time.perf_counter() - begun))
            store = PictureStore(Path(folder, f"ours{turn}"))
            assert kept["ours"] == kept["peer"]
            assert [store.read(picture, verify=True) for picture in kept["ours"]] == pictures
    ours, peer = statistics.median(rates["ours"]), statistics.median(rates["peer"])
    result = {
        "name": "pictures kept durably, a second",
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "ratio": round(ours / peer, 2),
        "goal": GOAL,
        "quality": f"same {PICTURES:,} ids, every byte read back; {TURNS} turns, median",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
