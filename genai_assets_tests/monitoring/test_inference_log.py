"""The inference log's promises: successful requests are described, failed ones counted, lost pictures survived."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from genai_assets.datasets.picture_store import PictureStore
from genai_assets.evaluation.features import PictureFeatures, PictureProjection
from genai_assets.monitoring.inference_log import FILE, describe_prompts, inference_frame, write_inference_log
from genai_assets.serving.request_log import RequestEntry, RequestLog


def png(colour: tuple[int, int, int], side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def features() -> PictureFeatures:
    return PictureFeatures(resolution=32)


@pytest.fixture(scope="module")
def projection() -> PictureProjection:
    return PictureProjection.fit(np.random.default_rng(0).normal(size=(10, 1280)).astype(np.float32), 4)


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    return PictureStore(tmp_path / "drawn")


@pytest.fixture
def log(tmp_path: Path):
    with RequestLog(f"sqlite:///{tmp_path / 'log.sqlite'}") as log:
        yield log


def record(log: RequestLog, prompt: str, pictures: list[str], *, status: int = 200, model: str = "v1", **changes):
    log.record_request(
        RequestEntry(
            prompt=prompt,
            n=1,
            size="64x64",
            seed=1,
            model_version=model,
            status=status,
            picture_ids=pictures,
            latency_ms=20.0 if status == 200 else None,
            **changes,
        )
    )


def test_each_successful_request_is_described_by_its_first_picture(log, store, projection, features):
    white, red = store.put(png((255, 255, 255))), store.put(png((255, 0, 0)))
    record(log, "a white wall", [white, red])
    record(log, "red", [red])
    frame = inference_frame(log, store, projection, window=10, resolution=64, features=features)
    assert list(frame["prompt"]) == ["a white wall", "red"]
    assert list(frame["prompt_words"]) == [3, 1] and list(frame["prompt_characters"]) == [12, 3]
    assert list(frame["latency_ms"]) == [20, 20]
    assert frame["brightness"].tolist() == pytest.approx([1, 0.299])
    assert frame["saturation"].tolist() == pytest.approx([0, 1])
    assert frame["contrast"].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert list(frame.filter(regex=r"^pic_\d+$")) == ["pic_0", "pic_1", "pic_2", "pic_3"]
    assert frame["pic_0"].notna().all() and frame["pic_0"].nunique() == 2


def test_a_picture_asked_for_in_another_size_is_brought_to_the_reference_size(log, store, projection, features):
    small = Image.effect_noise((64, 64), 80).convert("RGB")
    ids = []
    for picture in (small, small.resize((256, 256), Image.Resampling.LANCZOS)):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        ids.append(store.put(file.getvalue()))
        record(log, "noise", [ids[-1]])
    frame = inference_frame(log, store, projection, window=10, resolution=64, features=features)
    pictures = frame.filter(regex=r"^pic_|brightness|contrast").to_numpy()
    assert pictures[1] == pytest.approx(pictures[0], rel=0.1, abs=0.1)


def test_a_lost_or_damaged_picture_leaves_the_prompt_and_is_counted(log, store, projection, features, tmp_path):
    damaged = store.put(b"this is not a picture")
    record(log, "lost", ["f" * 64])
    record(log, "damaged", [damaged])
    record(log, "fine", [store.put(png((9, 9, 9)))])
    summary = write_inference_log(log, store, projection, tmp_path / "out", window=10, resolution=64, features=features)
    frame = pd.read_parquet(tmp_path / "out" / FILE)
    assert frame["brightness"].notna().tolist() == [False, False, True]
    assert summary["successful"] == 3 and summary["pictures_missing"] == 2


def test_failed_requests_are_counted_by_their_code_and_not_described(log, store, projection, features, tmp_path):
    record(log, "fine", [store.put(png((9, 9, 9)))])
    record(log, "", [], status=400, error_code="invalid_prompt")
    record(log, "late", [], status=503, error_code="overloaded")
    record(log, "odd", [], status=500)
    summary = write_inference_log(log, store, projection, tmp_path, window=10, resolution=64, features=features)
    assert len(pd.read_parquet(tmp_path / FILE)) == 1
    assert summary["failed"] == 3 and summary["error_share"] == 0.75
    assert summary["errors"] == {"500": 1, "invalid_prompt": 1, "overloaded": 1}


def test_the_window_takes_the_newest_requests_of_one_model(log, store, projection, features):
    picture = store.put(png((9, 9, 9)))
    for number in range(5):
        record(log, f"old {number}", [picture], model="v1")
    for number in range(3):
        record(log, f"new {number}", [picture], model="v2")
    of_v1 = inference_frame(log, store, projection, window=2, resolution=64, model_version="v1", features=features)
    assert list(of_v1["prompt"]) == ["old 3", "old 4"]


def test_no_requests_make_an_empty_table_with_all_columns(log, store, projection, features, tmp_path):
    summary = write_inference_log(log, store, projection, tmp_path, window=10, resolution=64, features=features)
    frame = pd.read_parquet(tmp_path / FILE)
    assert frame.empty and {"prompt", "latency_ms", "brightness", "pic_3"} <= set(frame.columns)
    assert summary["error_share"] is None and summary["oldest"] is None


def test_prompt_descriptors_count_words_and_characters():
    assert describe_prompts(["  a red  car ", ""]).to_dict("list") == {
        "prompt_words": [3, 0],
        "prompt_characters": [10, 0],
    }
