"""Taking photos in: ingestion (guarded workers) against a plain loop over Pillow.

Both keep the original, its SHA-256, the size as it is shown, a thumbnail of 256 pixels and a table. The peer is what a
careful script does in one thread: open, convert, resize (Lanczos), hash, write both files, add a row. Ours does more on
the way (perceptual hash, blank and polyglot tests, opt-out metadata, limits on memory and time, a flush of the disk).
A second peer, told beside the result, is the same loop with ``Image.thumbnail``, which lets the decoder shrink JPEGs.

The photos are 1600 × 1200 pixels and about 500 kB. A few distinct ones are drawn; each of thousands of files is one of
them with a comment of its own, so it has its own bytes and SHA-256 and costs as much to decode as any, but neither
drawing nor reading them from a disk is part of what is measured. ``python -m benchmarks.ingest --files 5000``.
"""

import argparse
import hashlib
import io
import json
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from genai_assets.datasets.arrivals import Arrivals
from genai_assets.datasets.ingestion import MANIFEST, Batch, ingest
from genai_assets.datasets.inspection import Inspections
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.sources.source import Description, Fetched, Listed
from genai_assets.settings import Settings

FILES = 5_000
FILES_A_TURN = 1_000
DISTINCT = 12
SIZE = (1600, 1200)
THUMBNAIL_SIDE = 256
GOAL = 4.0


