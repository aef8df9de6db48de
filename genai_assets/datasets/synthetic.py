"""Synthetic pictures: what the champion draws for thin classes, so that they come back as data.

Belongs here: which classes are thin, which captions may be drawn for them, how many pictures there may be, and which
drawings are good enough. Who draws and who measures is handed in. Such a picture is trained on only: it never shows a
concept, and never bears a caption, that is validated, tested or evaluated with, or kept back. That a training keeps to
the share is the splits' (``training_rows``); here no more is drawn than the share has room for.

The danger of training on one's own drawings is that faults feed on themselves (Shumailov and others 2024, "AI models
collapse when trained on recursively generated data"); hence off by default, capped, marked for ever, and never what is
measured with.
"""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, cycle, islice

import numpy as np
import pandas as pd

from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import FEEDBACK_LICENCE, FEEDBACK_SOURCE, SYNTHETIC_SOURCE, Record, to_frame
from genai_assets.datasets.splits import normalised
from genai_assets.settings import Settings, SyntheticSettings

_MOST_OF_ONE_CAPTION = 4
_BLANK_CONTRAST = 4.0  # standard deviation of a picture's pixels, of 255
_PICTURES_AT_ONCE = 32
_NOT_YET = datetime.fromtimestamp(0, UTC)  # a record arrives when its batch is closed; before, no clock is read


@dataclass(frozen=True)
class Wish:
    """One picture that is wanted.

    Attributes:
        caption, concept, category, keywords: of the record to be.
        number: 0 for the first picture of its caption, then 1, ...
    """

    caption: str
    concept: str
    category: str
    keywords: tuple[str, ...] = ()
    number: int = 0


