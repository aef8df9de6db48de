"""Splits: which records are trained on, which are validated or tested with, and which are never shown.

Belongs here: the decision by concept, who is set aside lest a split leak into another, the table of both, and the
weights of classes. A record's *own* split is read off a keyed hash of its concept's name and of nothing else, so it
never moves as data grows, and every picture of a concept (its variants, all styles) shares it. What data around it can
change is only whether a record is in its own split or set aside. Whole categories of the house style can be kept back
as a batch that arrives later; when they have arrived is ``release``. That nothing leaks is claimed independently, in
``leakage``.
"""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.datasets.captions import without_style
from genai_assets.datasets.records import FEEDBACK_SOURCE, SYNTHETIC_SOURCE, original_captions
from genai_assets.settings import Settings, SplitSettings

Split = Literal["train", "validation", "held_out", "test", "later", "set_aside"]
SPLITS: tuple[Split, ...] = get_args(Split)

PARTED: tuple[Split, ...] = ("train", "validation", "held_out", "test")
"""Splits that nothing may have in common, the most protected last: what two would share stays in the later one."""

COLUMNS = ("id", "caption", "concept", "style", "category", "split", "own_split", "reason")
"""Of the table; ``reason``: why a record is set aside, empty for every other."""

VARIANT_WEIGHT = 0.15
"""How often a variant is drawn in training, where a plain picture is drawn once."""

SHARE_TOLD_FROM = 20
"""Concepts of the house style that a category must have before its shares are compared with the ones asked for."""

_FAR_OFF = 3.0  # standard deviations of a binomial count


def normalised(text: str) -> str:
    """A name or caption without what people do not see as a difference: case, surrounding blanks, Unicode form."""
    return unicodedata.normalize("NFC", text.strip()).casefold()


