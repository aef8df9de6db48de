"""KID of a distilled student beside its teacher's, for one, two and four steps, with and without a discriminator.

The teacher is drawn in as many steps as the settings say, and in 30: what a student of the usual kind replaces.

    python -m benchmarks.quality.few_steps      of the model that the settings fine-tune, four minutes each
    python -m benchmarks.quality.few_steps --minutes 1 2 4 --steps 1 2 4 --adversarial 0 0.5

The graph's own stages with the settings in force; what is finished is kept in the home and not made again. Fills the
figures of docs/distillation.md with ``--write``.

Belongs here: which students are compared, and the table. How a student is made is ``diffusion.distillation``.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.figures import write_between
from genai_assets import stages, walkthrough
from genai_assets.artifacts import Artifact
from genai_assets.console import StageProgress, make_console, read_settings, table_of
from genai_assets.settings import Settings

DOC = Path(__file__).parents[2] / "docs" / "distillation.md"
BEGIN, END = "<!-- figures of few_steps -->\n", "<!-- end of few_steps -->\n"


MANY_STEPS = 30
GOAL = 0.10
"""A student's KID may be higher than that of its teacher in many steps by this share of it. What the gate asks is
another thing: it compares with the teacher as it is drawn for people."""


@dataclass(frozen=True)
class Row:
    """One student beside its teacher.

    Attributes:
        minutes: budget of the distillation.
        steps: that the student draws in.
        adversarial: weight of the discriminator.
        learns: what the student learns, as ``distillation.levels.Way`` has it.
        teacher, student: figures of the evaluation.
    """

    minutes: float
    steps: int
    adversarial: float
    learns: str
    teacher: dict[str, Any]
    student: dict[str, Any]

    @property
    def loss(self) -> float:
        """By which share of the teacher's KID the student's is higher."""
        return self.above(self.teacher)

    def above(self, figures: dict[str, Any]) -> float:
        """By which share of another model's KID the student's is higher."""
        return self.student["kid"] / figures["kid"] - 1


def measure(settings: Settings, progress: StageProgress, minutes: float, steps: int, adversarial: float) -> Row:
    """Distil a student of the home's fine-tuned model, and evaluate both."""
    wanted = {"max_minutes": minutes, "drawing_steps": steps, "adversarial_weight": adversarial}
    own = settings.model_copy(update={"distillation": settings.distillation.model_copy(update=wanted)})
    student, figures = _evaluated(own, progress)
    return Row(minutes, steps, adversarial, student.summary["learns"], figures["fine_tuned"], figures[stages.FEW_STEPS])


def measure_many_steps(settings: Settings, progress: StageProgress) -> dict[str, Any]:
    """Figures of the teacher's pictures when it is drawn in many steps."""
    off = settings.distillation.model_copy(update={"max_minutes": None, "max_steps": 0})
    slowly = settings.sampling.model_copy(update={"steps": MANY_STEPS})
    _, figures = _evaluated(settings.model_copy(update={"distillation": off, "sampling": slowly}), progress)
    return figures["fine_tuned"]


def _evaluated(settings: Settings, progress: StageProgress) -> tuple[Artifact, dict[str, Any]]:
    """The student, or its teacher when distillation is off, and the figures of all that were evaluated."""
    validated, features, split = walkthrough.prepare(settings, progress)
    model, student, base = walkthrough.train_with_student(settings, progress, validated, split)
    report = progress.stage(
        "eval_report",
        lambda: stages.eval_report(
            settings, model, base, split, validated, features, distilled=student, on_progress=progress.on_progress
        ),
    )
    return student, stages.read_metrics(report)["models"]


def markdown(rows: Sequence[Row], many: dict[str, Any], settings: Settings) -> str:
    """The table as the docs have it; ``many`` are the figures of :func:`measure_many_steps`."""
    teacher = rows[0].teacher
    drawn = {MANY_STEPS: many, settings.sampling.steps: teacher}
    lines = [
        f"| | budget, minutes | KID | against {MANY_STEPS} steps | against the teacher | R@1 | style | ms a picture |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| teacher, {steps} steps, guidance {settings.sampling.guidance_scale:g} | – | "
        f"{figures['kid']:.3f} ± {figures['kid_standard_error']:.3f} | – | – | {_rest(figures)} |"
        for steps, figures in drawn.items()
    ]
    for row in rows:
        judged = f", discriminator {row.adversarial:g}" if row.adversarial else ""
        lines.append(
            f"| student of {row.learns}, {row.steps} step{'s' * (row.steps > 1)}{judged} | {row.minutes:g} | "
            f"{row.student['kid']:.3f} ± {row.student['kid_standard_error']:.3f} | "
            f"{row.above(many):+.0%} | {row.loss:+.0%} | "
            f"{_rest(row.student)} |"
        )
    return "\n".join(lines) + "\n"


def _rest(figures: dict[str, Any]) -> str:
    style = "–" if figures["style_score"] is None else f"{figures['style_score']:.0%}"
    return f"{figures['recall_at_1']:.2f} | {style} | {figures['latency_ms']:.0f}"


def write_figures(text: str, page: Path = DOC) -> None:
    """Put a table between the marks of a page.

    Raises:
        ValueError: the page has no marks.
    """
    write_between(page, BEGIN, END, text, what="figures")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0."""
    parser = argparse.ArgumentParser(description="KID of distilled students beside their teacher's.")
    parser.add_argument("--minutes", type=float, nargs="+", default=[4.0], help="budgets of the distillation")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], help="that students draw in, 1 to 4")
    parser.add_argument("--adversarial", type=float, nargs="+", default=[0.0], help="weights of the discriminator")
    parser.add_argument("--write", action="store_true", help="fill the figures of docs/distillation.md")
    asked = parser.parse_args(arguments)
    settings, console = read_settings(), make_console()
    rows = []
    with StageProgress(console) as progress:
        # First, for benchmarks.drawing_few_steps tells of the newest evaluation, which shall have a student.
        many = measure_many_steps(settings, progress)
        for minutes, steps, adversarial in itertools.product(asked.minutes, asked.steps, asked.adversarial):
            rows.append(measure(settings, progress, minutes, steps, adversarial))
    table = table_of(
        "", "minutes", "KID", "teacher's", "loss", f"against {MANY_STEPS} steps", title="Students beside their teacher"
    )
    for row in rows:
        judged = f", discriminator {row.adversarial:g}" if row.adversarial else ""
        figures = (f"{row.minutes:g}", f"{row.student['kid']:.4f}", f"{row.teacher['kid']:.4f}", f"{row.loss:+.1%}")
        table.add_row(f"{row.learns}, {row.steps} steps{judged}", *figures, f"{row.above(many):+.1%}")
    console.print(table)
    console.print(f"Goal: at most {GOAL:+.0%} against {MANY_STEPS} steps of the teacher with guidance.")
    if asked.write:
        write_figures(markdown(rows, many, settings))
        console.print(f"Written: {DOC}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