def draw_photos(count: int = DISTINCT) -> list[bytes]:
    """JPEGs that compress as photos do: broad gradients, soft detail, grain."""
    width, height = SIZE
    down, across = np.mgrid[0:height, 0:width]
    photos = []
    for seed in range(count):
        draw = np.random.default_rng(seed)
        light = [127 + 90 * np.sin(across / 200 + seed + band) + 30 * np.cos(down / 150 + band) for band in range(3)]
        # Detail is light and dark at all scales, as in nature; colour changes slowly.
        detail = sum(
            (np.asarray(Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32) - 128) * 0.2
            for cell in (4, 16, 64)
            for noise in [draw.integers(0, 255, (height // cell, width // cell), dtype=np.uint8)]
        )
        pixels = np.stack(light, axis=-1) + np.asarray(detail + draw.normal(0, 9, (height, width)))[..., None]
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
        photos.append(file.getvalue())
    return photos


def file_number(photos: list[bytes], number: int) -> bytes:
    """One of the photos with a comment of its own."""
    photo, comment = photos[number % len(photos)], b"file %08d" % number
    return photo[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + photo[2:]


class Photos:
    """A source of numbered files."""

    name = "photos"
    licence = "CC0-1.0"

    def __init__(self, photos: list[bytes], numbers: range):
        self._photos = photos
        self._numbers = numbers

    def list(self) -> Iterable[Listed]:
        """All of them."""
        return [Listed(str(number), state="1") for number in self._numbers]

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The files with these numbers."""
        for key in keys:
            description = Description(caption=f"photo {key}", concept=key, style="photo", licence=self.licence)
            yield Fetched(key, file_number(self._photos, int(key)), description)


def ours(photos: list[bytes], numbers: range, folder: Path) -> pd.DataFrame:
    """Take the files in as the asset ``raw_data`` does."""
    settings = Settings(home=folder)
    source = Photos(photos, numbers)
    listing = {item.key: item for item in source.list()}
    arrivals = Arrivals([source], {source.name: listing}, {source.name: frozenset(listing)})
    ingest(settings, arrivals, folder, batch=Batch(1, "000001"))
    return pd.read_parquet(folder / MANIFEST)


def plain_loop(photos: list[bytes], numbers: range, folder: Path, *, shrink_in_decoder: bool = False) -> pd.DataFrame:
    """The peer."""
    rows = []
    for number in numbers:
        data = file_number(photos, number)
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if shrink_in_decoder:
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
            thumbnail = image.convert("RGB")
        else:
            scale = THUMBNAIL_SIDE / max(width, height)
            size = (round(width * scale), round(height * scale))
            thumbnail = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        picture = hashlib.sha256(data).hexdigest()
        (folder / f"{picture}.jpg").write_bytes(data)
        thumbnail.save(folder / f"{picture}.thumbnail.jpg", quality=85)
        rows.append({"id": picture, "caption": f"photo {number}", "width": width, "height": height})
    table = pd.DataFrame(rows)
    table.to_parquet(folder / MANIFEST)
    return table


def with_thumbnail(photos: list[bytes], numbers: range, folder: Path) -> pd.DataFrame:
    """The second peer."""
    return plain_loop(photos, numbers, folder, shrink_in_decoder=True)


def assert_equal_work(photos: list[bytes], ours: pd.DataFrame, peer: pd.DataFrame, home: Path) -> None:
    """No file was lost, the tables agree, originals are there byte for byte, and thumbnails look as they should."""
    columns = ["id", "width", "height"]
    assert ours[columns].sort_values("id").values.tolist() == peer[columns].sort_values("id").values.tolist()
    store = PictureStore(Settings(home=home).paths.pictures)
    with Inspections(Settings(home=home)) as inspections:
        for picture in ours["id"].iloc[:: max(1, len(ours) // 20)]:
            whole = Image.open(io.BytesIO(store.read(picture, verify=True))).convert("RGB")
            thumbnail = Image.open(io.BytesIO(inspections.thumbnail(picture)))
            difference = np.asarray(whole.resize(thumbnail.size, Image.Resampling.LANCZOS), dtype=int)
            assert abs(difference - np.asarray(thumbnail)).mean() < 6, "of 255; grain costs JPEG about 4"


def main() -> None:
    """Measure and print the result as JSON."""
    parser = argparse.ArgumentParser(description="Taking photos in, against a plain loop over Pillow.")
    parser.add_argument("--files", type=int, default=FILES, help=f"how many in all; {FILES} when not given")
    parser.add_argument("--files-a-turn", type=int, default=FILES_A_TURN)
    wanted = parser.parse_args()
    photos = draw_photos()
    ways: dict[str, Callable[[list[bytes], range, Path], pd.DataFrame]] = {
        "ours": ours,
        "peer": plain_loop,
        "peer with Image.thumbnail": with_thumbnail,
    }
    rates: dict[str, list[float]] = {who: [] for who in ways}
    for begin in range(0, wanted.files, wanted.files_a_turn):
        numbers = range(begin, min(begin + wanted.files_a_turn, wanted.files))
        turn = begin // wanted.files_a_turn
        # Beside the code, not in /tmp: that may be memory, where writing costs nothing.
        with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".ingest-") as folder:
            tables: dict[str, pd.DataFrame] = {}
            for who in list(ways) if turn % 2 else reversed(ways):
                place = Path(folder, who.replace(" ", "-"))
                place.mkdir()
                begun = time.perf_counter()
                tables[who] = ways[who](photos, numbers, place)
                rates[who].append(len(numbers) / (time.perf_counter() - begun))
            assert_equal_work(photos, tables["ours"], tables["peer"], Path(folder, "ours"))
        print(
            f"{numbers.stop:,} of {wanted.files:,}",
            *(f"{who} {found[-1]:.0f}/s" for who, found in rates.items()),
            sep=", ",
            file=sys.stderr,
        )
    middle = {who: statistics.median(found) for who, found in rates.items()}
    size = sum(map(len, photos)) / len(photos)
    result = {
        "name": "photos taken in, a second",
        "ours": round(middle["ours"], 1),
        "peer": round(middle["peer"], 1),
        "ratio": round(middle["ours"] / middle["peer"], 2),
        "goal": GOAL,
        "quality": (
            f"{wanted.files:,} JPEGs of {size / 1000:.0f} kB, tables equal, originals read back, thumbnails compared; "
            f"{middle['ours'] / middle['peer with Image.thumbnail']:.1f}× the same loop with Image.thumbnail"
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