def concept_position(concept: str, key: str) -> float:
    """Where a concept falls in [0, 1): uniform over concepts, the same for ever under one key.

    Keyed BLAKE2b (RFC 7693), its first 53 bits as a fraction. Spellings that differ by case, surrounding blanks or
    Unicode normal form are one concept.
    """
    name = normalised(concept)
    # BLAKE2's key holds 64 bytes at most; a setting may be longer.
    short_key = hashlib.blake2b(key.encode(), digest_size=64).digest()
    digest = hashlib.blake2b(name.encode(), key=short_key, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def concept_split(concept: str, settings: SplitSettings) -> Literal["train", "validation", "held_out", "test"]:
    """The split of a concept, whatever its style and category: held out, then validation, then test, else train.

    Shares are met in expectation and not by count. A quota for each category (its concepts in a keyed order, the first
    tenth held out) would meet them better, and cannot be had: whoever arrives early in that order would push another
    across the boundary, and a record would have moved. :func:`shares_by_category` tells what came out.
    """
    position = concept_position(concept, settings.key)
    bound = settings.held_out_share
    if position < bound:
        return "held_out"
    bound += settings.validation_share
    if position < bound:
        return "validation"
    return "test" if position < bound + settings.test_share else "train"


def assign_split(concept: str, category: str, settings: SplitSettings, released: Set[str]) -> Split:
    """The own split of a *house-style* record.

    A category of ``settings.later_categories`` that is not among ``released`` is "later". Once it is released, its
    concepts go where their hash says, and stay there. A record of another style is never kept back: the base model has
    seen it anyway, so it takes :func:`concept_split`.
    """
    if category in settings.later_categories and category not in released:
        return "later"
    return concept_split(concept, settings)


def own_splits(manifest: pd.DataFrame, settings: Settings, released: Set[str]) -> list[Split]:
    """The own split of every record: of itself alone, whatever else is in the manifest.

    What a model drew (feedback, synthetic pictures) is trained on or nothing: its own split is "train".
    """
    house_style = settings.dataset.house_style
    drawn = _is_drawn(manifest)
    return [
        "train"
        if is_drawn
        else assign_split(concept, category, settings.splits, released)
        if style == house_style
        else concept_split(concept, settings.splits)
        for concept, category, style, is_drawn in zip(
            manifest["concept"], manifest["category"], manifest["style"], drawn, strict=True
        )
    ]


def assign(
    manifest: pd.DataFrame,
    settings: Settings,
    released: Set[str],
    clusters: pd.DataFrame | None = None,
    pairs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Every record in its own split, or set aside.

    Set aside is, with the reason, whatever two of :data:`PARTED` would share: records of one picture, of one caption in
    one style, or of one cluster of near duplicates (or a pair that clusters did not join). The record in the more
    protected split stays, the others are set aside, so a test picture is where it always was and training loses its
    copy. What a model drew is set aside, too, when its concept or its caption is that of a real record that is not
    trained on. And with a policy other than "all" (``curation.keep``), of a cluster's training records of one style
    only the preferred one stays.

    Args:
        manifest: validated records.
        settings: ``splits``, ``curation``, and ``dataset.house_style``.
        released: categories that have arrived.
        clusters, pairs: as of ``duplicates``; none when not given.

    Returns:
        pd.DataFrame: :data:`COLUMNS`, one row a record, sorted by id and caption.
    """
    table = manifest.loc[:, list(COLUMNS[:5])].copy()
    table["own_split"] = own_splits(manifest, settings, released)
    drawn = _is_drawn(manifest)
    reasons = [""] * len(table)

    rank = {split: place for place, split in enumerate(PARTED)}
    ranks = [rank.get(split, -1) for split in table["own_split"]]  # -1: later, parted from nothing
    for what, members in _bindings(table, clusters, pairs):
        highest = max((ranks[row] for row in members), default=-1)
        for row in members:
            if -1 < ranks[row] < highest and not reasons[row]:
                reasons[row] = f"{what} is in {_people_say(PARTED[highest])}"

    # What is kept back until later must not be given away by a drawing either.
    unseen: dict[tuple[str, str], str] = {}
    for concept, caption, split, is_drawn in zip(
        table["concept"], table["caption"], table["own_split"], drawn, strict=True
    ):
        if split != "train" and not is_drawn:
            unseen["concept", normalised(concept)] = split
            unseen["caption", _said(caption, settings)] = split
    for row in np.flatnonzero(drawn):
        named = {
            "concept": normalised(table["concept"].iloc[row]),
            "caption": _said(table["caption"].iloc[row], settings),
        }
        for field, name in named.items():
            split = unseen.get((field, name))
            if split and not reasons[row]:
                reasons[row] = f"a model drew it, and its {field} is in {_people_say(split)}"

    if settings.curation.keep != "all" and clusters is not None:
        _keep_the_preferred(table, clusters, reasons, settings.curation.keep)
    table["reason"] = reasons
    table["split"] = table["own_split"].where(table["reason"] == "", "set_aside")
    return table[list(COLUMNS)].sort_values(["id", "caption"], ignore_index=True)


def split(
    manifest: pd.DataFrame,
    settings: Settings,
    released: Set[str],
    out: Path,
    *,
    clusters: pd.DataFrame | None = None,
    pairs: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Assign every record of a manifest to a split; write ``out/splits.parquet`` and ``out/class_weights.parquet``.

    The first is what :func:`assign` gives, the second what :func:`class_weights` gives for the records trained on.

    Args:
        manifest: validated records.
        settings: ``splits``, ``curation.keep``, ``dataset.house_style`` and ``monitoring.max_feedback_share``.
        released: categories that have arrived, as of :func:`release.released_categories`.
        out: an existing folder to fill.
        clusters, pairs: near duplicates, as of ``duplicates.find_duplicates``; without them only records that share a
            picture or a caption are bound together.

    Returns:
        ``house_style``; ``records``: house-style records by split; ``concepts``: house-style concepts by split;
        ``other_records``: records of the other styles by split; ``later_categories``: those still kept back;
        ``set_aside``: records by reason; ``shares``: :func:`shares_by_category` of the house style.

    Raises:
        ValueError: there is no house-style record at all, none to train on, or no house-style concept is held out (few
            concepts: a hash promises shares, not counts). Nothing is written.
    """
    house_style = settings.dataset.house_style
    table = assign(manifest, settings, released, clusters, pairs)
    house = table.loc[table["style"] == house_style, :]
    _refuse_unusable(house, manifest, settings)

    rows = training_rows(manifest, table, settings)
    weights = class_weights(rows[rows["split"] == "train"])
    for name, written in (("splits", table), ("class_weights", weights)):
        with durable.replacing(out / f"{name}.parquet") as temporary:
            written.to_parquet(temporary, index=False)
    reasons = Counter(table.loc[table["reason"] != "", "reason"])
    drawn = set(manifest.loc[_is_drawn(manifest), "id"])
    return {
        "house_style": house_style,
        "records": _count(house["split"]),
        "concepts": _count(house.drop_duplicates(["concept", "split"])["split"]),
        "other_records": _count(table.loc[table["style"] != house_style, "split"]),
        "later_categories": sorted(set(settings.splits.later_categories) - set(released)),
        "set_aside": dict(reasons.most_common()),
        "shares": shares_by_category(house[~house["id"].isin(drawn)], settings.splits),
    }


def shares_by_category(house: pd.DataFrame, settings: SplitSettings) -> dict[str, dict[str, Any]]:
    """How the concepts of each category fell.

    Args:
        house: rows of the table, real ones of the house style.
        settings: the shares asked for.

    Returns:
        For each category ``concepts``: their number without those that are kept back; the shares of "validation",
        "held_out" and "test" among them; and ``far_off``: splits whose count is more than three standard deviations of
        a binomial from what was asked for, in categories of 20 concepts or more.
    """
    parted = house[house["own_split"] != "later"].drop_duplicates(["category", "concept"])
    asked = {
        "validation": settings.validation_share,
        "held_out": settings.held_out_share,
        "test": settings.test_share,
    }
    found: dict[str, dict[str, Any]] = {}
    for category, members in parted.groupby("category"):
        number = len(members)
        counts = Counter(members["own_split"])
        far_off = [
            split
            for split, share in asked.items()
            if number >= SHARE_TOLD_FROM
            and abs(counts[split] - share * number) > _FAR_OFF * (number * share * (1 - share)) ** 0.5
        ]
        shares = {split: round(counts[split] / number, 3) for split in asked}
        found[str(category)] = {"concepts": number, **shares, "far_off": far_off}
    return found


def class_weights(rows: pd.DataFrame) -> pd.DataFrame:
    """Weights by which training draws every class equally often.

    Args:
        rows: what is trained on: ``category`` and ``variant``.

    Returns:
        pd.DataFrame: a row for each ``category``, sorted: ``pictures``; ``total``: their weights added up, 1 for a
        picture and :data:`VARIANT_WEIGHT` for a variant; ``share``: of what is drawn unbalanced; ``weight``: what a
        picture of the class is to be multiplied by for full balance, 1 on average over what is drawn unbalanced. With
        ``fine_tune.class_balance`` b it is ``weight ** b``, up to a common factor: the square root at 0.5 (Mahajan et
        al. 2018).
    """
    weight = pd.Series(np.where(rows["variant"].astype(bool), VARIANT_WEIGHT, 1.0), index=rows.index)
    by_class = weight.groupby(rows["category"]).agg(pictures="size", total="sum").reset_index()
    by_class["share"] = by_class["total"] / by_class["total"].sum()
    by_class["weight"] = 1 / (by_class["share"] * max(1, len(by_class)))
    return by_class


def training_rows(manifest: pd.DataFrame, table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The house style's records to train and validate with: the manifest's columns and ``split``.

    Pictures that came back as feedback and synthetic ones are drawings of a model: they are trained on only, never
    validated with, and left out when their caption is that of a concept that is not trained on. Feedback makes up at
    most ``monitoring.max_feedback_share`` of the training records, our own synthetic pictures at most
    ``synthetic.max_share``, the earliest first. What is set aside is in neither.

    Args:
        manifest: validated records.
        table: what :func:`split` wrote for this manifest.
        settings: house style and the caps.
    """
    house = manifest.merge(table[["id", "caption", "split"]], on=["id", "caption"])
    house = house[(house["style"] == settings.dataset.house_style) & (house["split"] != "set_aside")]
    drawn = _is_drawn(house)
    real = house[~drawn]
    withheld = real[real["split"] != "train"]
    unseen = {_said(caption, settings) for caption in [*withheld["caption"], *original_captions(withheld)]}
    repeated = np.array([_said(caption, settings) in unseen for caption in house["caption"]], dtype=bool)
    drawings = house[drawn & ~repeated].assign(split="train")
    fed_back, own = drawings["source"] == FEEDBACK_SOURCE, drawings["source"] == SYNTHETIC_SOURCE
    used = pd.concat([real[real["split"].isin(["train", "validation"])], drawings[~fed_back & ~own]])
    for capped, share in (
        (drawings[own], settings.synthetic.max_share),
        (drawings[fed_back], settings.monitoring.max_feedback_share),
    ):
        used = pd.concat([used, _within_share(capped, used, share)])
    return used.sort_values(["id", "caption"], ignore_index=True)


def _said(caption: str, settings: Settings) -> str:
    """What a caption says of the picture, whether or not it names the house style, as training's prompts do."""
    bare = without_style(caption, settings.fine_tune.prompt_template, settings.dataset.house_style)
    return normalised(" ".join(bare.split()))


def _within_share(drawings: pd.DataFrame, used: pd.DataFrame, share: float) -> pd.DataFrame:
    """The earliest of the drawings: as many as make up at most ``share`` of the training records they join."""
    # What is added spares a share such as 0.1 from losing a picture to rounding.
    room = int((used["split"] == "train").sum() * share / (1 - share) + 1e-9) if share < 1 else len(drawings)
    return drawings.sort_values(["added_at", "id"]).head(room)


def _bindings(
    table: pd.DataFrame, clusters: pd.DataFrame | None, pairs: pd.DataFrame | None
) -> Iterable[tuple[str, list[int]]]:
    """Rows that must not be in two splits, with what binds them, as the start of a reason."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    spoken: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (picture, caption, style) in enumerate(zip(table["id"], table["caption"], table["style"], strict=True)):
        rows_of[picture].append(row)
        spoken[normalised(caption), style].append(row)
    for members in rows_of.values():
        yield "the same picture", members
    for members in spoken.values():
        yield "the same caption in this style", members
    if clusters is not None:
        together: dict[str, list[int]] = defaultdict(list)
        for picture, name in zip(clusters["id"], clusters["cluster"], strict=True):
            together[name] += rows_of.get(picture, ())
        for members in together.values():
            yield "a near duplicate", members
    if pairs is not None:
        for one, other in zip(pairs["id"], pairs["other"], strict=True):
            yield "a near duplicate", [*rows_of.get(one, ()), *rows_of.get(other, ())]


def _keep_the_preferred(table: pd.DataFrame, clusters: pd.DataFrame, reasons: list[str], keep: str) -> None:
    """Of a cluster's training records in one style that are not set aside yet, leave the preferred one."""
    preference = dict(zip(clusters["id"], zip(clusters["cluster"], clusters["preference"], strict=True), strict=True))
    together: dict[tuple[str, str], list[tuple[int, str, int]]] = defaultdict(list)
    for row, (picture, style, split) in enumerate(zip(table["id"], table["style"], table["own_split"], strict=True)):
        if split == "train" and not reasons[row] and picture in preference:
            name, place = preference[picture]
            together[name, style].append((place, picture, row))
    for members in together.values():
        _, stays, _ = min(members)
        for _, picture, row in members:
            if picture != stays:
                reasons[row] = f"a near duplicate stays (curation.keep is {keep})"


def _is_drawn(records: pd.DataFrame) -> pd.Series:
    """Which records a model drew."""
    drawn = records["source"] == FEEDBACK_SOURCE
    return drawn | records["synthetic"].astype(bool) if "synthetic" in records else drawn


def _people_say(split: str) -> str:
    return split.replace("_", " ")


def _refuse_unusable(house: pd.DataFrame, manifest: pd.DataFrame, settings: Settings) -> None:
    style = settings.dataset.house_style
    rules = settings.splits
    if house.empty:
        styles = ", ".join(sorted(manifest["style"].unique())) or "none, for there are no records"
        raise ValueError(
            f"no record has the house style {style!r}; the styles present are: {styles}. "
            "Set dataset.house_style to one of them, or add pictures of that style"
        )
    concepts = house.drop_duplicates(["concept", "split"])
    counts = _count(concepts["split"])
    if not counts["train"]:
        mend = "add concepts"
        if counts["set_aside"]:
            why = Counter(house.loc[house["reason"] != "", "reason"]).most_common(1)[0]
            mend += f"; {counts['set_aside']} concepts are set aside, most because {why[0]}"
        if counts["later"]:
            kept_back = ", ".join(sorted(house.loc[house["split"] == "later", "category"].unique()))
            mend += f", or release a category that is kept back ({kept_back}), or shorten splits.later_categories"
        raise ValueError(
            f"no record of the house style {style!r} is left to train on (concepts by split: {counts}); {mend}"
        )
    if not counts["held_out"]:
        raise ValueError(
            f"no concept of the house style {style!r} is held out, so nothing could be evaluated: a share of "
            f"{rules.held_out_share} of {len(concepts) - counts['later']} concepts fell to none. "
            "Add more concepts, or raise splits.held_out_share"
        )


def _count(splits: Iterable[str]) -> dict[str, int]:
    """How often each split occurs; every split is named, in the order of :data:`SPLITS`."""
    counts = Counter(splits)
    return {name: counts[name] for name in SPLITS}
