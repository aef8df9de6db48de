"""Feedback: from people's ratings of drawn pictures to a dataset that may be trained on.

Belongs here: what becomes of each rated picture (liked, disliked, or dropped with the reason), and closing batches of
liked ones. How an opinion is recorded is ``serving.request_log``; the batches come back through ``datasets.sources``.

What people like is the model's own output: it is marked as synthetic, its licence is ``LicenseRef-own-output``, and its
concept begins with ``feedback:``, so that a drawn picture is never taken for a real one of a held-out concept, and
whoever makes the splits can keep it to training. A batch, once closed, never changes: what was trained on can be looked
up for ever. An opinion that comes later changes the feedback dataset, and is counted as a retraction.
"""

import fcntl
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from genai_assets import durable
from genai_assets.datasets.captions import without_style
from genai_assets.datasets.decoding import UndecodablePicture, probe
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import (
    FEEDBACK_LICENCE,
    FEEDBACK_SOURCE,
    Record,
    manifest_version,
    read_manifest,
    to_frame,
    write_manifest,
)
from genai_assets.datasets.sources.described import slug
from genai_assets.serving.request_log import RequestLog
from genai_assets.settings import Settings

CONCEPT_PREFIX = "feedback:"

_Row = dict[str, Any]

_DISLIKED_COLUMNS = ("id", "caption", "model_version", "request_id", "likes", "dislikes", "comments")
_DROPPED_COLUMNS = ("id", "reason")


@dataclass(frozen=True)
class FeedbackDataset:
    """Every rated picture in one of three tables.

    Attributes:
        liked: rows in the columns of a manifest, in the order in which the pictures were first rated (``added_at``).
        disliked: columns id, caption, model_version, request_id, likes, dislikes, comments (list of texts).
        dropped: columns id and reason; pictures that say nothing, or nothing that can be used.
        events: feedback events that were read.
    """

    liked: pd.DataFrame
    disliked: pd.DataFrame
    dropped: pd.DataFrame
    events: int


@dataclass(frozen=True)
class Batches:
    """The closed batches after :func:`close_batches`.

    Attributes:
        files: all of them, oldest first.
        closed_now: those that were closed by this call.
        pictures: ids of the pictures in them.
        waiting: liked pictures that are in no batch yet.
    """

    files: tuple[Path, ...]
    closed_now: tuple[Path, ...]
    pictures: frozenset[str]
    waiting: int


def batches_folder(settings: Settings) -> Path:
    """Where closed batches lie: ``<number>-<digest>.parquet``, one manifest each."""
    return settings.paths.feedback_batches


def curate(feedback: pd.DataFrame, requests: pd.DataFrame, store: PictureStore, settings: Settings) -> FeedbackDataset:
    """Decide what each rated picture is good for.

    Events do not say who rated; a request is taken for one person, whose newest rating of a picture is the one that
    counts. The same picture drawn by several requests is one picture, described by the request that was rated first,
    and liked or disliked by the majority of them; a tie says nothing and is dropped.

    Its caption is the prompt, or, when people wrote a better one, the one written most often (of equals the newest),
    whichever rating it came with. A style typed along is no part of it (:func:`captions.without_style`): training adds
    the style, and a held-out caption with the style behind it is still that caption. Dropped, too: captions that are
    empty or longer than ``settings.dataset.max_caption_length``, pictures that are not in the store or not pictures,
    and events whose request the log does not have.

    Args:
        feedback: events in the columns of the request log's feedback table.
        requests: requests in the columns of the log's request table, at least those that events name.
        store: the store of drawn pictures.
        settings: house style, the template of training's prompts, and the limit of captions.
    """
    requests_by_id = {row["id"]: row for row in _rows(requests)}
    by_picture: dict[str, list[_Row]] = {}
    for event in _rows(feedback.sort_values(["created_at", "id"])):
        by_picture.setdefault(event["picture_id"], []).append(event)
    liked: list[Record] = []
    disliked: list[_Row] = []
    dropped: list[_Row] = []
    for picture, all_events in by_picture.items():
        events = [event for event in all_events if event["request_id"] in requests_by_id]
        likes, dislikes = _votes(events)
        try:
            if not events:
                raise _NotUsable("its request is not known")
            if likes == dislikes:
                raise _NotUsable(f"ratings are in conflict: {likes} for, {dislikes} against")
            request = requests_by_id[events[0]["request_id"]]
            caption = _caption(events, request["prompt"], settings)
            if likes > dislikes:
                liked.append(_record(picture, caption, events, request, store, settings))
            else:
                disliked.append(
                    {
                        "id": picture,
                        "caption": caption,
                        "model_version": request["model_version"],
                        "request_id": request["id"],
                        "likes": likes,
                        "dislikes": dislikes,
                        "comments": [event["comment"] for event in events if event["comment"]],
                    }
                )
        except _NotUsable as unusable:
            dropped.append({"id": picture, "reason": str(unusable)})
    return FeedbackDataset(
        liked=to_frame(liked).sort_values(["added_at", "id"], ignore_index=True),
        disliked=pd.DataFrame(disliked, columns=pd.Index(_DISLIKED_COLUMNS)),
        dropped=pd.DataFrame(dropped, columns=pd.Index(_DROPPED_COLUMNS)),
        events=len(feedback),
    )


