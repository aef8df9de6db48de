"""Near duplicates: which pictures are the same picture once more, by what evidence, and which of them stays.

Belongs here: pairs of near hashes and near vectors, the colours that confirm a pair, groups of bounded diameter made of
pairs, and the clusters of a manifest. How a hash is computed is ``examination``, how a vector is computed
``evaluation.features``; what a cluster means for training and testing is ``splits``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets import durable

if TYPE_CHECKING:
    from PIL import Image

    from genai_assets.settings import CurationSettings

HASH_BITS = 64
CELLS = 16
"""Cells a side in which the colours of two pictures are compared."""

PAIR_COLUMNS = ("id", "other", "by", "bits", "feature_distance", "colour_difference")
CLUSTER_COLUMNS = ("id", "cluster", "kept", "preference", "by", "distance")

_PARTS = 4  # of a hash, 16 bits each
_PART_BITS = HASH_BITS // _PARTS
_LEAST_BITS = 8
_MOST_EQUAL = 64
_CANDIDATES_AT_ONCE = 1 << 22  # pairs compared at a time: some 100 MB
_VECTORS_AT_ONCE = 1024
_PAIRS_COMPARED_AT_ONCE = 8192

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Places of the first and of the second picture of each pair, int64 [P], the first the smaller; and their distances."""


def perceptual_groups(hashes: Mapping[str, str], max_distance: int) -> list[tuple[str, ...]]:
    """Groups of pictures whose perceptual hashes are near.

    Each group is a star: its first picture is within ``max_distance`` bits of every other, so no two differ by more
    than twice that. Chains are cut: joining whatever is near something that is near would make one group of everything
    between two unlike pictures. In return two near pictures may be in different groups, each with a centre of its own;
    :func:`near_hashes` has every pair. Hashes of nearly blank pictures, which are alike whatever the pictures show, are
    grouped only with their equals.

    Args:
        hashes: picture id to its hash, 16 hexadecimal digits.
        max_distance: bits, 0 to 64.

    Returns:
        Groups of two or more ids, the centre first, the others sorted; the largest group first. A picture is in one
        group at most. The same for any order of ``hashes``.

    Raises:
        ValueError: a hash is not 16 hexadecimal digits, or the distance is out of range.
    """
    ids = sorted(hashes)
    first, second, _ = near_hashes([hashes[picture] for picture in ids], max_distance)
    return [tuple(ids[place] for place in star) for star in stars(len(ids), first, second)]


