"""``make bench-quality``: the goals of the embedded base, measured on the real example, in one table.

    python -m benchmarks.quality.goals                       five minutes of fine-tuning, about twelve in all
    python -m benchmarks.quality.goals --long --seeds 3      the 60-minute goals, too, each by three seeds
    python -m benchmarks.quality.goals --base FOLDER --sheet-only

Data, fine-tuning, drawing and figures are the graph's own stages with the settings in force, exactly as the demo has
them, but on every held-out concept. They work in a home of their own (``quality`` below the home), so the demo's
models stay the newest of theirs. What is finished is kept there: killed, the same command goes on.

Belongs here: the goals, how sure a figure is, and the table. How a figure is computed is ``genai_assets.evaluation``.

Intervals are 95 % intervals over the held-out concepts: with other concepts the figure would have been another. KID
has its own standard error (a bootstrap over pictures), R@1 a bootstrap over concepts, shares have Wilson's interval.
How far seeds lie apart stands beside it, for that is another doubt.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets import durable, stages, walkthrough
from genai_assets.artifacts import Artifact
from genai_assets.console import StageProgress, complain, explain, make_console, read_settings, say, table_of
from genai_assets.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

SHORT_MINUTES, LONG_MINUTES = 5.0, 60.0
SHARE_OF_BASE_KID = 0.5
STYLE_SHARE = 0.80
LONG_KID = 0.10
SHARE_OF_REAL_RECALL = 0.60
BASE_STYLES = ("noto", "twemoji", "firefox")
"""What the embedded base was trained on, as its card says and prompts name it."""
_PURPOSE = "The goals of the embedded base, measured on the real example, in one table."
_ALL = 1_000_000
_BOOTSTRAPS = 2000
_SURE = 1.96


@dataclass(frozen=True)
class Estimate:
    """A figure and what is known of its error.

    Attributes:
        value: the mean over seeds.
        low, high: 95 % interval over concepts.
        seeds: the figure of each seed.
    """

    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: in words.
        estimate: the figure.
        form: how numbers of it are written.
        goal: to be reached; None for a figure that is only shown.
        at_most: whether less is better.
        note: what the goal is made of.
    """

    what: str
    estimate: Estimate
    form: str = "{:.3f}"
    goal: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the figure reaches the goal; None when there is none."""
        if self.goal is None:
            return None
        return self.estimate.value <= self.goal if self.at_most else self.estimate.value >= self.goal

    @property
    def sure(self) -> bool:
        """Whether the goal lies outside of the interval."""
        return self.goal is None or not self.estimate.low <= self.goal <= self.estimate.high


@dataclass(frozen=True)
class Measured:
    """One fine-tuned model, as its evaluation has it.

    Attributes:
        minutes: budget of the fine-tune.
        seed: of the fine-tune.
        steps: optimizer steps that the budget bought.
        metrics: ``metrics.json``.
        concepts: ``pictures.parquet``: one row a model and concept.
    """

    minutes: float
    seed: int
    steps: int
    metrics: dict[str, Any]
    concepts: pd.DataFrame

    @classmethod
    def read(cls, minutes: float, seed: int, model: Artifact, report: Artifact) -> "Measured":
        """From the stages' artifacts."""
        concepts = pd.read_parquet(report.file("pictures.parquet"))
        return cls(minutes, seed, model.summary["steps"], stages.read_metrics(report), concepts)

    def of(self, name: str) -> dict[str, Any]:
        """The figures of a model: ``base``, ``fine_tuned`` or ``real``."""
        return self.metrics["models"][name]

    def found_first(self, name: str) -> np.ndarray:
        """For each concept, whether its picture found its own caption first, bool [N], in one order for all models."""
        own = self.concepts[self.concepts["model"] == name].sort_values("concept")
        return (own["rank"] == 1).to_numpy()


def kid_estimate(runs: Sequence[Measured], model: str) -> Estimate:
    """KID and its interval. The seeds' errors are taken for one and the same: they meet the same concepts."""
    values = [run.of(model)["kid"] for run in runs]
    value, error = statistics.mean(values), statistics.mean(run.of(model)["kid_standard_error"] for run in runs)
    return Estimate(value, value - _SURE * error, value + _SURE * error, tuple(values))


