"""Splits: which records are trained on, which are validated with, and which are never shown.

Belongs here: the decision by concept and its table. A concept's split is read off a keyed hash of its name and of
nothing else, so a record never moves as data grows, and every picture of a concept (its variants, all styles) shares
the decision. Whole categories of the house style can be kept back as a batch that arrives later; when they have
arrived is ``release``.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from genai_assets import durable
from genai_assets.datasets.records import FEEDBACK_SOURCE
from genai_assets.settings import Settings, SplitSettings

Split = Literal["train", "validation", "held_out", "later"]
SPLITS: tuple[Split, ...] = get_args(Split)

COLUMNS = ("id", "caption", "concept", "style", "category", "split")


def concept_position(concept: str, key: str) -> float:
    """Where a concept falls in [0, 1): uniform over concepts, the same for ever under one key.

    Keyed BLAKE2b (RFC 7693), its first 53 bits as a fraction. Spellings that differ by case, surrounding blanks or
    Unicode normal form are one concept.
    """
    name = unicodedata.normalize("NFC", concept.strip()).casefold()
    # BLAKE2's key holds 64 bytes at most; a setting may be longer.
    short_key = hashlib.blake2b(key.encode(), digest_size=64).digest()
    digest = hashlib.blake2b(name.encode(), key=short_key, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def concept_split(concept: str, settings: SplitSettings) -> Literal["train", "validation", "held_out"]:
    """The split of a concept, whatever its style and category: held out, then validation, else train."""
    position = concept_position(concept, settings.key)
    if position < settings.held_out_share:
        return "held_out"
    if position < settings.held_out_share + settings.validation_share:
        return "validation"
    return "train"


def assign_split(concept: str, category: str, settings: SplitSettings, released: Set[str]) -> Split:
    """The split of a *house-style* record.

    A category of ``settings.later_categories`` that is not among ``released`` is "later". Once it is released, its
    concepts go where their hash says, and stay there. A record of another style is never kept back: the base model has
    seen it anyway, so it takes :func:`concept_split`.
    """
    if category in settings.later_categories and category not in released:
        return "later"
    return concept_split(concept, settings)


def split(manifest: pd.DataFrame, settings: Settings, released: Set[str], out: Path) -> dict[str, Any]:
    """Assign every record of a manifest to a split and write ``out/splits.parquet``.

    The table has the columns of :data:`COLUMNS`, one row a record, sorted by id and caption.

    Args:
        manifest: validated records.
        settings: ``splits``, and ``dataset.house_style``.
        released: categories that have arrived, as of :func:`release.released_categories`.
        out: an existing folder to fill.

    Returns:
        ``house_style``; ``records``: house-style records by split; ``concepts``: house-style concepts by split;
        ``other_records``: records of the other styles by split; ``later_categories``: those still kept back.

    Raises:
        ValueError: there is no house-style record at all, none to train on, or no house-style concept is held out (few
            concepts: a hash promises shares, not counts). Nothing is written.
    """
    house_style = settings.dataset.house_style
    table = manifest.loc[:, list(COLUMNS[:-1])].copy()
    table["split"] = [
        assign_split(concept, category, settings.splits, released)
        if style == house_style
        else concept_split(concept, settings.splits)
        for concept, category, style in zip(table["concept"], table["category"], table["style"], strict=True)
    ]
    table = table.sort_values(["id", "caption"], ignore_index=True)
    house = table.loc[table["style"] == house_style, :]
    _refuse_unusable(house, manifest, settings)

    with durable.replacing(out / "splits.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    return {
        "house_style": house_style,
        "records": _count(house["split"]),
        "concepts": _count(house.drop_duplicates(["concept", "split"])["split"]),
        "other_records": _count(table.loc[table["style"] != house_style, "split"]),
        "later_categories": sorted(set(settings.splits.later_categories) - set(released)),
    }


def training_rows(manifest: pd.DataFrame, table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The house style's records to train and validate with: the manifest's columns and ``split``.

    Pictures that came back as feedback are drawings of a model: they are trained on only, never validated with, make up
    at most ``monitoring.max_feedback_share`` of the training records (the earliest first), and are left out when their
    caption is that of a held-out concept, which must stay unseen.

    Args:
        manifest: validated records.
        table: what :func:`split` wrote for this manifest.
        settings: house style and the cap.
    """
    house = manifest.merge(table[["id", "caption", "split"]], on=["id", "caption"])
    house = house[house["style"] == settings.dataset.house_style]
    drawn = house["source"] == FEEDBACK_SOURCE
    real = house[~drawn]
    used = real[real["split"].isin(["train", "validation"])]
    share = settings.monitoring.max_feedback_share
    count = int((used["split"] == "train").sum() * share / max(1e-9, 1 - share)) if share < 1 else int(drawn.sum())
    unseen = set(real.loc[real["split"].isin(["held_out", "later"]), "caption"].str.casefold())
    liked = house[drawn & ~house["caption"].str.casefold().isin(unseen)]
    liked = liked.sort_values(["added_at", "id"]).head(count).assign(split="train")
    return pd.concat([used, liked]).sort_values(["id", "caption"], ignore_index=True)


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
