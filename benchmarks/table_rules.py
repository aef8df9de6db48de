"""Every table rule over a million records: one streamed pass against Great Expectations on pandas.

Both begin with the same Parquet file with planted defects and end with verdicts, counts and the rows that break each
claim, which are compared. They take turns, each in a process of its own, so that peak memory is theirs alone; imports
are not timed. The one pass is also run on a tenth of the records: its peak memory must hardly grow.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from genai_assets.datasets.expectations import (
    CAPTION_PROBLEMS,
    NEAR_DUPLICATE,
    ask_great_expectations,
    claims_of,
    found_by,
    judge_claims,
)
from genai_assets.settings import Settings

RECORDS = 1_000_000
DEFECTS = 1_000  # of each kind
TURNS = 2
GOAL = 15.0
TODAY = datetime(2026, 1, 8, tzinfo=UTC)


def main(arguments: Sequence[str] = ()) -> None:
    """Measure and print the result as JSON; with arguments, be one of the measured processes."""
    if arguments:
        return _measured(arguments[0], Path(arguments[1]))
    with tempfile.TemporaryDirectory() as folder:
        million, tenth = Path(folder, "million.parquet"), Path(folder, "tenth.parquet")
        _write_manifest(million, RECORDS)
        _write_manifest(tenth, RECORDS // 10)
        found: dict[str, list[dict]] = {"ours": [_run("ours", million)], "peer": []}
        for _ in range(TURNS):
            found["peer"].append(_run("peer", million))
            found["ours"].append(_run("ours", million))
        small = _run("ours", tenth)
    verdicts = {json.dumps(run["verdicts"]) for runs in found.values() for run in runs}
    assert len(verdicts) == 1, "the engines do not agree"
    seconds = {who: statistics.median(run["seconds"] for run in runs) for who, runs in found.items()}
    memory = statistics.median(run["peak_mib"] for run in found["ours"])
    theirs = statistics.median(run["peak_mib"] for run in found["peer"])
    failed = sum(not verdict[1] for verdict in found["ours"][0]["verdicts"])
    result = {
        "name": "records validated by all table rules, a second",
        "ours": round(RECORDS / seconds["ours"]),
        "peer": round(RECORDS / seconds["peer"]),
        "ratio": round(seconds["peer"] / seconds["ours"], 1),
        "goal": GOAL,
        "quality": (
            f"same verdicts, counts and rows for {len(found['ours'][0]['verdicts'])} claims, {failed} of them broken; "
            f"peak memory {small['peak_mib']:.0f} MiB at 100,000 records, {memory:.0f} MiB at 1,000,000 "
            f"(the peer {theirs:.0f} MiB)"
        ),
        "peak_mib": {"ours at 100,000": small["peak_mib"], "ours at 1,000,000": memory, "peer": theirs},
    }
    print(json.dumps(result))


def _run(who: str, manifest: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.table_rules", who, str(manifest)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _measured(who: str, manifest: Path) -> None:
    readiness = {"max_age_days": 7, "max_class_imbalance": 2.0}
    claims = claims_of(Settings.model_validate({"home": manifest.parent, "readiness": readiness}), today=TODAY)
    few = next(pq.ParquetFile(manifest).iter_batches(5)).to_pandas()  # what is imported on first use is no one's time
    judge_claims(few, claims) if who == "ours" else ask_great_expectations(few, claims)
    begun = time.perf_counter()
    if who == "ours":
        results = judge_claims(manifest, claims)
    else:
        results = ask_great_expectations(pd.read_parquet(manifest), claims)
    seconds = time.perf_counter() - begun
    verdicts = [
        [result.name, result.success, result.unexpected_count, hash(result.unexpected_rows)] for result in results
    ]
    print(json.dumps({"seconds": seconds, "peak_mib": _peak_mib(), "verdicts": verdicts}))


def _peak_mib() -> float:
    """Of this process alone; ``getrusage`` would count the process it was started from, too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def _write_manifest(path: Path, count: int) -> None:
    """Records that are good but for planted defects, with the columns that are measured before."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "id": [f"{high:016x}" * 4 for high in draw.integers(0, 2**63, count)],
            "caption": [f"a drawn thing with the number {number}" for number in range(count)],
            "concept": [f"concept {number % 5_000}" for number in range(count)],
            "style": draw.choice(["fluent", "noto", "twemoji"], count),
            "source": draw.choice(["icons:a", "icons:b", "icons:c"], count),
            "licence": draw.choice(["MIT", "mit", "Apache-2.0", "CC-BY-4.0"], count),
            "width": draw.integers(128, 512, count),
            "height": draw.integers(128, 512, count),
            "added_at": pd.Timestamp(TODAY - timedelta(days=1)),
            "category": draw.choice(["objects", "symbols", "animals", "food"], count, p=[0.55, 0.15, 0.15, 0.15]),
            "variant": False,
            "synthetic": draw.random(count) < 0.1,
            "opt_out": "",
            "provenance": '{"author": "somebody", "file": "icons.json", "package": "a-package", "version": "1.0.0"}',
            NEAR_DUPLICATE: draw.random(count) < 0.1,
            **{found_by(name): None for name in CAPTION_PROBLEMS},
        }
    )
    frame["keywords"] = [["one", "two"]] * count
    planted = iter(draw.permutation(count).reshape(-1, DEFECTS))
    for column, value in {
        "id": "no hash",
        "caption": " ",
        "concept": "",
        "licence": "GPL-3.0-only",
        "width": 16,
        "opt_out": "noai sidecar",
        found_by("captions_are_readable"): "mojibake: something",
    }.items():
        frame.loc[next(planted), column] = value
    frame.loc[next(planted), ["id", "caption"]] = frame.loc[next(planted), ["id", "caption"]].to_numpy()
    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    for name in CAPTION_PROBLEMS:
        place = schema.get_field_index(found_by(name))
        schema = schema.set(place, pa.field(found_by(name), pa.string()))
    pq.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False), path)


if __name__ == "__main__":
    main(sys.argv[1:])
