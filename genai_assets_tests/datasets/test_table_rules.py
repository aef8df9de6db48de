"""Rules over tables: the same verdicts from a file or a frame, whatever the batches, and nothing untested passes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from genai_assets.datasets import table_rules
from genai_assets.datasets.table_rules import ASPECT, Rule, Verdict, evaluate, pattern_fault

RULES = {
    "count": Rule("row_count", low=3, high=8),
    "columns": Rule("columns", ("id", "text", "number", "flag")),
    "present": Rule("not_null", ("text",)),
    "absent": Rule("null", ("text",)),
    "unique": Rule("unique", ("text",)),
    "together": Rule("unique", ("id", "text")),
    "between": Rule("between", ("number",), low=0, high=5),
    "length": Rule("length_between", ("text",), low=1, high=3),
    "in": Rule("in_set", ("text",), values=("a", "B"), fold_case=True),
    "out": Rule("not_in_set", ("text",), values=("a",)),
    "matches": Rule("matches", ("text",), pattern="^[a-z]+$"),
    "matches not": Rule("matches_not", ("text",), pattern="b"),
    "share": Rule("max_share", ("text",), high=0.5),
    "true": Rule("max_share", ("flag",), high=0.5, values=(True,)),
    "balance": Rule("balance", ("text",), high=2.0),
}


def plain(verdicts: dict[str, Verdict]) -> dict[str, Any]:
    return {
        name: (one.success, one.unexpected_count, one.looked_at, one.rows.tolist(), one.observed)
        for name, one in verdicts.items()
    }


def in_pandas(frame: pd.DataFrame) -> dict[str, list[int]]:
    """What the rules on rows mean, written out row by row."""
    texts = [text if isinstance(text, str) and text.strip() else None for text in frame["text"]]
    pairs = list(zip(frame["id"], texts, strict=True))
    numbers = [None if pd.isna(number) else number for number in frame["number"]]
    told = [(place, text) for place, text in enumerate(texts) if text is not None]
    return {
        "present": [place for place, text in enumerate(texts) if text is None],
        "absent": [place for place, _ in told],
        "unique": [place for place, text in told if texts.count(text) > 1],
        "together": [place for place, pair in enumerate(pairs) if pairs.count(pair) > 1],
        "between": [place for place, number in enumerate(numbers) if number is not None and not 0 <= number <= 5],
        "length": [place for place, text in told if not 1 <= len(text) <= 3],
        "in": [place for place, text in told if text.strip().lower() not in ("a", "b")],
        "out": [place for place, text in told if text == "a"],
        "matches": [place for place, text in told if not (text.isalpha() and text.isascii() and text.islower())],
        "matches not": [place for place, text in told if "b" in text],
    }


ROWS = st.tuples(
    st.sampled_from(["x", "y"]),
    st.sampled_from([None, "", " \x1c", "a", "A ", "b", "abab", "ä", "a\n"]),
    st.sampled_from([None, -1.0, 0.0, 5.0, 5.5, float("inf")]),
    st.booleans(),
)


@given(rows=st.lists(ROWS, max_size=10), batch=st.integers(1, 4))
@hypothesis_settings(max_examples=60, deadline=None)
def test_a_rule_means_the_same_in_a_file_in_a_frame_and_in_any_batches(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple], batch: int
) -> None:
    frame = pd.DataFrame(rows, columns=["id", "text", "number", "flag"]).astype({"number": float, "flag": bool})
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    types = {"id": pa.string(), "text": pa.string(), "number": pa.float64(), "flag": pa.bool_()}
    pq.write_table(pa.Table.from_pandas(frame, pa.schema(list(types.items())), preserve_index=False), path)
    whole = evaluate(frame, RULES)
    usual = table_rules.BATCH_ROWS
    table_rules.BATCH_ROWS = batch
    try:
        assert plain(whole) == plain(evaluate(frame, RULES)) == plain(evaluate(path, RULES))
    finally:
        table_rules.BATCH_ROWS = usual
    assert {name: whole[name].rows.tolist() for name in in_pandas(frame)} == in_pandas(frame)
    assert whole["count"].success == (3 <= len(frame) <= 8)
    assert whole["columns"].success
    texts = frame["text"].dropna()[frame["text"].dropna().str.strip() != ""].value_counts()
    assert whole["share"].success == (not len(texts) or texts.max() <= texts.sum() / 2)
    assert whole["balance"].success == (not len(texts) or texts.max() <= 2 * texts.min())
    assert whole["true"].success == (frame["flag"].sum() <= len(frame) / 2)


def test_every_unexpected_row_is_listed_with_its_id_and_value(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["p", "q", "r", "s"], "text": ["a", "b", "a", " "], "number": [1, 9, 1, 1]})
    rules = {
        "present": Rule("not_null", ("text",)),
        "small": Rule("between", ("number",), high=5),
        "distinct": Rule("unique", ("text", "number")),
        "counted": Rule("row_count", low=9),
    }
    evaluate(frame, rules, unexpected=tmp_path / "unexpected.parquet")
    listed = pd.read_parquet(tmp_path / "unexpected.parquet").astype(object)
    listed = listed.where(listed.notna(), None).sort_values(["claim", "row"])
    assert listed.to_numpy().tolist() == [
        ["distinct", "p", 0, "a · 1"],
        ["distinct", "r", 2, "a · 1"],
        ["present", "s", 3, None],
        ["small", "q", 1, "9"],
    ]


def test_equal_hashes_are_only_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    real = table_rules._Pass._take_rows

    def colliding(self: Any, batch: Any, rules: Any) -> None:
        real(self, batch, rules)
        self._hashes["distinct"] = [np.zeros(batch.height, np.uint64)]

    monkeypatch.setattr(table_rules._Pass, "_take_rows", colliding)
    frame = pd.DataFrame({"id": list("pqrs"), "text": ["a", "b", "a", "c"]})
    assert evaluate(frame, {"distinct": Rule("unique", ("text",))})["distinct"].rows.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule("not_null", ("nowhere",)), "no column nowhere"),
        (Rule("between", ("text",), low=1), "cannot be tested, text is String"),
        (Rule("matches", ("number",), pattern="a"), "cannot be tested, number is Int64"),
        (Rule("between", ("mixed",), low=1), "cannot be tested, mixed is String"),
        (Rule("between", (ASPECT,), high=4), "no column aspect"),
    ],
)
def test_what_cannot_be_tested_does_not_pass(rule: Rule, said: str) -> None:
    frame = pd.DataFrame({"text": ["a"] * 3, "number": [1, 2, 3], "mixed": [1, "two", None]})
    verdict = evaluate(frame, {"rule": rule})["rule"]
    assert not verdict.success and verdict.unexpected_count == 1
    assert said in verdict.sample[0]


def test_the_aspect_is_known_of_every_table_with_sides() -> None:
    frame = pd.DataFrame({"width": [100, 10, 50, 0], "height": [100, 50, 10, 10]})
    assert evaluate(frame, {"aspect": Rule("between", (ASPECT,), high=4.0)})["aspect"].rows.tolist() == [1, 2, 3]


def test_the_newest_time_counts_and_none_is_not_new() -> None:
    day = pd.Timestamp("2026-01-02", tz="UTC")
    frame = pd.DataFrame({"at": [day - pd.Timedelta(days=1), day]})
    rule = {"fresh": Rule("newest", ("at",), low=day.to_pydatetime())}
    assert evaluate(frame, rule)["fresh"].success
    assert not evaluate(frame.iloc[:1], rule)["fresh"].success
    assert not evaluate(frame.iloc[:0], rule)["fresh"].success


@pytest.mark.parametrize("pattern", ["(?<=a)b", r"(a)\1", "("])
def test_a_pattern_that_the_engines_do_not_share_is_refused(pattern: str) -> None:
    assert pattern in (pattern_fault(pattern) or "").replace("\\\\", "\\")
    assert pattern_fault("(?i)^acme$") is None


# getrusage would tell of our parent, too.
_MEASURE = """
import re, sys
from pathlib import Path
from genai_assets.datasets.table_rules import Rule, evaluate
rules = {"distinct": Rule("unique", ("id", "caption")), "hash": Rule("matches", ("id",), pattern="^[0-9a-f]{64}$")}
assert all(verdict.success for verdict in evaluate(Path(sys.argv[1]), rules).values())
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell peak memory")
def test_peak_memory_hardly_grows_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for rows in (50_000, 500_000):
        ids = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(rows)]
        captions = [f"a thing with the number {row}" for row in range(rows)]
        pq.write_table(pa.table({"id": ids, "caption": captions}), tmp_path / "table.parquet")
        command = [sys.executable, "-c", _MEASURE, str(tmp_path / "table.parquet")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.5 * peaks[0]
