"""Run every benchmark, one after the other, and print one table.

Belongs here: finding and running benchmarks, and the table. What is measured is in the modules beside this one.
``python -m benchmarks.run`` runs all, ``python -m benchmarks.run picture_store`` the named ones.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
_TIME_LIMIT_SECONDS = 900


class BenchmarkBroken(RuntimeError):
    """A benchmark did not end with its result; the message shows its last words."""


@dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        name: what is counted, with its unit.
        ours: the project's figure.
        peer: the peer's figure.
        ratio: how many times better ours is; None where what was measured does not tell.
        goal: the ratio to reach.
        quality: how it was seen that both did the same work.
    """

    name: str
    ours: float
    peer: float
    ratio: float | None
    goal: float
    quality: str

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where that is not told."""
        return None if self.ratio is None else self.ratio >= self.goal


def find_benchmarks(folder: Path = FOLDER) -> list[str]:
    """Names of the benchmarks in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("run", "__init__"))


def run_benchmark(name: str, folder: Path = FOLDER) -> Result:
    """Run one benchmark in a process of its own.

    Raises:
        BenchmarkBroken: it failed, took longer than 15 minutes, or its last line is not a result.
    """
    command = [sys.executable, "-m", f"{folder.name}.{name}"]
    try:
        done = subprocess.run(
            command, cwd=folder.parent, env=os.environ, capture_output=True, text=True, timeout=_TIME_LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkBroken(f"{name} took longer than {_TIME_LIMIT_SECONDS // 60} minutes") from error
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode:
        raise BenchmarkBroken(f"{name} ended with status {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    try:
        found = json.loads(last)
        return Result(**{field.name: found[field.name] for field in fields(Result)})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BenchmarkBroken(f"{name} ended with {last[:200]!r}, which is no result ({error!r})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, or all; return 1 when one broke (a missed goal is shown, not an error)."""
    console = Console()
    known = find_benchmarks()
    names = list(sys.argv[1:] if arguments is None else arguments) or known
    if unknown := [name for name in names if name not in known]:
        console.print(f"There is no benchmark {', '.join(unknown)}; there are: {', '.join(known)}")
        return 1
    table = Table("benchmark", "what", "ours", "peer", "ratio", "goal", "", "quality", box=None, pad_edge=False)
    broken = 0
    for number, name in enumerate(names, 1):
        begun = time.monotonic()
        console.print(f"[{number}/{len(names)}] {name} …", end=" ", markup=False)
        try:
            result = run_benchmark(name)
        except BenchmarkBroken as failure:
            broken += 1
            console.print("broken", failure, sep="\n", markup=False)
            continue
        console.print(f"{time.monotonic() - begun:.0f} s")
        verdict = {True: "[green]reached[/]", False: "[red]missed[/]", None: "undecided"}[result.reached]
        figures = (f"{value:,.4g}" for value in (result.ours, result.peer))
        ratios = ("" if value is None else f"{value:.3g}×" for value in (result.ratio, result.goal))
        table.add_row(name, result.name, *figures, *ratios, verdict, result.quality)
    if table.row_count:
        console.print(table)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
