"""The command line, ``genai``: everything the graph does, without Dagster.

Belongs here: arguments, progress and words for people. What is done is in the rooms and in ``stages``; this module only
calls it. Nothing heavy is imported before a command needs it, so that ``genai --help`` answers at once.

A mistake the user can mend (a wrong setting, a missing file) is told in one message without a traceback, with exit
status 2; ``genai --traceback …`` or ``GENAI_TRACEBACK=1`` shows where it came from.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table
    from rich.text import Text

    from genai_assets.artifacts import Artifact
    from genai_assets.diffusion.config import DenoiserConfig
    from genai_assets.diffusion.training import StepReport
    from genai_assets.serving.generator import ModelFacts
    from genai_assets.settings import Settings

TRACEBACK_VARIABLE = "GENAI_TRACEBACK"
USER_ERROR = 2
INTERRUPTED = 130


class _Genai(TyperGroup):
    """The commands, with errors told as people can use them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _complain("Interrupted. What was finished is kept; the same command goes on from there.", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if not _is_for_users(error) or ctx.params.get("traceback"):
                raise
            _complain(explain(error))
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    name="genai",
    cls=_Genai,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A team's image model as one asset graph: pictures in, a model trained, measured, served and watched.",
)
data = typer.Typer(no_args_is_help=True, help="Look at the data, and release what was kept back.")
_EVERYDAY, _STEPS = "Everyday", "Steps, without Dagster"
app.add_typer(data, name="data", rich_help_panel=_STEPS)


@app.callback()
def main(
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar=TRACEBACK_VARIABLE, help="Show where an error came from.")
    ] = False,
) -> None:
    """Settings come from GENAI_… variables and genai.toml; `genai settings` shows them."""


@app.command(rich_help_panel=_EVERYDAY)
def demo() -> None:
    """Run the whole graph on real pictures, then say what came out and what to open."""
    from genai_assets.demo import run_demo

    raise typer.Exit(run_demo(_settings(), _console()))


@app.command(rich_help_panel=_EVERYDAY)
def up() -> None:
    """Run Dagster, the image service and MLflow on this machine until Ctrl-C."""
    from genai_assets.up import run_up

    raise typer.Exit(run_up(_settings(), _console()))


@app.command(rich_help_panel=_EVERYDAY)
def doctor() -> None:
    """Look at what is installed, which device there is, what is missing and how to mend it."""
    from rich.table import Table

    from genai_assets import up
    from genai_assets.doctor import diagnose

    settings, console = _settings(), _console()
    ports = {"Dagster": up.DAGSTER_PORT, "service": settings.serving.port, "MLflow": up.MLFLOW_PORT}
    with console.status("Looking …"):
        findings = diagnose(settings, ports=ports)
    colours = {"ok": "green", "warning": "yellow", "missing": "red"}
    table = Table(header_style="bold")
    for column in ("", "what", "found", "to mend it"):
        table.add_column(column, overflow="fold")  # a path is of no use with its end cut off
    for finding in findings:
        cells = (_text(cell) for cell in (finding.name, finding.detail, finding.mend))
        table.add_row(_text(finding.status, colours[finding.status]), *cells)
    console.print(table)
    if missing := [finding.name for finding in findings if finding.status == "missing"]:
        _say(console, f"Missing: {', '.join(missing)}.", "red")
        raise typer.Exit(1)
    _say(console, "Everything needed is there.", "green")


@app.command(rich_help_panel=_EVERYDAY)
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, for example “a red fox”.")],
    out: Annotated[Path | None, typer.Option(help="PNG file; with several pictures they are numbered.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=64, help="How many pictures.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first picture; any when not given.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=200, help="Denoising steps; else sampling.steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1, max=20, help="Guidance scale; else sampling.guidance_scale.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder; else the champion, the newest, the base.")] = None,
) -> None:
    """Draw pictures with the champion, or with the best there is; no service is needed."""
    import random

    from genai_assets import durable
    from genai_assets.diffusion import sampling

    if not prompt.strip():
        raise ValueError("the prompt is empty: say what to draw, for example: genai generate “a red fox”")
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"--out is {out}; pictures are written as PNG: let its name end in .png")
    settings, console = _settings(), _console()
    folder, who = _model_to_draw_with(settings, model)
    _say(console, f"Drawing with {who}.")
    facts = _facts(folder)
    first = random.randrange(2**31) if seed is None else seed
    seeds = [first + number for number in range(n)]
    asked = facts.prompt(prompt) if facts else prompt
    with StageProgress(console) as progress:
        with console.status("Loading the model …"):
            drawer = sampling.load(folder, device=settings.device)
        pictures = drawer.draw(
            [asked] * n,
            seeds=seeds,
            steps=steps or settings.sampling.steps,
            guidance_scale=guidance or settings.sampling.guidance_scale,
            on_step=lambda done, total: progress.on_progress("denoising steps", done, total),
        )
    for picture, place in zip(pictures, _places(out, prompt, seeds), strict=True):
        with durable.replacing(place) as temporary:
            picture.save(temporary, format="PNG")
        typer.echo(place)