def share_estimate(runs: Sequence[Measured], model: str, key: str) -> Estimate:
    """A share of pictures with Wilson's interval (1927) for one seed's number of pictures."""
    values = [run.of(model)[key] for run in runs]
    value, count = statistics.mean(values), runs[0].metrics["pictures"]
    return Estimate(value, *wilson_interval(value, count), tuple(values))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share that was seen among ``count`` (Wilson 1927); it stays within [0, 1]."""
    square = _SURE**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _SURE * np.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def recall_estimate(runs: Sequence[Measured], model: str) -> Estimate:
    """R@1 over R@1 of the real pictures of the same concepts, with a bootstrap over concepts, drawn for both together.

    Raises:
        ValueError: no real picture found its caption: then nothing can be held against it.
    """
    real = runs[0].found_first("real")
    if not real.any():
        raise ValueError(
            "no real picture is read rightly by the agreement proxy, so R@1 has nothing to be held against"
        )
    drawn = np.stack([run.found_first(model) for run in runs])
    dice = np.random.default_rng(0)
    again = dice.integers(len(real), size=(_BOOTSTRAPS, len(real)))
    again = again[real[again].any(1)]
    ratios = drawn.mean(0)[again].mean(1) / real[again].mean(1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    each = tuple(float(one.mean() / real.mean()) for one in drawn)
    return Estimate(statistics.mean(each), float(low), float(high), each)


def goal_rows(runs: Sequence[Measured]) -> list[Row]:
    """The lines of the table: what the base and real pictures score, then goals by length of the fine-tune.

    The KID and style goals of five minutes are asked of the shortest fine-tune, those of an hour of one that is longer.

    Raises:
        ValueError: no runs; or one of a dataset with a single style, where there is no style test.
    """
    if not runs:
        raise ValueError("nothing was measured")
    if runs[0].of("real")["style_score"] is None:
        raise ValueError(
            "the dataset has one style only, so nothing tells the house style from others: add an icon set"
        )
    base, floor, real_style = kid_estimate(runs[:1], "base"), kid_estimate(runs[:1], "real"), runs[0].of("real")
    real_share = share_estimate(runs[:1], "real", "style_score")
    rows = [
        Row("real pictures: KID (the floor)", floor, note="to real ones of other concepts"),
        Row("real pictures: house style", real_share, "{:.0%}", note="share that a linear classifier calls so"),
        Row(
            "real pictures: R@1",
            share_estimate(runs[:1], "real", "recall_at_1"),
            "{:.0%}",
            note=f"of the agreement proxy; chance {runs[0].metrics['chance']['recall_at_1']:.1%}",
        ),
        Row("base: KID", base, note="asked for the house style"),
        Row("base: house style", share_estimate(runs[:1], "base", "style_score"), "{:.0%}"),
        Row("base: R@1 over real R@1", recall_estimate(runs[:1], "base"), "{:.0%}"),
    ]
    lengths = sorted({run.minutes for run in runs})
    for minutes in lengths:
        own = [run for run in runs if run.minutes == minutes]
        after = f"after {minutes:g} min"
        kid, style = kid_estimate(own, "fine_tuned"), share_estimate(own, "fine_tuned", "style_score")
        recall = recall_estimate(own, "fine_tuned")
        if minutes == lengths[0] and minutes < LONG_MINUTES:
            half = SHARE_OF_BASE_KID * base.value
            real = f"real ones {real_style['style_score']:.0%}"
            rows += [
                Row(f"{after}: KID", kid, goal=half, note=f"half the base's; it is {kid.value / base.value:.2f} of it"),
                Row(f"{after}: house style", style, "{:.0%}", STYLE_SHARE, at_most=False, note=real),
                Row(f"{after}: R@1 over real R@1", recall, "{:.0%}"),
            ]
        else:
            rows += [
                Row(f"{after}: KID", kid, goal=LONG_KID, note=f"the floor is {floor.value:.3f}"),
                Row(f"{after}: house style", style, "{:.0%}"),
                Row(
                    f"{after}: R@1 over real R@1",
                    recall,
                    "{:.0%}",
                    SHARE_OF_REAL_RECALL,
                    at_most=False,
                ),
            ]
    return rows


def cells(row: Row) -> list[str]:
    """What the table says of a line: the figure, its interval, the seeds' range, the goal, whether it is reached."""
    estimate, form = row.estimate, row.form.format
    spread = sorted(estimate.seeds)
    seeds = f"{form(spread[0])} to {form(spread[-1])}" if len(spread) > 1 else ""
    goal = "" if row.goal is None else f"{'≤' if row.at_most else '≥'} {form(row.goal)}"
    verdict = {None: "", True: "reached", False: "missed"}[row.reached]
    if verdict and not row.sure:
        verdict += ", not sure"
    interval = f"{form(estimate.low)} to {form(estimate.high)}"
    return [row.what, form(estimate.value), interval, seeds, goal, verdict, row.note]


