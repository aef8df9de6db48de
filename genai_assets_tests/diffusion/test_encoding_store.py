"""The store of encodings: nothing is encoded twice, whatever happened in between, and nothing damaged is used."""

import contextlib
import os
import signal
import sqlite3
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sqlalchemy import event

from genai_assets import durable
from genai_assets.diffusion import training_cache
from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.encoding_store import Encoding, EncodingStore, EncodingStoreUnreadable
from genai_assets.diffusion.families.stable_diffusion import StableDiffusion
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache
from genai_assets_tests.diffusion.drawings import drawn_picture
from genai_assets_tests.diffusion.families.tiny_unet import save_stable_diffusion

VERSIONS = {"pictures": "autoencoder 1", "prompts": "text encoder 1"}


class Encoder:
    """Encodes words to their length and first letter, and remembers which it was asked for."""

    def __init__(self, words: Sequence[str]):
        self.words, self.asked = words, []

    def __call__(self, places: Sequence[int]) -> Encoding:
        words = [self.words[place] for place in places]
        self.asked += words
        return {
            "length": np.array([[len(word)] * 3 for word in words], dtype=np.float16),
            "long": np.array([len(word) > 3 for word in words]),
            "letter": np.array([ord(word[0]) for word in words], dtype=np.int64),
        }


def encode(store: EncodingStore, *words: str) -> tuple[list[str], Encoding]:
    """Which words had to be encoded, and the result."""
    encoder = Encoder(words)
    return encoder.asked, store.encoded("prompts", words, encoder)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "encodings.sqlite"


def open_store(file: Path, **versions: str) -> EncodingStore:
    return EncodingStore(f"sqlite:///{file}", {**VERSIONS, **versions})


def assert_equal(one: Encoding, other: Encoding) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]) and value.dtype == other[name].dtype, name


def test_what_was_encoded_is_not_encoded_again(file):
    with open_store(file) as store:
        asked, made = encode(store, "cat", "horse", "cat")
        assert asked == ["cat", "horse"], "once, though asked for twice"
    with open_store(file) as store:
        asked, kept = encode(store, "cat", "horse", "cat")
        assert asked == []
        assert_equal(kept, made)
        assert_equal(made, Encoder(["cat", "horse", "cat"])([0, 1, 2]))


def test_only_what_is_new_is_encoded_and_the_order_stays(file):
    with open_store(file) as store:
        encode(store, "cat", "horse")
        asked, made = encode(store, "ox", "horse", "ape", "cat")
        assert asked == ["ox", "ape"]
        assert_equal(made, Encoder(["ox", "horse", "ape", "cat"])([0, 1, 2, 3]))


def test_another_version_of_the_encoder_or_another_kind_finds_nothing(file):
    with open_store(file) as store:
        encode(store, "cat")
    with open_store(file, prompts="text encoder 2") as store:
        assert encode(store, "cat")[0] == ["cat"]
    with open_store(file, pictures="text encoder 1") as store:
        encoder = Encoder(["cat"])
        store.encoded("pictures", ["cat"], encoder)
        assert encoder.asked == ["cat"]