@app.command(rich_help_panel=_STEPS)
def prepare() -> None:
    """Read the pictures, validate them, compute their features, split them."""
    settings, console = _settings(), _console()
    with StageProgress(console) as progress:
        _prepare(settings, progress)
    _say(console, "Next: genai train. To look at the data: genai data show.")


@app.command(rich_help_panel=_STEPS)
def train() -> None:
    """Fine-tune the base model on the house style; what is missing before it is done first."""
    settings, console = _settings(), _console()
    with StageProgress(console) as progress:
        validated, split = _data(settings, progress)
        model, _ = _train(settings, progress, validated, split)
    _say(console, f"Model {model.summary['model_version']}: {model.path}")
    _say(console, "Next: genai evaluate. To see it draw: genai generate “a red fox” --model FOLDER.")


@app.command(rich_help_panel=_STEPS)
def evaluate() -> None:
    """Measure the model on held-out concepts and say whether it should be promoted; nothing is promoted."""
    from genai_assets import stages

    settings, console = _settings(), _console()
    with StageProgress(console) as progress:
        validated, features, split = _prepare(settings, progress)
        model, base = _train(settings, progress, validated, split)
        report = progress.stage(
            "eval_report",
            lambda: stages.eval_report(
                settings,
                model,
                base,
                split,
                validated,
                features,
                on_progress=progress.on_progress,
            ),
        )
    console.print(figures_table(stages.read_metrics(report)))
    decision = stages.gate(settings, report)
    _say(console, f"The gate would say: {decision.reason}", "green" if decision.promote else "yellow")
    _say(console, f"Report: {report.file('report.html')}")
    _say(console, "Nothing was promoted: that is done by `genai demo`, or by Dagster's job `retrain` (see `genai up`).")


@app.command(rich_help_panel=_STEPS)
def pretrain(
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps in all, those of earlier runs included.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 64,
    hidden_size: Annotated[int | None, typer.Option(help="Width of a token.")] = None,
    depth: Annotated[int | None, typer.Option(help="Transformer blocks.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads; must divide the width.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile first: repays itself after about three minutes.")
    ] = True,
    export: Annotated[Path | None, typer.Option(help="When done, write the base model into this folder.")] = None,
) -> None:
    """Train a small base model from nothing; run again, it goes on from its last checkpoint."""
    from genai_assets.diffusion.config import TrainingConfig
    from genai_assets.diffusion.pretraining import export_embedded_base
    from genai_assets.diffusion.pretraining import pretrain as run

    settings, console = _settings(), _console()
    shape = _shape(hidden_size, depth, heads)
    config = TrainingConfig.model_validate(
        {"steps": steps, "batch_size": batch_size, "checkpoint_every": 200, "validate_every": 200}
    )
    with StageProgress(console) as progress, _interrupt_asks() as interrupt:

        def on_step(report: "StepReport") -> None:
            interrupt.can_wait = True  # from now on there is something to checkpoint
            progress.on_step(report)
            if report.validation_loss is not None:
                _say(console, describe_step(report, batch_size))

        pipeline, result = run(
            settings,
            shape,
            config,
            on_step=on_step,
            on_progress=progress.on_progress,
            compiled=compiled,
            stop=lambda: interrupt.asked,
        )
    if result.steps < steps:
        _say(
            console,
            f"Stopped after step {result.steps} of {steps}; a checkpoint is written. The same command goes on from it.",
        )
        raise typer.Exit(INTERRUPTED)
    _say(console, f"Done: {result.steps} steps, {result.pictures_seen:,} pictures seen.")
    if export is None:
        _say(console, "To write the base model: the same command with --export FOLDER.")
    else:
        export_embedded_base(pipeline, export)
        _say(console, f"Base model written to {export}. Use it: GENAI_BASE_MODEL={export}")


@data.command("release")
def data_release(category: Annotated[str, typer.Argument(help="One of splits.later_categories.")]) -> None:
    """Release a category that was kept back: from the next run on it is trained on."""
    from genai_assets.datasets.release import release_category

    settings = _settings()
    released = release_category(settings.paths, category, settings)
    _console().print(f"Released: {', '.join(sorted(released))}. Next: genai train, or wait for Dagster's sensor.")