@dataclass(frozen=True)
class Yardstick:
    """What drawings are measured against.

    Attributes:
        ids: of the real pictures of the house style that are trained on, without variants.
        vectors: their features, float [M, D].
        describe: features of pictures, uint8 [N, H, W, 3] to float [N, D], by the same extractor.
        agree: how well each picture (by its features) shows its caption, the more the better, above 0 for "rather yes";
            None when it cannot be told.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    describe: Callable[[np.ndarray], np.ndarray]
    agree: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None


@dataclass(frozen=True)
class Drawn:
    """What came of the wishes: the records kept, in the columns of a manifest, how many pictures were drawn, and how
    many of these were dropped, by reason. The records have not arrived yet: their ``added_at`` says nothing."""

    records: pd.DataFrame
    drawn: int
    dropped: dict[str, int]


def is_own_drawing(records: pd.DataFrame) -> pd.Series:
    """Which records the graph itself had drawn for thin classes."""
    return records["source"] == SYNTHETIC_SOURCE


def room_for(real: int, share: float) -> int:
    """How many synthetic pictures may stand beside so many real ones, if they make up at most ``share`` of the sum."""
    return math.floor(real * share / (1 - share) + 1e-9)


def thin_categories(trained_on: pd.DataFrame, thin_below: float) -> dict[str, int]:
    """Categories with few training concepts, and how many pictures each lacks to the median; the thinnest first.

    Pictures that were drawn for a category before count as had. A category without a name is none.

    Args:
        trained_on: the house style's training records.
        thin_below: share of the median number of concepts, in (0, 1].
    """
    named = trained_on[trained_on["category"] != ""]
    own = is_own_drawing(named)
    real = named[~own & (named["source"] != FEEDBACK_SOURCE) & ~named["synthetic"].astype(bool)]
    concepts = real.groupby("category")["concept"].nunique()
    if len(concepts) < 2:
        return {}
    median = float(concepts.median())
    had = Counter(named.loc[own, "category"])
    lacking = {
        str(category): math.ceil(median) - int(count) - had[str(category)]
        for category, count in sorted(concepts.items(), key=lambda it: (it[1], str(it[0])))
        if count < thin_below * median
    }
    return {category: count for category, count in lacking.items() if count > 0}


def plan(table: pd.DataFrame, trained_on: pd.DataFrame, settings: Settings) -> list[Wish]:
    """The pictures to draw: one after the other for each thin category, as many as there is room for.

    First come concepts that other styles have in the training split and the house style lacks, then further pictures of
    the house style's own training concepts, at most four of a caption.

    Args:
        table: all validated records with their ``split``, of every style.
        trained_on: the house style's training records, as of ``splits.training_rows``.
        settings: ``synthetic`` and ``dataset.house_style``.
    """
    rules = settings.synthetic
    drawn = trained_on["synthetic"].astype(bool) | (trained_on["source"] == FEEDBACK_SOURCE)
    had = int(is_own_drawing(table).sum())
    room = min(room_for(int((~drawn).sum()), rules.max_share) - had, rules.max_pictures)
    if room <= 0:
        return []
    allowed = _drawable(table)
    house_style = settings.dataset.house_style
    known = set(table.loc[(table["style"] == house_style), "concept"].map(normalised))
    lines = [
        list(islice(_wishes(allowed[allowed["category"] == category], house_style, known), count))
        for category, count in thin_categories(trained_on, rules.thin_below).items()
    ]
    return list(islice(_in_turn(lines), room))


def draw(
    wishes: Sequence[Wish],
    settings: Settings,
    store: PictureStore,
    *,
    model_version: str,
    draw_pictures: Callable[[Sequence[str], Sequence[int]], np.ndarray],
    yardstick: Yardstick,
    known_vectors: np.ndarray | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Draw several candidates for each wish, keep the best that passes, and put it into the store.

    Dropped is what is of nearly one colour, what nearly copies a training picture, what is strange (farther from every
    real picture than ``max_strangeness`` times what is usual among real ones), what repeats another drawing, and what
    does not show its caption as far as that can be told. The measures are cosine distances of features: they see
    near-copies of whole pictures and gross strangeness, nothing subtler.

    Args:
        wishes: as of :func:`plan`.
        settings: ``synthetic``, the prompt's template, the house style.
        store: where pictures go: that of drawn pictures.
        model_version: of the champion.
        draw_pictures: prompts and seeds to pictures, uint8 [N, S, S, 3].
        yardstick: real pictures, and how to measure.
        known_vectors: features of drawings that are records already, float [K, D].
        on_progress: told (wishes done, in all).

    Raises:
        ValueError: there are too few real pictures to tell what is usual.
    """
    rules = settings.synthetic
    bounds = _bounds(yardstick.vectors, rules)
    earlier = [] if known_vectors is None else list(known_vectors)
    kept: list[Record] = []
    dropped: Counter[str] = Counter()
    at_once = max(1, _PICTURES_AT_ONCE // rules.candidates)
    for start in range(0, len(wishes), at_once):
        part = wishes[start : start + at_once]
        candidates = _draw_candidates(part, settings, draw_pictures, yardstick)
        for wish, tried in zip(part, candidates, strict=True):
            passed: list[_Candidate] = []
            for candidate in tried:
                reason = _fault(candidate, *bounds)
                if not reason and _repeats(candidate.vector, earlier, bounds[0]):
                    reason = "repeats another drawing"
                if reason:
                    dropped[reason] += 1
                else:
                    passed.append(candidate)
            if passed:
                best = max(passed, key=lambda candidate: candidate.merit)
                dropped["not the best of its candidates"] += len(passed) - 1
                earlier.append(best.vector)
                picture = store.put_many([_png(best.picture)])[0]
                kept.append(_record(picture, wish, best, settings, model_version, str(yardstick.ids[best.nearest])))
        if on_progress:
            on_progress(start + len(part), len(wishes))
    found = {reason: count for reason, count in sorted(dropped.items()) if count}
    return Drawn(to_frame(kept).drop_duplicates(["id"], ignore_index=True), len(wishes) * rules.candidates, found)


@dataclass(frozen=True)
class _Candidate:
    """One drawing for a wish, measured.

    Attributes:
        picture: uint8 [S, S, 3].
        seed: of its noise.
        vector: its features.
        distance, nearest: to the nearest real picture, and which one that is.
        agreement: with its caption; None when it cannot be told.
    """

    picture: np.ndarray
    seed: int
    vector: np.ndarray
    distance: float
    nearest: int
    agreement: float | None

    @property
    def merit(self) -> float:
        """The more the better, among candidates of one wish: agreement, else nearness to real pictures."""
        return -self.distance if self.agreement is None else self.agreement


def _draw_candidates(
    wishes: Sequence[Wish],
    settings: Settings,
    draw_pictures: Callable[[Sequence[str], Sequence[int]], np.ndarray],
    yardstick: Yardstick,
) -> list[list[_Candidate]]:
    """The candidates of each wish."""
    from genai_assets.evaluation.metrics import nearest_distance

    rules = settings.synthetic
    asked = [(wish, _seed(rules.seed, wish, number)) for wish in wishes for number in range(rules.candidates)]
    pictures = draw_pictures([_prompt(wish, settings) for wish, _ in asked], [seed for _, seed in asked])
    vectors = yardstick.describe(pictures)
    distances, nearest = nearest_distance(vectors, yardstick.vectors)
    agreement = yardstick.agree(vectors, [wish.caption for wish, _ in asked]) if yardstick.agree else None
    candidates = [
        _Candidate(
            pictures[place],
            asked[place][1],
            vectors[place],
            float(distances[place]),
            int(nearest[place]),
            None if agreement is None else float(agreement[place]),
        )
        for place in range(len(asked))
    ]
    return [candidates[start : start + rules.candidates] for start in range(0, len(asked), rules.candidates)]


def _record(
    picture: str, wish: Wish, drawn: _Candidate, settings: Settings, model_version: str, nearest: str
) -> Record:
    height, width = drawn.picture.shape[:2]
    return Record(
        id=picture,
        caption=wish.caption,
        concept=wish.concept,
        style=settings.dataset.house_style,
        source=SYNTHETIC_SOURCE,
        licence=FEEDBACK_LICENCE,
        width=width,
        height=height,
        category=wish.category,
        keywords=wish.keywords,
        synthetic=True,
        added_at=_NOT_YET,
        provenance={
            "model_version": model_version,
            "prompt": _prompt(wish, settings),
            "seed": str(drawn.seed),
            "nearest": nearest,
            "distance": f"{drawn.distance:.4f}",
        },
    )


def _prompt(wish: Wish, settings: Settings) -> str:
    return settings.fine_tune.prompt(wish.caption, settings.dataset.house_style)


def _drawable(table: pd.DataFrame) -> pd.DataFrame:
    """Real training records, no variants, whose concept and caption occur in no other split, in any style."""
    elsewhere = table[table["split"] != "train"]
    concepts, captions = (set(elsewhere[name].map(normalised)) for name in ("concept", "caption"))
    own = table["synthetic"].astype(bool) | (table["source"] == FEEDBACK_SOURCE)
    rows = table[(table["split"] == "train") & ~table["variant"].astype(bool) & ~own & (table["caption"] != "")]
    withheld = rows["concept"].map(normalised).isin(concepts) | rows["caption"].map(normalised).isin(captions)
    return rows[~withheld].sort_values(["concept", "caption", "id"])


def _wishes(rows: pd.DataFrame, house_style: str, known: set[str]) -> Iterator[Wish]:
    """Endless but for the limit a caption has: concepts that are new to the house style first."""
    house = rows["style"] == house_style
    new = rows[~house & ~rows["concept"].map(normalised).isin(known)]
    firsts = list(chain(_one_a_concept(new), _one_a_concept(rows[house])))
    for number in range(_MOST_OF_ONE_CAPTION):
        for wish in firsts:
            yield Wish(wish.caption, wish.concept, wish.category, wish.keywords, number)


def _one_a_concept(rows: pd.DataFrame) -> Iterator[Wish]:
    for _, row in rows.drop_duplicates("concept").iterrows():
        yield Wish(row["caption"], row["concept"], row["category"], tuple(row["keywords"]))


def _in_turn(lines: Iterable[Sequence[Wish]]) -> Iterator[Wish]:
    """One of each line, then the second of each, ...: no category takes all the room."""
    waiting = {number: iter(line) for number, line in enumerate(lines)}
    for number in cycle(list(waiting)):
        if not waiting:
            return
        if number in waiting:
            try:
                yield next(waiting[number])
            except StopIteration:
                del waiting[number]


def _bounds(real: np.ndarray, rules: SyntheticSettings) -> tuple[float, float]:
    """Below which distance a drawing copies, and above which it is strange, read off the real pictures themselves."""
    from genai_assets.evaluation.metrics import copy_threshold

    if len(real) < 4:
        raise ValueError(
            f"{len(real)} real training pictures are too few to tell a good drawing from a bad one; set "
            "synthetic.max_share = 0, or add pictures"
        )
    unit = real / np.maximum(np.linalg.norm(real, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -1)
    distances = np.clip(1 - similarity.max(1), 0, 2)
    return copy_threshold(distances), rules.max_strangeness * float(np.median(distances))


def _fault(candidate: _Candidate, copy_below: float, strange_above: float) -> str:
    """Why a drawing is not good enough; empty when it is."""
    if candidate.picture.astype(np.float32).std((0, 1)).max() < _BLANK_CONTRAST:
        return "blank"
    if candidate.distance < copy_below:
        return "nearly copies a training picture"
    if candidate.distance > strange_above:
        return "strange"
    return "does not show its caption" if candidate.agreement is not None and candidate.agreement <= 0 else ""


def _repeats(vector: np.ndarray, earlier: list[np.ndarray], copy_below: float) -> bool:
    from genai_assets.evaluation.metrics import nearest_distance

    return bool(earlier) and float(nearest_distance(vector[None], np.stack(earlier))[0][0]) < copy_below


def _seed(seed: int, wish: Wish, candidate: int) -> int:
    """Of one candidate's noise: from its wish alone, whatever else is drawn."""
    said = "\0".join([str(seed), normalised(wish.concept), normalised(wish.caption), str(wish.number), str(candidate)])
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=4).digest(), "big") >> 1


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()