def test_nothing_is_created_before_something_is_encoded(file):
    with open_store(file) as store:
        assert not file.exists()
        with pytest.raises(ZeroDivisionError):
            store.encoded("prompts", ["cat"], lambda places: {"never": np.array(1 // 0)})
    assert not file.exists()


def test_a_value_with_a_flipped_byte_is_encoded_anew_and_then_kept(file):
    with open_store(file) as store:
        _, made = encode(store, "cat", "horse")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        (value,) = connection.execute("SELECT value FROM encodings LIMIT 1").fetchone()
    data = bytearray(file.read_bytes())
    assert data.count(value) == 1
    data[data.find(value) + len(value) - 1] ^= 1
    file.write_bytes(data)
    with open_store(file) as store:
        asked, mended = encode(store, "cat", "horse")
        assert len(asked) == 1
        assert_equal(mended, made)
        assert encode(store, "cat", "horse")[0] == []


@pytest.mark.parametrize("damage", ["not a database at all " * 500, "cut"])
def test_a_damaged_database_is_a_clear_error(damage, file):
    with open_store(file) as store:
        encode(store, *(f"word {number}" for number in range(200)))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage == "cut" else damage.encode())
    with open_store(file) as store, pytest.raises(EncodingStoreUnreadable, match=r"encodings\.sqlite.*remove it"):
        encode(store, *(f"word {number}" for number in range(200)))


# A real build of a training cache, killed.


class CountedStableDiffusion(StableDiffusion):
    """Counts what its autoencoder and text encoder are given; may die over it."""

    pictures, prompts, dies_after = 0, 0, 10**9

    def encode_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        self.pictures += len(pictures)
        if self.pictures > self.dies_after:
            die()
        return super().encode_pictures(pictures)

    def encode_prompts(self, prompts: Sequence[str]) -> Any:
        self.prompts += len(prompts)
        return super().encode_prompts(prompts)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("latent") / "model"
    save_stable_diffusion(folder)
    return load_pipeline(folder)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures, or five prompts, are encoded and committed at a time."""
    monkeypatch.setattr(training_cache, "_MOST_PICTURES_AT_ONCE", 4)
    monkeypatch.setattr(training_cache, "_PROMPTS_AT_ONCE", 5)


def build(rows: pd.DataFrame, family: StableDiffusion, out: Path, store: EncodingStore | None) -> dict[str, str]:
    """Digests of the cache's files."""
    out.mkdir(exist_ok=True)
    build_training_cache(
        rows,
        lambda record_id, size: np.ascontiguousarray(drawn_picture(record_id)[::4, ::4]),
        family,
        out,
        resolution=16,
        prompt_template="{caption}",
        encodings=store,
    )
    return durable.digest_tree(out)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("dies", "kept"), [("while it encodes", 8), ("while it commits pictures", 4), ("while it commits prompts", 12)]
)
def test_a_build_that_was_killed_goes_on_where_it_was(dies, kept, rows, pipeline, tmp_path, file):
    expected = build(rows, CountedStableDiffusion(pipeline), tmp_path / "untouched", None)
    with warnings.catch_warnings():
        # From Python 3.12 on; the child takes no lock that another thread may hold.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            family, store = CountedStableDiffusion(pipeline), open_store(file)
            if dies == "while it encodes":
                family.dies_after = 2 * kept
            else:
                # Asked to commit, SQLite has written nothing but its journal, or some of it; and now never will.
                commits = iter(range(kept // 4 + 1))  # the tables' own is one more
                event.listen(store._engine, "commit", lambda _: next(commits, None) is None and die())
            build(rows, family, tmp_path / "killed", store)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    family = CountedStableDiffusion(pipeline)
    with open_store(file) as store:
        assert build(rows, family, tmp_path / "again", store) == expected
        assert family.pictures == 2 * (12 - kept), "each picture as it is and mirrored"
        assert family.prompts == len(TrainingCache.open(tmp_path / "again").texts)
        assert build(rows, family, tmp_path / "once-more", store) == expected
        assert family.pictures == 2 * (12 - kept) and family.prompts == len(
            TrainingCache.open(tmp_path / "again").texts
        )


@pytest.mark.usefixtures("small_steps")
def test_a_cache_of_more_data_encodes_only_what_is_new(rows, pipeline, tmp_path, file):
    first, second = CountedStableDiffusion(pipeline), CountedStableDiffusion(pipeline)
    with open_store(file) as store:
        build(rows[:9], first, tmp_path / "one", store)
        build(rows, second, tmp_path / "two", store)
    assert (first.pictures, second.pictures) == (2 * 9, 2 * 3)
    texts = [set(TrainingCache.open(tmp_path / name).texts) for name in ("one", "two")]
    assert (first.prompts, second.prompts) == (len(texts[0]), len(texts[1] - texts[0]))