@data.command("show")
def data_show() -> None:
    """Count the newest records by style, split and licence, and say why some are in quarantine."""
    from genai_assets import stages
    from genai_assets.datasets.records import read_manifest

    settings, console = _settings(), _console()
    store = stages.artifact_store(settings)
    raw, validated, split = (store.newest(kind) for kind in ("raw_data", "validated_data", "splits"))
    if raw is None:
        raise ValueError(f"there is no data in {settings.home} yet: run `genai prepare`")
    for refused in raw.summary["refused"]:
        how_many = "all" if refused["count"] is None else refused["count"]
        text = f"Refused for its licence: {refused['source']} ({how_many} pictures): {refused['reason']}"
        _say(console, text, "yellow")
    if validated is None:
        console.print(_counts("licence", raw.summary["by_licence"]))
        _say(console, "Not validated yet: genai prepare.")
        return
    records = read_manifest(validated.file("manifest.parquet"))
    if split is None:
        console.print(_counts("style", records["style"].value_counts()))
        _say(console, "Not split yet: genai prepare.")
    else:
        rows = stages.read_splits(split)
        counts = rows.groupby(["style", "split"]).size().unstack(fill_value=0)
        table = _table("style", *(str(name) for name in counts.columns), title="Records by style and split")
        for style, row in counts.iterrows():
            table.add_row(str(style), *(f"{count:,}" for count in row))
        console.print(table)
    console.print(_counts("licence", records["licence"].value_counts()))
    kept, quarantined = validated.summary["kept"], validated.summary["quarantined"]
    _say(console, f"{kept:,} records are in use, {quarantined:,} in quarantine.")
    if quarantined:
        console.print(_counts("reason for quarantine", validated.summary["quarantined_by_reason"]))
    _say(console, f"Data Docs: {validated.summary['data_docs']}")