def near_hashes(hashes: Sequence[str], max_distance: int) -> Pairs:
    """Every pair of hashes that differ in at most ``max_distance`` bits.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012, "Fast search in Hamming space with multi-index hashing"): of
    four parts of two hashes that differ in d bits, one differs in at most d // 4, so only hashes with such a part in
    common are compared. Equal hashes are looked up once.

    Two bounds keep masses of like hashes from making pairs without end. Of more than 64 equal hashes, the further ones
    are paired with the first alone. And a hash with fewer than 8 bits set, or unset, tells only that there is next to
    nothing to see: it is paired with its equals alone.

    Returns:
        :data:`Pairs`, sorted; distances in bits, int64.

    Raises:
        ValueError: a hash is not 16 hexadecimal digits, or the distance is out of range.
    """
    if not 0 <= max_distance <= HASH_BITS:
        raise ValueError(f"hashes differ in 0 to {HASH_BITS} bits; {max_distance} is out of range")
    values, number, count = np.unique(_as_numbers(hashes), return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")  # pictures by hash, equal ones in their order
    begin = np.cumsum(count) - count
    capped = np.minimum(count, _MOST_EQUAL)

    position = np.arange(len(order))
    value = number[order]
    within = position < (begin + capped)[value]
    found = [
        (one, other, np.zeros(len(one), np.int64))
        for one, other in _ranges(position + 1, np.where(within, (begin + capped)[value], 0))
    ]
    found.append((begin[value[~within]], position[~within], np.zeros(int((~within).sum()), np.int64)))

    ones = np.bitwise_count(values)
    telling = np.flatnonzero((ones >= _LEAST_BITS) & (ones <= HASH_BITS - _LEAST_BITS))
    for one, other, distance in _near_values(values[telling], max_distance):
        x, y = telling[one], telling[other]
        for row, pair in _ranges(np.zeros(len(x), np.int64), capped[x] * capped[y]):
            width = capped[y[row]]
            found.append((begin[x[row]] + pair // width, begin[y[row]] + pair % width, distance[row]))

    one, other, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    first, second = np.sort(np.stack([order[one], order[other]]), axis=0)
    by_place = np.lexsort((second, first))
    return first[by_place], second[by_place], distance[by_place]


def near_vectors(vectors: np.ndarray, max_distance: float) -> Pairs:
    """Every pair of vectors whose cosine distance is at most ``max_distance``, by blocks of one matrix product.

    Exact. It takes N² / 2 products: a second for 7,000 vectors, a few minutes for 100,000.

    Args:
        vectors: float [N, D]; a zero vector is near nothing.
        max_distance: 0 (same direction) to 2.

    Returns:
        :data:`Pairs`, sorted; distances float32.
    """
    length = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    unit = vectors.astype(np.float32) / np.where(length > 0, length, np.inf)
    found: list[Pairs] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    for start in range(0, len(unit), _VECTORS_AT_ONCE):
        block = unit[start : start + _VECTORS_AT_ONCE]
        distance = 1 - block @ unit[start:].T
        first, second = np.nonzero(distance <= max_distance)
        ahead = first < second
        first, second = first[ahead], second[ahead]
        found.append((first + start, second + start, np.maximum(distance[first, second], 0)))
    first, second, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    return first, second, distance


def colour_grid(image: "Image.Image") -> np.ndarray:
    """Mean colours of an RGB picture in 16 x 16 cells: uint8 [16, 16, 3]."""
    from PIL import Image

    # Hamming: as sharp as a box, but a cell's edge that falls within a pixel gives each side its part of it.
    return np.asarray(image.resize((CELLS, CELLS), Image.Resampling.HAMMING), dtype=np.uint8)


def colour_differences(grids: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How much the cell that differs most differs between two pictures: levels of 255, mean of the channels, float [P].

    Hashes and features of a drawing and of the same drawing with another skin, mouth or clock hand are nearer than
    those of a picture and its JPEG; the one cell in which they differ tells them apart.

    Args:
        grids: uint8 [N, 16, 16, 3] of :func:`colour_grid`.
        first, second: places in ``grids``, int [P].
    """
    differences = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_COMPARED_AT_ONCE):
        part = slice(start, start + _PAIRS_COMPARED_AT_ONCE)
        apart = np.abs(grids[first[part]].astype(np.int16) - grids[second[part]])
        differences[part] = apart.mean(axis=3).max(axis=(1, 2))
    return differences


def near_pairs(
    hashes: Mapping[str, str],
    vectors: Mapping[str, np.ndarray] | tuple[Sequence[str], np.ndarray],
    grids: Callable[[Sequence[str]], np.ndarray],
    rules: "CurationSettings",
) -> pd.DataFrame:
    """Every two pictures that are near duplicates of each other.

    Near in perceptual hash ("perceptual") or in features ("features"), and of the same colours everywhere.

    Args:
        hashes: picture id to perceptual hash; a picture without one is left out of that comparison.
        vectors: ids and their vectors, float [N, D]; or id to vector.
        grids: gives :func:`colour_grid` of some ids, uint8 [len(ids), 16, 16, 3]; asked for candidates only.
        rules: the thresholds.

    Returns:
        pd.DataFrame: :data:`PAIR_COLUMNS`, sorted: ``id`` < ``other``; ``by``: "perceptual" or, where the hashes are
        not near, "features"; ``bits`` and ``feature_distance``: what was near, NaN what was not.
    """
    hashed = sorted(hashes)
    first, second, bits = near_hashes([hashes[picture] for picture in hashed], rules.max_hash_distance)
    by_hash = _named(hashed, first, second, bits=bits.astype(np.float64))
    ids, values = (list(vectors), np.stack(list(vectors.values()))) if isinstance(vectors, Mapping) else vectors
    first, second, distance = near_vectors(values, rules.max_feature_distance)
    by_features = _named(ids, first, second, feature_distance=distance.astype(np.float64))
    pairs = by_hash.merge(by_features, on=["id", "other"], how="outer")

    asked = sorted(set(pairs["id"]) | set(pairs["other"]))
    place = {picture: number for number, picture in enumerate(asked)}
    pairs["colour_difference"] = colour_differences(
        grids(asked) if asked else np.empty((0, CELLS, CELLS, 3), np.uint8),
        pairs["id"].map(place).to_numpy(np.int64),
        pairs["other"].map(place).to_numpy(np.int64),
    )
    pairs = pairs[pairs["colour_difference"] <= rules.max_colour_difference].copy()
    pairs["by"] = np.where(pairs["bits"].notna(), "perceptual", "features")
    return pairs[list(PAIR_COLUMNS)].sort_values(["id", "other"], ignore_index=True)


def cluster(manifest: pd.DataFrame, pairs: pd.DataFrame, keep: str) -> pd.DataFrame:
    """Clusters of a manifest's pictures: stars of near duplicates, and pictures that several records share.

    Args:
        manifest: records; ids that ``pairs`` names and no record has are passed over (removed pictures).
        pairs: as of :func:`near_pairs`.
        keep: "all"; or which one of a cluster stays: "first" to arrive, "largest", or "real_before_synthetic" (then the
            first to arrive).

    Returns:
        pd.DataFrame: :data:`CLUSTER_COLUMNS`, a row for each picture in a cluster, sorted by cluster, preference and
        id. ``cluster``: the id of its centre; ``by`` and ``distance``: of the pair with the centre, in bits or cosine
        distance; for the centre itself "content" and 0. ``preference``: 0 stays first, all 0 with "all"; ``kept``:
        whether it is 0.
    """
    ids = sorted(set(manifest["id"]))
    place = {picture: number for number, picture in enumerate(ids)}
    pairs = pairs[pairs["id"].isin(place) & pairs["other"].isin(place)]
    evidence = {
        (one, other): (by, bits if by == "perceptual" else distance)
        for one, other, by, bits, distance in pairs[list(PAIR_COLUMNS[:5])].itertuples(index=False)
    }
    groups = stars(len(ids), pairs["id"].map(place).to_numpy(np.int64), pairs["other"].map(place).to_numpy(np.int64))
    rows: list[tuple[str, str, str, float]] = []
    for centre, *members in groups:
        rows.append((ids[centre], ids[centre], "content", 0.0))
        for member in members:
            by, distance = evidence[ids[min(centre, member)], ids[max(centre, member)]]
            rows.append((ids[member], ids[centre], by, distance))
    clustered = {row[0] for row in rows}
    counts = manifest["id"].value_counts()
    shared = sorted(set(counts[counts > 1].index) - clustered)
    rows += [(picture, picture, "content", 0.0) for picture in shared]
    table = pd.DataFrame(rows, columns=["id", "cluster", "by", "distance"])
    table["preference"] = _preference(table, manifest, keep)
    table["kept"] = table["preference"] == 0
    return table[list(CLUSTER_COLUMNS)].sort_values(["cluster", "preference", "id"], ignore_index=True)


def find_duplicates(
    manifest: pd.DataFrame,
    hashes: Mapping[str, str],
    vectors: tuple[Sequence[str], np.ndarray],
    grids: Callable[[Sequence[str]], np.ndarray],
    rules: "CurationSettings",
    out: Path,
) -> dict[str, Any]:
    """Make the ``duplicate_clusters`` artifact: ``out/pairs.parquet`` and ``out/clusters.parquet``.

    Args:
        manifest: validated records.
        hashes, vectors, grids, rules: as of :func:`near_pairs`.
        out: an existing folder to fill.

    Returns:
        ``pictures``; ``clusters``; ``pictures_in_clusters``; ``largest``; ``shared_by_records``: pictures that several
        records have; ``pairs`` by evidence; ``not_kept``: pictures the policy sets aside; ``keep``: the policy.
    """
    pairs = near_pairs(hashes, vectors, grids, rules)
    clusters = cluster(manifest, pairs, rules.keep)
    for name, table in (("pairs", pairs), ("clusters", clusters)):
        with durable.replacing(out / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    sizes = clusters.groupby("cluster").size()
    return {
        "pictures": int(manifest["id"].nunique()),
        "clusters": len(sizes),
        "pictures_in_clusters": len(clusters),
        "largest": int(sizes.max()) if len(sizes) else 0,
        "shared_by_records": int((manifest["id"].value_counts() > 1).sum()),
        "pairs": {name: int((pairs["by"] == name).sum()) for name in ("perceptual", "features")},
        "not_kept": int((~clusters["kept"]).sum()),
        "keep": rules.keep,
    }


@dataclass(frozen=True)
class Member:
    """A picture of a cluster, as people are shown it.

    Attributes:
        id, caption, style: of its first record.
        split: of that record, empty when there are no splits.
        joined: why it is in the cluster, in words.
        kept: whether the policy lets it stay.
    """

    id: str
    caption: str
    style: str
    split: str
    joined: str
    kept: bool


def cluster_groups(
    manifest: pd.DataFrame, clusters: pd.DataFrame, splits: pd.DataFrame | None = None, *, count: int = 50
) -> list[list[Member]]:
    """The clusters with what people want to know of each picture: the largest cluster first, its centre first.

    Args:
        manifest: records; pictures that no record has (removed since) are left out.
        clusters: as of :func:`cluster`.
        splits: the table of splits.
        count: at most so many clusters.
    """
    first = manifest.drop_duplicates("id").set_index("id")
    split = {} if splits is None else dict(zip(splits["id"], splits["split"], strict=True))
    records = manifest["id"].value_counts()
    groups: list[list[Member]] = []
    for name, members in clusters[clusters["id"].isin(first.index)].groupby("cluster"):
        order = members.assign(far=members["id"] != name).sort_values(["far", "preference", "distance", "id"])
        groups.append(
            [
                Member(
                    picture,
                    str(first.at[picture, "caption"]),
                    str(first.at[picture, "style"]),
                    str(split.get(picture, "")).replace("_", " "),
                    _joined(by, distance, int(records[picture])),
                    kept,
                )
                for picture, by, distance, kept in order[["id", "by", "distance", "kept"]].itertuples(index=False)
            ]
        )
    return sorted(groups, key=lambda group: (-len(group), group[0].id))[:count]


def _joined(by: str, distance: float, records: int) -> str:
    if by == "content":
        return f"{records} records share it" if records > 1 else "centre of the cluster"
    return f"hash: {distance:.0f} bits" if by == "perceptual" else f"features: {distance:.4f}"


def _named(ids: Sequence[str], first: np.ndarray, second: np.ndarray, **values: np.ndarray) -> pd.DataFrame:
    """Pairs by id, the smaller id first."""
    names = np.array(ids, dtype=object)
    one, other = names[first], names[second]
    swapped = one > other
    return pd.DataFrame({"id": np.where(swapped, other, one), "other": np.where(swapped, one, other), **values})


def _preference(table: pd.DataFrame, manifest: pd.DataFrame, keep: str) -> np.ndarray:
    """For each row its place in its cluster by the policy."""
    if keep == "all" or table.empty:
        return np.zeros(len(table), np.int64)
    facts = manifest.assign(area=manifest["width"] * manifest["height"])
    facts = facts.groupby("id").agg(added_at=("added_at", "min"), area=("area", "max"), synthetic=("synthetic", "max"))
    order = table[["id", "cluster"]].join(facts, on="id")
    by = {
        "first": ["added_at", "id"],
        "largest": ["area", "added_at", "id"],
        "real_before_synthetic": ["synthetic", "added_at", "id"],
    }[keep]
    order = order.sort_values(by, ascending=[name != "area" for name in by])
    return order.groupby("cluster").cumcount().reindex(table.index).to_numpy(np.int64)


def stars(count: int, first: np.ndarray, second: np.ndarray) -> list[list[int]]:
    """Groups of 0 … ``count`` − 1 made of pairs: a centre, and all its partners that no earlier centre took.

    Whoever has most partners is centre first, then the smaller number. (Greedy star clustering, as of Aslam, Pelekhov
    and Rus 2004, with each member in one star.) Every member is thereby a partner of its centre.

    Returns:
        Stars of two or more, the centre first, the others sorted; the largest star first.
    """
    both = np.concatenate([first, second])
    partners = np.concatenate([second, first])[np.argsort(both, kind="stable")]
    degree = np.bincount(both, minlength=count)
    ends = np.cumsum(degree)
    taken = np.zeros(count, bool)
    found: list[list[int]] = []
    for centre in np.lexsort((np.arange(count), -degree)).tolist():
        if degree[centre] == 0:
            break
        if taken[centre]:
            continue
        own = partners[ends[centre] - degree[centre] : ends[centre]]
        free = np.unique(own[~taken[own]])
        if len(free):
            taken[free] = taken[centre] = True
            found.append([centre, *free.tolist()])
    return sorted(found, key=lambda star: (-len(star), star))


def _as_numbers(hashes: Sequence[str]) -> np.ndarray:
    """Hashes as uint64 [N]."""
    numbers = np.empty(len(hashes), np.uint64)
    for place, text in enumerate(hashes):
        try:
            if len(text) != HASH_BITS // 4:
                raise ValueError
            numbers[place] = int.from_bytes(bytes.fromhex(text), "big")
        except ValueError:
            raise ValueError(
                f"{text!r} is no perceptual hash: those have {HASH_BITS // 4} hexadecimal digits"
            ) from None
    return numbers


def _near_values(values: np.ndarray, max_distance: int) -> Iterator[Pairs]:
    """Each pair of near values once; values are distinct and sorted."""
    # Norouzi's sharper bound: with d = 4 r + a, one of the first a + 1 parts differs in at most r bits, or one of the
    # others in at most r - 1.
    radius, rest = divmod(max_distance, _PARTS)
    parts = [
        ((values >> np.uint64(_PART_BITS * number)) & np.uint64(0xFFFF)).astype(np.int64) for number in range(_PARTS)
    ]
    reach = [radius if number <= rest else radius - 1 for number in range(_PARTS)]
    if sum(2.0**-_PART_BITS * len(_masks(within)) for within in reach) >= 1:
        # So wide a net catches everything in any case.
        parts, reach = [np.zeros(len(values), np.int64)], [0]
    for number, (part, within) in enumerate(zip(parts, reach, strict=True)):
        order = np.argsort(part, kind="stable")
        starts = np.searchsorted(part[order], np.arange((1 << _PART_BITS) + 1))
        for mask in _masks(within):
            wanted = part ^ mask
            low, high = starts[wanted], starts[wanted + 1]
            for one, place in _ranges(low, high):
                other = order[place]
                ahead = one < other
                one, other = one[ahead], other[ahead]
                distance = np.bitwise_count(values[one] ^ values[other]).astype(np.int64)
                near = distance <= max_distance
                one, other, distance = one[near], other[near], distance[near]
                # A pair that an earlier part has found is not told again.
                fresh = np.ones(len(one), bool)
                for earlier in range(number):
                    apart = np.bitwise_count(parts[earlier][one] ^ parts[earlier][other])
                    fresh &= apart > reach[earlier]
                if fresh.any():
                    yield one[fresh], other[fresh], distance[fresh]


def _masks(within: int) -> list[int]:
    """All 16-bit numbers with at most ``within`` bits set; none when it is negative."""
    every = np.arange(1 << _PART_BITS)
    return every[np.bitwise_count(every) <= within].tolist() if within >= 0 else []


def _ranges(low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each row r the pairs (r, low[r]) … (r, high[r] − 1), a bounded number of them at a time."""
    length = np.maximum(high - low, 0)
    ends = np.cumsum(length)
    start = 0
    while start < len(length):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CANDIDATES_AT_ONCE, side="right")))
        size = length[start:stop]
        rows = np.repeat(np.arange(start, stop), size)
        offset = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
        yield rows, low[rows] + offset
        start = stop