def close_batches(liked: pd.DataFrame, folder: Path, size: int) -> Batches:
    """Close a batch for every full ``size`` liked pictures that are in none yet, in the order of ``liked``.

    Batches are written once and all or nothing; the remainder waits. Called again with the same pictures it does
    nothing. Two processes may call it at the same time: one waits for the other.

    Args:
        liked: rows in the columns of a manifest, in the order of arrival.
        folder: where batches lie.
        size: pictures a batch.
    """
    with _alone_in(folder):
        files = sorted(folder.glob("*.parquet"))
        taken = [picture for path in files for picture in read_manifest(path)["id"]]
        fresh = liked.loc[~liked["id"].isin(taken)]
        closed: list[Path] = []
        for start in range(0, len(fresh) - size + 1, size):
            batch = fresh.iloc[start : start + size].reset_index(drop=True)
            path = folder / f"{_next_number([*files, *closed]):06d}-{manifest_version(batch)}.parquet"
            write_manifest(path, batch)
            closed.append(path)
            taken += batch["id"].tolist()
    return Batches((*files, *closed), tuple(closed), frozenset(taken), waiting=len(fresh) - size * len(closed))


def build_feedback_dataset(settings: Settings, out: Path) -> dict[str, Any]:
    """Curate all feedback so far, write it to ``out``, and close the batches that are full.

    Writes ``feedback.parquet`` (liked, a manifest), ``disliked.parquet``, ``dropped.parquet`` and ``events.json`` (the
    summary). Equal feedback gives equal files.

    Returns:
        ``events``, ``pictures`` rated, ``liked``, ``disliked``, ``dropped`` (reason to count), ``batches`` (names of
        all closed ones), ``closed_now`` (how many by this call), ``waiting`` (liked pictures not in a batch yet),
        ``batch_size``, ``retracted`` (pictures in a batch that people no longer like).

    Raises:
        LogUnavailable: the request log exists but cannot be read, which is not the same as no feedback.
    """
    with RequestLog(settings.database_url) as log:
        # Feedback first: every event names a request that was committed before it.
        feedback = log.feedback()
        requests = log.requests()
    dataset = curate(feedback, requests, PictureStore(settings.paths.drawn), settings)
    size = settings.monitoring.feedback_batch_size
    batches = close_batches(dataset.liked, batches_folder(settings), size)
    summary: dict[str, Any] = {
        "events": dataset.events,
        "pictures": len(dataset.liked) + len(dataset.disliked) + len(dataset.dropped),
        "liked": len(dataset.liked),
        "disliked": len(dataset.disliked),
        "dropped": _count_reasons(dataset.dropped),
        "batches": [path.stem for path in batches.files],
        "waiting": batches.waiting,
        "batch_size": size,
        "retracted": len(batches.pictures - set(dataset.liked["id"])),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out / "feedback.parquet", dataset.liked)
    for name, frame in (("disliked", dataset.disliked), ("dropped", dataset.dropped)):
        with durable.replacing(out / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    durable.write_json(out / "events.json", summary)
    return summary | {"closed_now": len(batches.closed_now)}


class _NotUsable(ValueError):
    """A rated picture says nothing, or cannot be trained on; the message is the reason."""


def _rows(frame: pd.DataFrame) -> list[_Row]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _votes(events: Sequence[_Row]) -> tuple[int, int]:
    """Requests for and against one picture, each by its newest event; ``events`` in the order they came."""
    last_word = {event["request_id"]: event["rating"] for event in events}
    likes = sum(rating > 0 for rating in last_word.values())
    return likes, len(last_word) - likes


def _caption(events: Sequence[_Row], prompt: str, settings: Settings) -> str:
    """The better caption written most often, of equals the newest; else the prompt. Spaces are made single."""

    def plain(text: str) -> str:
        return without_style(" ".join(text.split()), settings.fine_tune.prompt_template, settings.dataset.house_style)

    written = [plain(event["better_caption"]) for event in events if isinstance(event["better_caption"], str)]
    better = [text for text in written if text]
    if not better:
        return plain(prompt)
    often = Counter(better)
    return max(enumerate(better), key=lambda place: (often[place[1]], place[0]))[1]


def _record(
    picture: str, caption: str, events: Sequence[_Row], request: _Row, store: PictureStore, settings: Settings
) -> Record:
    limit = settings.dataset.max_caption_length
    if not caption:
        raise _NotUsable("the caption is empty")
    if len(caption) > limit:
        raise _NotUsable(f"the caption is longer than {limit} characters")
    try:
        width, height = probe(store.read(picture))
    except FileNotFoundError:
        raise _NotUsable("the picture is not in the store of drawn pictures") from None
    except UndecodablePicture as error:
        raise _NotUsable(f"the picture cannot be read: {error}") from None
    likes, dislikes = _votes(events)
    return Record(
        id=picture,
        caption=caption,
        concept=CONCEPT_PREFIX + (slug(caption) or durable.digest_bytes(caption.encode())[:16]),
        style=settings.dataset.house_style,
        source=FEEDBACK_SOURCE,
        licence=FEEDBACK_LICENCE,
        width=width,
        height=height,
        added_at=events[0]["created_at"].to_pydatetime(),
        provenance={
            "synthetic": "true",
            "request_id": request["id"],
            "model_version": request["model_version"],
            "likes": str(likes),
            "dislikes": str(dislikes),
        },
    )


def _count_reasons(dropped: pd.DataFrame) -> dict[str, int]:
    # What stands behind the colon differs from picture to picture.
    return dict(sorted(Counter(str(reason).partition(":")[0] for reason in dropped["reason"]).items()))


def _next_number(files: list[Path]) -> int:
    return max((int(path.stem.partition("-")[0]) for path in files), default=0) + 1


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, so a killed one leaves nothing to clear away."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