@app.command("settings", rich_help_panel=_EVERYDAY)
def show_settings() -> None:
    """Print the settings in force, in the form of genai.toml."""
    typer.echo(as_toml(_settings()))


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
        took = "nothing changed" if made.reused else f"{time.monotonic() - started:.1f} s"
        _say(self.console, f"  {name:<18}{took:>16}   {describe_summary(made.kind, made.summary)}")
        return made

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Move the bar of ``what``; with ``total`` 0 the end is not known."""
        self._bar(what, done, total, f"{done:,} of {total:,}" if total else f"{done:,}")

    def on_step(self, report: "StepReport") -> None:
        """Move the bar of a training by a ``StepReport``."""
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
    table = _table("", *models, title=f"On {result['pictures']} held-out concepts")
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


def describe_summary(kind: str, summary: Mapping[str, Any]) -> str:
    """What a person wants to know of a finished stage, in one line."""

    def told(name: str, value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(told(part, count) for part, count in value.items())
        label = "" if isinstance(value, str) else f" {name.replace('_', ' ')}"
        return f"{value:,.4g}{label}" if isinstance(value, float) else f"{value:,}{label}" if label else str(value)

    return ", ".join(told(name, summary[name]) for name in _TOLD.get(kind, ()) if summary.get(name) is not None)


_TOLD = {
    "raw_data": ("records", "concepts", "duplicates"),
    "validated_data": ("kept", "quarantined"),
    "image_features": ("pictures", "captions"),
    "splits": ("records",),
    "base_model": ("family", "parameters"),
    "training_cache": ("pictures", "prompts"),
    "fine_tuned_model": ("model_version", "steps", "validation_loss"),
    "eval_report": ("model_version", "pictures"),
}


def as_toml(settings: "Settings") -> str:
    """Settings as a TOML document: plain values first, then the sections; what is not set is a comment."""
    import json
    import re

    def lines(values: Mapping[str, Any]) -> Iterator[str]:
        for name, value in values.items():
            if value is None:
                yield f"# {name} is not set"
            elif not isinstance(value, dict):
                # JSON's strings, numbers, truth values and lists are TOML's, too.
                yield f"{name} = {json.dumps(value, ensure_ascii=False)}"

    values = settings.model_dump(mode="json")
    sections = [list(lines(values))]
    sections += [[f"[{name}]", *lines(value)] for name, value in values.items() if isinstance(value, dict)]
    text = "\n\n".join("\n".join(section) for section in sections)
    return re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:…@", text)  # a database URL may hold a password


def _prepare(settings: "Settings", progress: StageProgress) -> "tuple[Artifact, Artifact, Artifact]":
    """Validated data, features and splits."""
    from genai_assets import stages

    validated, split = _data(settings, progress)
    features = progress.stage(
        "image_features", lambda: stages.image_features(settings, validated, on_progress=progress.on_progress)
    )
    return validated, features, split


def _data(settings: "Settings", progress: StageProgress) -> "tuple[Artifact, Artifact]":
    """Validated data and splits.

    Raises:
        ValueError: a critical check fails; nothing must be trained on such data.
    """
    from genai_assets import stages

    raw = progress.stage("raw_data", lambda: stages.raw_data(settings, on_progress=progress.on_progress))
    validated = progress.stage(
        "validated_data", lambda: stages.validated_data(settings, raw, on_progress=progress.on_progress)
    )
    summary = validated.summary
    if not summary["success"]:
        failed = [
            check["name"] for check in summary["checks"] if not check["passed"] and check["severity"] == "critical"
        ]
        raise ValueError(f"the data fails critical checks: {', '.join(failed)}; see {summary['data_docs']}")
    return validated, progress.stage("splits", lambda: stages.splits(settings, validated))


def _train(
    settings: "Settings", progress: StageProgress, validated: "Artifact", split: "Artifact"
) -> "tuple[Artifact, Artifact]":
    """The fine-tuned model and the base it grew from."""
    from genai_assets import stages

    base = progress.stage("base_model", lambda: stages.base_model(settings))
    cache = progress.stage(
        "training_cache",
        lambda: stages.training_cache(settings, validated, split, base, on_progress=progress.on_progress),
    )
    model = progress.stage(
        "fine_tuned_model", lambda: stages.fine_tuned_model(settings, cache, base, on_step=progress.on_step)
    )
    return model, base


def _model_to_draw_with(settings: "Settings", named: Path | None) -> tuple[Path, str]:
    """A model folder, and who that is."""
    from genai_assets import stages
    from genai_assets.registry.champion import ChampionPointer

    if named is not None:
        if not named.is_dir():
            raise FileNotFoundError(f"--model is {named}, which is not a folder")
        return named, f"the model of {named}"
    with ChampionPointer(settings.database_url) as pointer:
        champion = pointer.current()
    if champion and champion.model_path.is_dir():
        return champion.model_path, f"the champion, {champion.model_version}"
    lost = f" (the champion's folder {champion.model_path} is gone)" if champion else " (there is no champion)"
    if newest := stages.artifact_store(settings).newest("fine_tuned_model"):
        return newest.path, f"the newest fine-tuned model, {newest.summary['model_version']}{lost}"
    base = stages.base_model(settings)
    return base.path, f"the base model, which has not learnt the house style: run `genai demo`{lost}"


def _facts(folder: Path) -> "ModelFacts | None":
    """How a model wants its prompts; None for a base model, which takes them as they are."""
    from genai_assets.diffusion.base_model import MODEL_FACTS
    from genai_assets.serving.generator import read_facts

    return read_facts(folder) if (folder / MODEL_FACTS).is_file() else None


def _places(out: Path | None, prompt: str, seeds: Sequence[int]) -> list[Path]:
    """A file for each picture."""
    import re

    if out is None:
        words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:40] or "picture"
        return [Path(f"{words}-{seed}.png") for seed in seeds]
    if len(seeds) == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, len(seeds) + 1)]


def _shape(hidden_size: int | None, depth: int | None, heads: int | None) -> "DenoiserConfig":
    """The denoiser's shape; the two axes of the positions share a head's width."""
    from genai_assets.diffusion.config import DenoiserConfig

    asked = {"hidden_size": hidden_size, "depth": depth, "num_heads": heads}
    shape = DenoiserConfig.model_validate({name: value for name, value in asked.items() if value is not None})
    width, rest = divmod(shape.hidden_size, shape.num_heads)
    if rest or width % 4:
        raise ValueError(
            f"{shape.num_heads} heads cannot share a width of {shape.hidden_size}: "
            "--hidden-size must be --heads times a multiple of 4"
        )
    return shape.model_copy(update={"axes_dim": (width // 2, width // 2)})


class _Interrupt:
    """Whether Ctrl-C was pressed, and whether the work may finish its step first."""

    asked = False
    can_wait = False


@contextlib.contextmanager
def _interrupt_asks() -> Iterator[_Interrupt]:
    """While the block runs, Ctrl-C and SIGTERM ask instead of interrupting, once there is something to save."""
    interrupt = _Interrupt()

    def ask(*_: object) -> None:
        if interrupt.asked or not interrupt.can_wait:
            raise KeyboardInterrupt
        interrupt.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_for_users(error: Exception) -> bool:
    """Errors the user can mend: bad values, missing files, and our own classes."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.partition(".")[0] == "genai_assets"


def _complain(text: str, style: str = "red") -> None:
    from rich.console import Console

    Console(stderr=True).print(_text(text, style), soft_wrap=True)


def _settings() -> "Settings":
    from genai_assets.settings import Settings

    return Settings()  # pyright: ignore[reportCallIssue] - defaults


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _say(console: "Console", text: str, style: str = "") -> None:
    """Print a line as it is: brackets are no markup, and a path is not broken."""
    console.print(_text(text, style), soft_wrap=True)


def _text(text: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(text, style=style)


def _table(*columns: str, title: str | None = None) -> "Table":
    """A table of names and numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _counts(what: str, counts: "Mapping[str, int] | pd.Series") -> "Table":
    table = _table(what, "records")
    for name, count in counts.items():
        table.add_row(str(name), f"{count:,}")
    return table
