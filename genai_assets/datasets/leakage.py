"""The claim that nothing leaks from one split into another, tested on the finished table.

Belongs here: a test that shares no code with ``splits``, which assigns, so that a mistake there is found here. It looks
at what was written and at nothing that was meant.
"""

from dataclasses import dataclass

import pandas as pd

_PARTED = ("train", "validation", "held_out", "test")
_IDS_TOLD = 10


@dataclass(frozen=True)
class Leak:
    """Something that two splits have in common.

    Attributes:
        kind: "picture", "concept", "caption" or "near duplicate".
        what: the picture's id, the concept, the caption with its style, or the cluster.
        splits: where it is, sorted.
        ids: pictures concerned, sorted; at most ten.
    """

    kind: str
    what: str
    splits: tuple[str, ...]
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.what} is in {' and '.join(self.splits)}"


def find_leaks(
    table: pd.DataFrame, clusters: pd.DataFrame | None = None, pairs: pd.DataFrame | None = None
) -> list[Leak]:
    """Everything that two of train, validation, held_out and test have in common; empty when all is well.

    Nothing may be in two of them: the same picture; the same concept in any spelling and style; the same caption in the
    same style; two near duplicates, whether one cluster has them or they are a pair that no cluster joined.

    Args:
        table: ``id``, ``caption``, ``concept``, ``style``, ``split``.
        clusters: ``id``, ``cluster``.
        pairs: ``id``, ``other``.
    """
    rows = table[table["split"].isin(_PARTED)]
    leaks = [
        *_in_two(rows, "picture", rows["id"]),
        *_in_two(rows, "concept", _plain(rows["concept"])),
        *_in_two(rows, "caption", _plain(rows["caption"]) + " (" + rows["style"].astype(str) + ")"),
    ]
    if clusters is not None:
        cluster = dict(zip(clusters["id"], clusters["cluster"], strict=True))
        leaks += _in_two(rows, "near duplicate", rows["id"].map(cluster))
    if pairs is not None:
        where = rows.groupby("id")["split"].agg(set).to_dict()
        for one, other in zip(pairs["id"], pairs["other"], strict=True):
            both = where.get(one, set()) | where.get(other, set())
            if one in where and other in where and len(both) > 1:
                what = f"{one[:12]} of {other[:12]}"
                leaks.append(Leak("near duplicate", what, tuple(sorted(both)), (one, other)))
    return leaks


def _plain(names: pd.Series) -> pd.Series:
    return names.astype(str).str.strip().str.normalize("NFC").str.casefold()


def _in_two(rows: pd.DataFrame, kind: str, by: pd.Series) -> list[Leak]:
    """Leaks of one kind; rows of which ``by`` is not known are in no group."""
    known = by.notna()
    names, splits = by[known], rows.loc[known, "split"]
    in_splits = splits.groupby(names).nunique()
    return [
        Leak(
            kind,
            str(name),
            tuple(sorted(set(splits[names == name]))),
            tuple(sorted(set(rows.loc[names.index[names == name], "id"]))[:_IDS_TOLD]),
        )
        for name in in_splits.index[in_splits > 1]
    ]
