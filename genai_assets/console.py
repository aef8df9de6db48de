"""Words, tables and progress for people at a terminal, shared by all commands.

Belongs here: how something is told. What is told belongs to the command. Nothing heavy is imported before it is needed.
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table
    from rich.text import Text

    from genai_assets.artifacts import Artifact
    from genai_assets.diffusion.training import StepReport
    from genai_assets.settings import Settings


class StageProgress:
    """Progress of stages on a console: a bar for what is being done, a line for what is done.

    A context manager. Hand ``on_progress`` and ``on_step`` to stages; run each by :meth:`stage`. Where the console is
    no terminal (a log file), there are only the lines.

    Args:
        console: where to print.
    """

    def __init__(self, console: "Console"):
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = console
        self._bars: dict[str, TaskID] = {}
        self._validation = ""  # of the last step that validated
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[detail]}", style="dim"),
            TimeElapsedColumn(),
            TextColumn("left:", style="dim"),
            TimeRemainingColumn(),
            console=console,
            transient=True,  # the line of the finished stage stays, its bars do not
            refresh_per_second=4,  # the cores are for training
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, name: str, make: "Callable[[], Artifact]") -> "Artifact":
        """Make an artifact; tell how long it took, or that nothing had changed."""
        started = time.monotonic()
        self._bar(name, 0, 0)
        try:
            made = make()
        finally:
            self._clear()
        took, told = "nothing changed", describe_summary(made.kind, made.summary)
        if not made.reused:
            took = f"{time.monotonic() - started:.1f} s"
            told = ", ".join(filter(None, [told, describe_summary(made.kind, made.summary, _TOLD_OF_A_BATCH)]))
        say(self.console, f"  {name:<23}{took:>15}   {told}")
        return made

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Move the bar of ``what``; with ``total`` 0 the end is not known."""
        self._bar(what, done, total, f"{done:,} of {total:,}" if total else f"{done:,}")

    def on_step(self, report: "StepReport") -> None:
        """Move the bar of a training by a ``StepReport``; what people should know of it gets a line."""
        if report.note:
            say(self.console, report.note, "yellow")
        detail = f"loss {report.loss:.3f}  {report.pictures_per_second:.0f} pictures/s"
        if report.validation_loss is not None:
            self._validation = f"  validation {report.validation_loss:.3f}"
        self._bar(
            "training", report.step, report.steps, f"{report.step:,} of {report.steps:,}", detail + self._validation
        )

    def _bar(self, what: str, done: int, total: int, count: str = "", detail: str = "") -> None:
        shown = {"completed": done, "total": total or None, "count": count, "detail": detail}
        if what in self._bars:
            self._progress.update(self._bars[what], **shown)
        else:
            self._bars[what] = self._progress.add_task(what, **shown)

    def _clear(self) -> None:
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()
        self._validation = ""


def explain(error: BaseException) -> str:
    """What went wrong, for the person who can mend it."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        lines = [f"{error.error_count()} wrong in {error.title}:"]
        for fault in error.errors(include_url=False):
            place = ".".join(str(part) for part in fault["loc"]) or "as a whole"
            given = "" if isinstance(fault["input"], dict) else f" (it is {fault['input']!r})"
            lines.append(f"  {place}: {fault['msg']}{given}")
        if error.title == "Settings":
            lines.append("Settings come from GENAI_… variables and genai.toml; see `genai settings`.")
        return "\n".join(lines)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def figures_table(result: Mapping[str, Any]) -> "Table":
    """The figures of an evaluation, one column a model, as the report has them."""
    from genai_assets.evaluation.report import FIGURES

    models: Mapping[str, Mapping[str, Any]] = result["models"]
    table = table_of("", *models, title=f"On {result['pictures']} held-out concepts")
    for figure in FIGURES:
        values = [of.get(figure.key) for of in models.values()]
        if any(value is not None for value in values):
            better = f" ({figure.better} is better)" if figure.better else ""
            table.add_row(
                figure.name + better, *("–" if value is None else figure.form.format(value) for value in values)
            )
    return table


def describe_step(report: "StepReport", batch_size: int) -> str:
    """One line for a step of a training with so many pictures a step."""
    from datetime import timedelta

    speed = report.pictures_per_second
    left = timedelta(seconds=round((report.steps - report.step) * batch_size / max(speed, 1e-9)))
    validation = "" if report.validation_loss is None else f"validation {report.validation_loss:.4f}  "
    return (
        f"step {report.step:,} of {report.steps:,}  loss {report.loss:.4f}  {validation}{speed:.1f} pictures/s  "
        f"{left} left"
    )


_TOLD = {
    "raw_data": ("records", "concepts", "refusals"),
    "validated_data": ("kept", "quarantined"),
    "image_features": ("pictures", "captions"),
    "duplicate_clusters": ("clusters", "pictures_in_clusters"),
    "splits": ("records",),
    "data_readiness_report": ("verdict",),
    "dataset_card": ("records",),
    "base_model": ("family", "parameters"),
    "fine_tuned_autoencoder": ("family",),
    "training_cache": ("pictures", "prompts"),
    "hyperparameter_study": ("trials", "pruned", "failed", "current_validation_loss", "best_validation_loss"),
    "fine_tuned_model": ("model_version", "steps", "best_step", "validation_loss"),
    "distilled_model": ("model_version", "drawing_steps", "trajectories", "steps"),
    "eval_report": ("model_version", "pictures"),
}
_TOLD_OF_A_BATCH = {"raw_data": ("added", "changed", "removed")}


def describe_summary(kind: str, summary: Mapping[str, Any], figures: Mapping[str, tuple[str, ...]] = _TOLD) -> str:
    """What a person wants to know of a finished stage, in one line; ``figures`` says which figures of which kind."""

    def told(name: str, value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(told(part, count) for part, count in value.items())
        label = "" if isinstance(value, str) else f" {name.replace('_', ' ')}"
        return f"{value:,.4g}{label}" if isinstance(value, float) else f"{value:,}{label}" if label else str(value)

    return ", ".join(told(name, summary[name]) for name in figures.get(kind, ()) if summary.get(name) is not None)


def complain(text: str, style: str = "red") -> None:
    """Print an error."""
    from rich.console import Console

    Console(stderr=True).print(styled(text, style), soft_wrap=True)


def read_settings() -> "Settings":
    """The settings in force."""
    from genai_assets.settings import Settings

    return Settings()  # pyright: ignore[reportCallIssue] - defaults


def make_console() -> "Console":
    """A console for standard output."""
    from rich.console import Console

    return Console()


def say(console: "Console", text: str, style: str = "") -> None:
    """Print a line as it is: brackets are no markup, and a path is not broken."""
    console.print(styled(text, style), soft_wrap=True)


def styled(text: str, style: str = "") -> "Text":
    """Text as it is, without markup."""
    from rich.text import Text

    return Text(text, style=style)


def table_of(*columns: str, title: str | None = None) -> "Table":
    """A table of names and numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def table_of_counts(what: str, counts: "Mapping[str, int] | pd.Series") -> "Table":
    """A table of names and how many records each has."""
    table = table_of(what, "records")
    for name, count in counts.items():
        table.add_row(str(name), f"{count:,}")
    return table