COLUMNS = ("", "figure", "95 % interval", "seeds", "goal", "", "")


def table(rows: Sequence[Row], pictures: int) -> "Table":
    """For a terminal."""
    made = table_of(*COLUMNS, title=f"On {pictures} held-out concepts")
    made.columns[0].no_wrap = True
    made.columns[-1].justify, made.columns[-1].style = "left", "dim"
    colours = {None: "", True: "green", False: "red"}
    for row in rows:
        said = cells(row)
        said[5] = f"[{colours[row.reached]}]{said[5]}[/]" if said[5] else ""
        made.add_row(*said)
    return made


def markdown(rows: Sequence[Row]) -> str:
    """For a page of the docs."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def own_home(settings: Settings) -> Path:
    """A home below the home, which shares the downloaded packages with it."""
    home = settings.home / "quality"
    home.mkdir(parents=True, exist_ok=True)
    settings.paths.packages.mkdir(exist_ok=True)
    packages = home / "packages"
    if not packages.exists():
        packages.symlink_to(settings.paths.packages, target_is_directory=True)
    return home


def measure(
    settings: Settings, progress: StageProgress, lengths: Sequence[float], seeds: int
) -> tuple[list[Measured], list[Artifact]]:
    """Fine-tune for each length and seed, and evaluate on every held-out concept.

    Returns:
        tuple: what was measured, and the model of each length's first seed.
    """
    validated, features, split = walkthrough.prepare(settings, progress)
    runs, models = [], []
    for minutes in lengths:
        for number in range(seeds):
            seed = settings.fine_tune.seed + number
            say(progress.console, f"{minutes:g} minutes of fine-tuning, seed {seed}", "bold")
            wanted = settings.fine_tune.model_copy(update={"max_minutes": minutes, "seed": seed})
            own = settings.model_copy(update={"fine_tune": wanted})
            model, base = walkthrough.train(own, progress, validated, split)
            report = progress.stage("eval_report", _evaluation(own, progress, model, base, split, validated, features))
            runs.append(Measured.read(minutes, seed, model, report))
            if not number:
                models.append(model)
    return runs, models


def _evaluation(settings: Settings, progress: StageProgress, *artifacts: Artifact) -> Callable[[], Artifact]:
    return lambda: stages.eval_report(settings, *artifacts, on_progress=progress.on_progress)


def draw_sheets(settings: Settings, folder: Path, styles: Sequence[str], out: Path, name: str) -> list[Path]:
    """The sheets of one model: common things, and words that combine."""
    from benchmarks.quality import sheets
    from genai_assets.diffusion import sampling

    drawer = sampling.load(
        folder, device=settings.device, backend=settings.sampling.backend, cache=settings.paths.converted
    )
    places = []
    for what, captions in (("things", sheets.THINGS), ("combinations", sheets.COMBINATIONS)):
        places.append(out / f"{what}-{name}.png")
        sheets.draw_sheet(drawer, captions, styles, settings, places[-1])
    return places


def write_figures(rows: Sequence[Row], runs: Sequence[Measured], settings: Settings, out: Path) -> None:
    """``goals.md`` for pages, ``goals.json`` for programs."""
    durable.write_text(out / "goals.md", markdown(rows))
    facts = {
        "base_model": settings.base_model,
        "pictures": runs[0].metrics["pictures"],
        "sampling": settings.sampling.model_dump(mode="json"),
        "runs": [
            {"minutes": run.minutes, "seed": run.seed, "steps": run.steps, "models": run.metrics["models"]}
            for run in runs
        ],
        "rows": [asdict(row) | {"reached": row.reached} for row in rows],
    }
    durable.write_json(out / "goals.json", json.loads(json.dumps(facts)))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.goals", description=_PURPOSE)
    parser.add_argument("--base", type=Path, help="folder of the base model; else the base_model of the settings")
    parser.add_argument("--home", type=Path, help="home to work in; else `quality` below the home of the settings")
    parser.add_argument("--out", type=Path, help="where figures and sheets go; else `goals` below the home worked in")
    parser.add_argument("--minutes", type=float, default=SHORT_MINUTES, help="of the fine-tune")
    parser.add_argument("--long", action="store_true", help=f"fine-tune for {LONG_MINUTES:g} minutes as well")
    parser.add_argument("--seeds", type=int, default=1, help="fine-tunes of each length")
    parser.add_argument("--sheet-only", action="store_true", help="draw the base's sheets and measure nothing")
    asked = parser.parse_args(arguments)
    if asked.minutes <= 0 or asked.seeds < 1:
        parser.error("--minutes must be above 0, and --seeds at least 1")
    return asked


def run(asked: argparse.Namespace) -> None:
    """Measure and tell."""
    console = make_console()
    home = asked.home.absolute() if asked.home else own_home(read_settings())
    # Asked for here, so that what depends on the base, such as its steps of drawing, is as the graph has it.
    settings = Settings(home=home, base_model=str(asked.base.absolute())) if asked.base else Settings(home=home)
    changed: dict[str, Any] = {"evaluation": settings.evaluation.model_copy(update={"pictures": _ALL})}
    settings = settings.model_copy(update=changed)
    out = asked.out or home / "goals"
    out.mkdir(parents=True, exist_ok=True)
    say(console, f"Base model: {settings.base_model}. Everything lies in {home}; killed, this command goes on.")

    with StageProgress(console) as progress:
        base = progress.stage("base_model", lambda: stages.base_model(settings))
        with console.status("Drawing the base's sheets …"):
            drawn = draw_sheets(settings, base.path, BASE_STYLES, out, "base")
        if not asked.sheet_only:
            lengths: list[float] = sorted({asked.minutes, LONG_MINUTES} if asked.long else {asked.minutes})
            runs, models = measure(settings, progress, lengths, asked.seeds)
            for minutes, model in zip(lengths, models, strict=True):
                name = f"{minutes:g}min"
                drawn += draw_sheets(settings, model.path, [settings.dataset.house_style], out, name)
            rows = goal_rows(runs)
            write_figures(rows, runs, settings, out)
            console.print(table(rows, runs[0].metrics["pictures"]))
            bought = ", ".join(f"{run.steps:,} in {run.minutes:g} min (seed {run.seed})" for run in runs)
            say(console, f"Steps of {settings.fine_tune.batch_size} pictures: {bought}.")
            say(console, f"Figures: {out / 'goals.json'}; the table as Markdown: {out / 'goals.md'}")
    say(console, "Look at", "bold")
    for path in drawn:
        say(console, f"  {path}")
    say(
        console,
        "and count: what would someone who does not know the prompt call it? The goal is 9 of the 12 things in each "
        "style, and more than half of the combinations with colour and thing right.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; what a person can mend is told in words."""
    asked = parse(arguments)
    try:
        run(asked)
    except KeyboardInterrupt:
        complain("Interrupted. What was finished is kept; the same command goes on from there.", "yellow")
        return 130
    except (ValueError, OSError) as error:
        complain(explain(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
