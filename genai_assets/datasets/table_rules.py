"""Rules over a table of any size, all in one pass and in bounded memory.

Belongs here: a small closed set of rules, and their evaluation over a Parquet file or a frame by polars, a batch of
rows at a time. What is claimed of a manifest is ``expectations``; what follows from a broken claim is ``validation``.
What only Python can tell of a record (a picture's hash, a caption's language) is measured into a column before, so that
here everything is a column.

What is kept between batches: eight bytes a row for each rule on uniqueness, eight bytes for each unexpected row, and
the distinct values of columns whose shares are asked for. So memory is that of one batch, and hardly grows with the
rows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from genai_assets import durable

if TYPE_CHECKING:
    import polars as pl

RowRule = Literal[
    "not_null", "null", "unique", "between", "length_between", "in_set", "not_in_set", "matches", "matches_not"
]
TableRule = Literal["row_count", "columns", "max_share", "balance", "newest"]

BATCH_ROWS = 16_384
SAMPLE_SIZE = 5
ASPECT = "aspect"
"""A column every table with ``width`` and ``height`` has without storing it: longer side over shorter side."""

_WHITE_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())  # what str.strip takes away
_ROW = "row of the table"  # beside columns of any name
_DERIVED = {ASPECT: ("width", "height")}


@dataclass(frozen=True)
class Rule:
    """One thing that must hold of a table; ``kind`` says which fields count.

    Rules on rows pass over missing values (text that is blank is missing), but ``not_null``.

    Attributes:
        kind: ``not_null``, ``null``; ``unique`` (over all of ``columns`` together); ``between`` (a number or time in
            [``low``, ``high``]); ``length_between`` (characters); ``in_set``, ``not_in_set`` (of ``values``);
            ``matches``, ``matches_not`` (``pattern`` found anywhere in the text). Of the table as a whole:
            ``row_count`` in [``low``, ``high``]; ``columns`` exactly these; ``max_share``: no value of the column, or
            the one in ``values``, has a larger share of the rows with a value than ``high``; ``balance``: the most
            common value has at most ``high`` times the rows of the rarest; ``newest``: the latest time is not before
            ``low``.
        columns: which it is about; one, but for ``unique`` and ``columns``.
        low, high: bounds, inclusive; None: no bound.
        values: of a set.
        pattern: a regular expression of the syntax that Python and Rust share: no look-around, no back-references.
        fold_case: compare text with ``values`` without regard to case and surrounding blanks.
        several: ``max_share`` holds when there is one value only: then a share says nothing.
    """

    kind: RowRule | TableRule
    columns: tuple[str, ...] = ()
    low: Any = None
    high: Any = None
    values: tuple[Any, ...] = ()
    pattern: str = ""
    fold_case: bool = False
    several: bool = False

    @property
    def column(self) -> str:
        """The first column it is about; empty when it is about none."""
        return self.columns[0] if self.columns else ""

    @property
    def about_rows(self) -> bool:
        """Whether single rows can break it."""
        return self.kind not in ("row_count", "columns", "max_share", "balance", "newest")


@dataclass(frozen=True)
class Verdict:
    """How a rule fared.

    Attributes:
        success: whether it held.
        unexpected_count: rows that break it; for a rule on the table as a whole, 1 when it is broken.
        looked_at: rows that had a value to look at; all for ``not_null``.
        rows: int64, positions of the rows that break it, ascending.
        sample: up to five unexpected values as they came, or why it could not be tested.
        observed: the figure of a rule on the table as a whole.
    """

    success: bool
    unexpected_count: int = 0
    looked_at: int = 0
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    sample: tuple[Any, ...] = ()
    observed: Any = None


def evaluate(
    table: Path | pd.DataFrame, rules: Mapping[str, Rule], *, unexpected: Path | None = None
) -> dict[str, Verdict]:
    """Test every rule in one pass over a table.

    Only repeated values, when there are any, cost a second look at their columns: the pass compares 64-bit hashes, and
    what seems repeated is then compared for real.

    Args:
        table: a Parquet file, or a frame.
        rules: name to rule.
        unexpected: a Parquet file to write with one row for each rule and row that breaks it: ``claim``, ``id``,
            ``row`` (position in the table) and ``value`` (as text); all or nothing.

    Returns:
        name to verdict, in the order of ``rules``. A rule on a column that is not there, or of another type than it
        needs, is broken, and its sample says so: nothing that could not be tested passes.

    Raises:
        OSError, pyarrow.ArrowInvalid: the table cannot be read.
    """
    with ExitStack() as stack:
        written = stack.enter_context(durable.replacing(unexpected)) if unexpected else None
        writer = stack.enter_context(_Unexpected(written)) if written else None
        return _Pass(_opened(table), rules, writer).run()


def pattern_fault(pattern: str) -> str | None:
    """Why a pattern cannot be used in a rule; None when it can."""
    import re

    import polars as pl

    try:
        re.compile(pattern)
        pl.Series([""]).str.contains(pattern)
    except (re.error, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().splitlines()[-1]
        return f"{pattern!r} is no pattern that can be used (no look-around, no back-references): {reason}"
    return None


# --- tables, a batch at a time --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """What is read: its columns, and how to read some of them in batches."""

    columns: tuple[str, ...]
    source: Path | pd.DataFrame

    def batches(self, columns: Iterable[str]) -> Iterator["pl.DataFrame"]:
        wanted = [name for name in self.columns if name in set(columns)]
        if isinstance(self.source, pd.DataFrame):
            yield from _batches_of_frame(self.source, wanted)
        else:
            yield from _batches_of_file(self.source, wanted)


def _opened(table: Path | pd.DataFrame) -> _Table:
    if isinstance(table, pd.DataFrame):
        return _Table(tuple(str(name) for name in table.columns), table)
    import pyarrow.parquet as pq

    return _Table(tuple(pq.read_schema(table).names), table)


def _batches_of_file(path: Path, columns: list[str]) -> Iterator["pl.DataFrame"]:
    import polars as pl
    import pyarrow.parquet as pq

    # Buffered, not pre-fetched: a column of a large row group is then read piece by piece.
    with pq.ParquetFile(path, buffer_size=1 << 18, pre_buffer=False) as file:
        if not columns:
            yield from (pl.DataFrame({"": range(rows)}) for rows in [file.metadata.num_rows] if rows)
            return
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            yield pl.DataFrame(pl.from_arrow(batch))


def _batches_of_frame(frame: pd.DataFrame, columns: list[str]) -> Iterator["pl.DataFrame"]:
    import polars as pl

    for start in range(0, len(frame), BATCH_ROWS):
        part = frame.iloc[start : start + BATCH_ROWS]
        if columns:
            yield pl.DataFrame([_series(name, part[name]) for name in columns])
        else:
            yield pl.DataFrame({"": range(len(part))})


def _series(name: str, values: "pd.Series[Any]") -> "pl.Series":
    """A pandas column; one of mixed types becomes text, and rules on numbers then say so."""
    import polars as pl
    import pyarrow as pa

    try:
        return pl.Series(name, pl.from_pandas(values))
    except (pa.ArrowException, pl.exceptions.PolarsError, TypeError):
        texts = values.astype(str).where(values.notna(), None)
        return pl.Series(name, texts.tolist(), pl.String)


# --- one pass -------------------------------------------------------------------------------------------------------


class _Pass:
    """One evaluation: what is known after each batch, and the verdicts at the end."""

    def __init__(self, table: _Table, rules: Mapping[str, Rule], writer: "_Unexpected | None"):
        self._table, self._rules, self._writer = table, rules, writer
        available = {*table.columns, *(name for name, needs in _DERIVED.items() if set(needs) <= set(table.columns))}
        self._faults: dict[str, str] = {}
        for name, rule in rules.items():
            missing = [column for column in rule.columns if column not in available]
            if missing and rule.kind != "columns":
                self._faults[name] = f"the table has no column {', '.join(missing)}"
        used = {column for rule in rules.values() if rule.kind != "columns" for column in rule.columns}
        self._derived = [name for name in _DERIVED if name in used and name in available and name not in table.columns]
        self._read = (used & set(table.columns)) | {column for name in self._derived for column in _DERIVED[name]}
        if writer and "id" in table.columns:
            self._read.add("id")
        self._total = 0
        self._checked = False
        self._counts = dict.fromkeys(rules, 0)
        self._looked_at = dict.fromkeys(rules, 0)
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in rules}
        self._samples: dict[str, list[Any]] = {name: [] for name in rules}
        self._hashes: dict[str, list[np.ndarray]] = {name: [] for name in rules}
        self._values: dict[str, dict[Any, int]] = {name: {} for name in rules}
        self._newest: dict[str, Any] = {}

    def run(self) -> dict[str, Verdict]:
        for batch in self._table.batches(self._read):
            self._take(batch)
        return {name: self._verdict(name, rule) for name, rule in self._rules.items()}

    def _take(self, batch: "pl.DataFrame") -> None:
        batch = self._prepared(batch)
        if not self._checked:
            self._find_type_faults(batch)
            self._checked = True
        alive = {name: rule for name, rule in self._rules.items() if name not in self._faults}
        self._take_rows(batch, {name: rule for name, rule in alive.items() if rule.about_rows})
        for name, rule in alive.items():
            if rule.kind in ("max_share", "balance"):
                counts = self._values[name]
                for value, count in batch[rule.column].drop_nulls().value_counts().iter_rows():
                    counts[value] = counts.get(value, 0) + count
            elif rule.kind == "newest":
                newest = batch[rule.column].max()
                if newest is not None:
                    self._newest[name] = max(newest, self._newest.get(name, newest))
        self._total += batch.height

    def _prepared(self, batch: "pl.DataFrame") -> "pl.DataFrame":
        """Blank text and numbers that are none become missing; derived columns are added."""
        import polars as pl
        import polars.selectors as cs

        numbers = {rule.column for rule in self._rules.values() if rule.kind == "between"}
        untyped = [name for name, dtype in batch.schema.items() if dtype == pl.Null]
        batch = batch.with_columns(pl.col(name).cast(pl.Float64 if name in numbers else pl.String) for name in untyped)
        batch = batch.with_columns(
            pl.when(cs.string().str.strip_chars(_WHITE_SPACE) == "").then(None).otherwise(cs.string()).name.keep(),
            cs.float().fill_nan(None),
        )
        numeric = {name for name, dtype in batch.schema.items() if dtype.is_numeric()}
        if ASPECT in self._derived and numeric.issuperset(_DERIVED[ASPECT]):
            width, height = (pl.col(side).cast(pl.Float64) for side in _DERIVED[ASPECT])
            sides = pl.max_horizontal(width, height) / pl.min_horizontal(width, height)
            aspect = pl.when(width.is_not_null() & height.is_not_null()).then(sides).fill_nan(None)
            batch = batch.with_columns(aspect.alias(ASPECT))
        return batch

    def _find_type_faults(self, batch: "pl.DataFrame") -> None:
        for name, rule in self._rules.items():
            if name in self._faults or rule.kind in ("row_count", "columns"):
                continue
            if unfit := [column for column in rule.columns if column not in batch.columns]:
                self._faults[name] = f"the column {unfit[0]} cannot be derived: its columns are no numbers"
            elif fault := _type_fault(rule, batch):
                self._faults[name] = fault

    def _take_rows(self, batch: "pl.DataFrame", rules: Mapping[str, Rule]) -> None:
        import polars as pl

        unique = {name: rule for name, rule in rules.items() if rule.kind == "unique"}
        for name, rule in unique.items():
            some = pl.any_horizontal(pl.col(column).is_not_null() for column in rule.columns)
            hashed = batch.select(some.alias("some"), pl.struct(rule.columns).hash(0).alias("hash"))
            self._looked_at[name] += int(hashed["some"].sum())
            # Rows with nothing in any of the columns repeat nothing: each is given a number of its own.
            alone = pl.int_range(self._total, self._total + batch.height, dtype=pl.UInt64).hash(1)
            numbers = hashed.select(pl.when("some").then("hash").otherwise(alone)).to_series()
            self._hashes[name].append(numbers.to_numpy())
        others = {name: rule for name, rule in rules.items() if name not in unique}
        if not others:
            return
        broken = batch.select(_broken(rule).fill_null(False).alias(name) for name, rule in others.items())
        missing = batch.null_count().row(0, named=True)
        for (name, rule), count in zip(others.items(), broken.sum().row(0), strict=True):
            self._looked_at[name] += batch.height
            if rule.kind not in ("not_null", "null"):
                self._looked_at[name] -= missing[rule.column]
            if count:
                self._add_unexpected(name, rule, batch, broken[name].arg_true().to_numpy(), self._total)

    def _add_unexpected(
        self, name: str, rule: Rule, batch: "pl.DataFrame", places: np.ndarray, offset: int | np.ndarray
    ) -> None:
        """Note that the rows at ``places`` of a batch break a rule."""
        rows = places.astype(np.int64) + offset if isinstance(offset, int) else offset
        self._counts[name] += len(places)
        self._rows[name].append(rows)
        shown = rule.columns if rule.kind == "unique" else (rule.column,)
        room = SAMPLE_SIZE - len(self._samples[name])
        for values in batch[places[: max(room, 0)]].select(shown).iter_rows():
            self._samples[name].append(values[0] if len(shown) == 1 else dict(zip(shown, values, strict=True)))
        if self._writer:
            self._writer.write(name, batch[places], rows, shown)

    def _verdict(self, name: str, rule: Rule) -> Verdict:
        if fault := self._faults.get(name):
            return Verdict(False, 1, sample=(fault,))
        if rule.kind == "unique":
            self._find_repeated(name, rule)
        if rule.about_rows:
            rows = np.concatenate(self._rows[name]) if self._rows[name] else np.empty(0, np.int64)
            count = self._counts[name]
            return Verdict(not count, count, self._looked_at[name], rows, tuple(self._samples[name]))
        held, observed = self._judge_table(name, rule)
        return Verdict(held, int(not held), self._total, sample=() if held else (observed,), observed=observed)

    def _judge_table(self, name: str, rule: Rule) -> tuple[bool, Any]:
        """Whether a rule on the table as a whole held, and its figure."""
        if rule.kind == "columns":
            asked, there = set(rule.columns), set(self._table.columns)
            odd = {"missing": sorted(asked - there), "unknown": sorted(there - asked)}
            return asked == there, odd if asked != there else None
        if rule.kind == "row_count":
            return (rule.low or 0) <= self._total <= (math.inf if rule.high is None else rule.high), self._total
        if rule.kind == "newest":
            newest = self._newest.get(name)
            return newest is not None and newest >= rule.low, None if newest is None else newest.isoformat()
        figure = share_figure(rule, self._values[name])
        return figure <= rule.high, figure

    def _find_repeated(self, name: str, rule: Rule) -> None:
        """Rows whose values occur more than once; equal hashes are only a hint."""
        batches = self._hashes.pop(name)
        ordered = np.concatenate([*batches, np.empty(0, np.uint64)])
        ordered.sort()
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        if not len(repeated):
            return
        import polars as pl

        found, begun = [], 0
        needed = {"id", *rule.columns, *(side for name in rule.columns for side in _DERIVED.get(name, ()))} & self._read
        for batch, hashes in zip(self._table.batches(needed), batches, strict=True):
            places = np.searchsorted(repeated, hashes)
            suspected = np.flatnonzero(repeated[np.minimum(places, len(repeated) - 1)] == hashes)
            if len(suspected):
                rows = pl.Series("", suspected.astype(np.int64) + begun)
                few = self._prepared(batch)[suspected].with_columns(rows.alias(_ROW))
                # In Arrow's older form text is copied; as polars has it, a few rows would keep their whole batch.
                found.append(few.to_arrow(compat_level=pl.CompatLevel.oldest()))
            begun += batch.height
        suspects = pl.concat(pl.DataFrame(pl.from_arrow(few)) for few in found)
        really = suspects.filter(pl.struct(rule.columns).is_duplicated())
        self._add_unexpected(name, rule, really, np.arange(really.height), really[_ROW].to_numpy())


def share_figure(rule: Rule, counts: Mapping[Any, int]) -> float:
    """The figure that a rule on shares bounds from above.

    Args:
        rule: of the kind ``max_share`` or ``balance``.
        counts: value to the rows that have it.
    """
    if rule.kind == "balance":
        return float(max(counts.values()) / min(counts.values())) if counts else 1.0
    total = sum(counts.values())
    if not total or (rule.several and len(counts) < 2):
        return 0.0
    chosen = [counts.get(value, 0) for value in rule.values] if rule.values else list(counts.values())
    return float(max(chosen, default=0) / total)


def _broken(rule: Rule) -> "pl.Expr":
    """True where a row breaks the rule; null or false where it does not."""
    import polars as pl

    value = pl.col(rule.column)
    match rule.kind:
        case "not_null":
            return value.is_null()
        case "null":
            return value.is_not_null()
        case "between" | "length_between":
            value = value.str.len_chars() if rule.kind == "length_between" else value
            outside = [value < rule.low] if rule.low is not None else []
            outside += [value > rule.high] if rule.high is not None else []
            return pl.any_horizontal(outside)
        case "in_set" | "not_in_set":
            values = list(rule.values)
            if rule.fold_case:
                value = value.str.strip_chars(_WHITE_SPACE).str.to_lowercase()
                values = [folded(other) for other in values]
            inside = value.is_in(values)
            return ~inside if rule.kind == "in_set" else inside
        case "matches":
            return ~value.str.contains(rule.pattern)
        case "matches_not":
            return value.str.contains(rule.pattern)
        case _:
            raise AssertionError(rule.kind)


def folded(text: str) -> str:
    """Text as ``fold_case`` compares it."""
    return text.strip().lower()


def _type_fault(rule: Rule, batch: "pl.DataFrame") -> str | None:
    """Why a rule cannot be tested on columns of these types; tried on no rows."""
    import polars as pl

    try:
        if rule.kind == "unique":
            batch.clear().select(pl.struct(rule.columns).hash(0))
        elif rule.kind == "newest":
            batch.clear().select(pl.col(rule.column) >= rule.low)
        elif rule.about_rows:
            batch.clear().select(_broken(rule))
    except pl.exceptions.PolarsError as error:
        kinds = ", ".join(f"{column} is {batch.schema[column]}" for column in rule.columns)
        return f"the rule {rule.kind} cannot be tested, {kinds}: {str(error).splitlines()[0]}"
    return None


class _Unexpected:
    """Writes unexpected rows as they are found, so that they need not fit into memory as text."""

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = pa.string()
        self._schema = pa.schema([("claim", text), ("id", text), ("row", pa.int64()), ("value", text)])
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, claim: str, rows: "pl.DataFrame", positions: np.ndarray, columns: tuple[str, ...]) -> None:
        import polars as pl

        ids = pl.col("id").cast(pl.String) if "id" in rows.columns else pl.lit(None, pl.String)
        values = [pl.col(column).cast(pl.String) for column in columns]
        value = values[0] if len(values) == 1 else pl.concat_str(values, separator=" · ", ignore_nulls=True)
        table = rows.select(
            pl.lit(claim).alias("claim"), ids.alias("id"), pl.Series("row", positions), value.alias("value")
        )
        self._writer.write_table(table.to_arrow().cast(self._schema))

    def __enter__(self) -> "_Unexpected":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
