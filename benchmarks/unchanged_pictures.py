"""Passing over pictures that did not change: raw_data run again with nothing new, against hashing every file.

The folder has a text file beside each picture. The peer is what a program without a memory does to be sure that nothing
changed: read and hash every file. Both look at the same folder, in turn, with its files in the page cache; that favours
the peer, which reads all of them. The goal in seconds is the project's own: 10,000 pictures in less than three.
"""

import json
import statistics
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from genai_assets import stages
from genai_assets.settings import DatasetSettings, Settings

PICTURES = 10_000
SIDE = 400
TURNS = 5
GOAL = 3.0
LONGEST_SECONDS = 3.0


def fill(folder: Path) -> None:
    """Pictures of the size of a small photo, no two alike, each with a caption beside it."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    smooth = noise.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    image = Image.fromarray(np.asarray(image) // 2 + noise.integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8))
    image.save(folder.with_suffix(".jpg"), quality=80)
    data = folder.with_suffix(".jpg").read_bytes()
    for number in range(PICTURES):
        (folder / f"{number:05d}.jpg").write_bytes(data + f"{number:05d}".encode())  # behind the end of the picture
        (folder / f"{number:05d}.txt").write_text(f"thing number {number}")


def digest_of_all(folder: Path) -> str:
    """The peer: one digest over every file's name and content."""
    digest = sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def main() -> None:
    """Measure and print the result as JSON."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".unchanged_pictures-") as place:
        folder = Path(place, "pictures")
        fill(folder)
        settings = Settings(home=Path(place, "home"), dataset=DatasetSettings(folder=folder))
        first = stages.raw_data(settings)
        assert first.summary["records"] == PICTURES
        before = digest_of_all(folder)
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for turn in range(TURNS):
            for who in ("ours", "peer") if turn % 2 else ("peer", "ours"):
                begun = time.perf_counter()
                if who == "ours":
                    again = stages.raw_data(settings)
                    seconds[who].append(time.perf_counter() - begun)
                    assert again.reused and again.path == first.path
                else:
                    found = digest_of_all(folder)
                    seconds[who].append(time.perf_counter() - begun)
                    assert found == before
        # Both see a change: one picture of ten thousand with another byte, and the same length and name.
        changed = folder / f"{PICTURES // 2:05d}.jpg"
        changed.write_bytes(changed.read_bytes()[:-5] + b"other")
        assert digest_of_all(folder) != before
        after = stages.raw_data(settings)
        assert (after.summary["fetched"], after.summary["changed"]) == (1, 1)
    ours, peer = statistics.median(seconds["ours"]), statistics.median(seconds["peer"])
    assert ours < LONGEST_SECONDS, f"{ours:.2f} s for {PICTURES:,} unchanged pictures"
    result = {
        "name": "unchanged pictures passed over, a second",
        "ours": round(PICTURES / ours, 1),
        "peer": round(PICTURES / peer, 1),
        "ratio": round(peer / ours, 2),
        "goal": GOAL,
        "quality": f"{PICTURES:,} in {ours:.2f} s (goal: under {LONGEST_SECONDS:g} s); both saw one changed picture; "
        f"{TURNS} turns, median",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
