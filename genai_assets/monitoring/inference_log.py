"""The inference log: the service's requests, described by the columns that a drift report compares.

Belongs here: from rows of the request log and drawn pictures to one table of figures. Which of them have moved is
``drift``; how a request is recorded is ``serving.request_log``.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.datasets.decoding import UndecodablePicture, decode, to_square
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.evaluation.features import PictureFeatures, PictureProjection, describe_pictures
from genai_assets.serving.request_log import RequestLog

FILE = "inference_log.parquet"
PROMPT_DESCRIPTORS = ("prompt_words", "prompt_characters")
PICTURE_DESCRIPTORS = ("brightness", "saturation", "contrast")

_MAX_PIXELS = 64_000_000
_FIRST_ERROR_STATUS = 400


def inference_frame(
    log: RequestLog,
    store: PictureStore,
    projection: PictureProjection,
    *,
    window: int,
    resolution: int,
    model_version: str | None = None,
    features: PictureFeatures | None = None,
) -> pd.DataFrame:
    """Describe the successful ones among the newest requests; one row each, in the order they came.

    Args:
        log: the service's request log.
        store: where the service keeps the pictures it drew.
        projection: principal axes of picture features, the ones the reference was described with.
        window: at most so many of the newest requests are looked at, failed ones included.
        resolution: pixels a side to which every picture is brought before it is described. It must be the side of the
            reference's pictures: a picture asked for in another size would else differ by its size alone.
        model_version: only requests that this model answered.
        features: the extractor the reference was described with; EfficientNet-lite0 at 128 px by default.

    Returns:
        Columns ``request_id``, ``created_at`` (UTC), ``model_version``, ``prompt``, ``latency_ms``,
        ``prompt_words``, ``prompt_characters`` (float64), and of the request's first picture ``brightness``,
        ``saturation``, ``contrast`` (0–1) and ``pic_0`` … ``pic_{K−1}`` (float32). A picture that is no longer in the
        store, or cannot be decoded, leaves its columns NaN: the prompt is evidence still.

    Raises:
        LogUnavailable: the log exists but cannot be read.
    """
    requests = log.requests(model_version=model_version, newest=window)
    return _describe(requests, store, projection, resolution, features or PictureFeatures())


def write_inference_log(
    log: RequestLog,
    store: PictureStore,
    projection: PictureProjection,
    out: Path,
    *,
    window: int,
    resolution: int,
    model_version: str | None = None,
    features: PictureFeatures | None = None,
) -> dict[str, Any]:
    """Write :func:`inference_frame` to ``out/inference_log.parquet``, all or nothing, and count what it leaves out.

    Returns:
        ``requests`` looked at, ``successful``, ``failed`` (status 400 and up), ``error_share`` (0–1, None without
        requests), ``errors`` (error code to count), ``pictures_missing`` (successful requests without a readable
        picture), ``distinct_prompts``, ``oldest`` and ``newest`` (ISO times, None without requests).

    Raises:
        LogUnavailable: the log exists but cannot be read.
    """
    requests = log.requests(model_version=model_version, newest=window)
    frame = _describe(requests, store, projection, resolution, features or PictureFeatures())
    out.mkdir(parents=True, exist_ok=True)
    with durable.replacing(out / FILE) as temporary:
        frame.to_parquet(temporary, index=False)
    failed = requests.loc[_failed(requests)]
    codes = Counter(
        code if isinstance(code, str) else str(status)
        for code, status in zip(failed["error_code"], failed["status"], strict=True)
    )
    return {
        "requests": len(requests),
        "successful": len(frame),
        "failed": len(failed),
        "error_share": len(failed) / len(requests) if len(requests) else None,
        "errors": dict(sorted(codes.items())),
        "pictures_missing": int(frame["brightness"].isna().sum()),
        "distinct_prompts": len({plain_prompt(prompt) for prompt in frame["prompt"]}),
        "oldest": requests["created_at"].min().isoformat() if len(requests) else None,
        "newest": requests["created_at"].max().isoformat() if len(requests) else None,
    }


def describe_prompts(prompts: Sequence[str]) -> pd.DataFrame:
    """Form of prompts: float64 columns ``prompt_words`` and ``prompt_characters`` (spaces at the ends not counted)."""
    columns = {
        "prompt_words": [float(len(prompt.split())) for prompt in prompts],
        "prompt_characters": [float(len(prompt.strip())) for prompt in prompts],
    }
    return pd.DataFrame(columns, dtype="float64")


def plain_prompt(prompt: str) -> str:
    """A prompt without what does not change its meaning: letter case, and the number of spaces."""
    return " ".join(prompt.casefold().split())


def _describe(
    requests: pd.DataFrame,
    store: PictureStore,
    projection: PictureProjection,
    resolution: int,
    features: PictureFeatures,
) -> pd.DataFrame:
    successful = requests.loc[~_failed(requests)].reset_index(drop=True)
    firsts = [ids[0] if len(ids) else None for ids in successful["picture_ids"]]
    facts = pd.DataFrame(
        {
            "request_id": successful["id"],
            "created_at": successful["created_at"],
            "model_version": successful["model_version"],
            "prompt": successful["prompt"],
            "latency_ms": successful["latency_ms"].astype("float64"),
        }
    )
    return pd.concat(
        [
            facts,
            describe_prompts(list(successful["prompt"])),
            _describe_pictures(firsts, store, projection, resolution, features),
        ],
        axis=1,
    )


def _describe_pictures(
    ids: Sequence[str | None],
    store: PictureStore,
    projection: PictureProjection,
    resolution: int,
    features: PictureFeatures,
) -> pd.DataFrame:
    """Figures of the pictures, one row an id; NaN where there is no readable picture. Equal ids are computed once."""
    places: dict[str, int] = {}
    pictures: list[np.ndarray] = []
    for picture in dict.fromkeys(ids):
        pixels = None if picture is None else _read(store, picture, resolution)
        if picture is not None and pixels is not None:
            places[picture] = len(pictures)
            pictures.append(pixels)
    names = [*PICTURE_DESCRIPTORS, *(f"pic_{number}" for number in range(len(projection.axes)))]
    figures = pd.DataFrame(np.nan, index=range(len(ids)), columns=pd.Index(names), dtype="float32")
    if not pictures:
        return figures
    stacked = np.stack(pictures)
    known = pd.DataFrame(describe_pictures(stacked) | projection.project(features.extract(stacked)))[names]
    rows = [row for row, picture in enumerate(ids) if picture in places]
    figures.loc[rows] = known.iloc[[places[str(ids[row])] for row in rows]].to_numpy()
    return figures


def _read(store: PictureStore, picture: str, resolution: int) -> np.ndarray | None:
    try:
        return to_square(decode(store.read(picture), max_pixels=_MAX_PIXELS), resolution)
    except (FileNotFoundError, UndecodablePicture):  # counted by the caller as missing
        return None


def _failed(requests: pd.DataFrame) -> pd.Series:
    return requests["status"].astype("int64") >= _FIRST_ERROR_STATUS
