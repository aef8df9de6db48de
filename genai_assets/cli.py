"""The command line, ``genai``: everything the graph does, without Dagster.

Belongs here: commands and their arguments. How things are told is ``console``; what is done is in the rooms and in
``stages``; this module only calls it. Nothing heavy is imported before a command needs it, so that ``genai --help``
answers at once.

A mistake the user can mend (a wrong setting, a missing file) is told in one message without a traceback, with exit
status 2; ``genai --traceback …`` or ``GENAI_TRACEBACK=1`` shows where it came from.
"""

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from genai_assets.cli_data import data
from genai_assets.cli_models import models
from genai_assets.cli_tune import tune
from genai_assets.console import (
    StageProgress,
    complain,
    describe_step,
    explain,
    figures_table,
    make_console,
    read_settings,
    say,
    styled,
)
from genai_assets.credentials import without_credentials

if TYPE_CHECKING:
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
            complain("Interrupted. What was finished is kept; the same command goes on from there.", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if not _is_for_users(error) or ctx.params.get("traceback"):
                raise
            complain(explain(error))
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    name="genai",
    cls=_Genai,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A team's image model as one asset graph: pictures in, a model trained, measured, served and watched.",
)
_EVERYDAY, _STEPS = "Everyday", "Steps, without Dagster"
app.add_typer(data, name="data", rich_help_panel=_STEPS)
app.add_typer(models, name="models", rich_help_panel=_STEPS)


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

    raise typer.Exit(run_demo(read_settings(), make_console()))


@app.command(rich_help_panel=_EVERYDAY)
def up() -> None:
    """Run Dagster, the image service, MLflow and a server of the reports on this machine until Ctrl-C."""
    from genai_assets.up import run_up

    raise typer.Exit(run_up(read_settings(), make_console()))


@app.command(rich_help_panel=_EVERYDAY)
def doctor() -> None:
    """Look at what is installed, which device there is, what is missing and how to mend it."""
    from rich.table import Table

    from genai_assets import up
    from genai_assets.doctor import diagnose

    settings, console = read_settings(), make_console()
    ports = {"Dagster": up.DAGSTER_PORT, "service": settings.serving.port, "MLflow": up.MLFLOW_PORT}
    ports["reports"] = settings.pages.port
    with console.status("Looking …"):
        findings = diagnose(settings, ports=ports)
    colours = {"ok": "green", "warning": "yellow", "missing": "red"}
    table = Table(header_style="bold")
    for column in ("", "what", "found", "to mend it"):
        table.add_column(column, overflow="fold")  # a path is of no use with its end cut off
    for finding in findings:
        cells = (styled(cell) for cell in (finding.name, finding.detail, finding.mend))
        table.add_row(styled(finding.status, colours[finding.status]), *cells)
    console.print(table)
    if missing := [finding.name for finding in findings if finding.status == "missing"]:
        say(console, f"Missing: {', '.join(missing)}.", "red")
        raise typer.Exit(1)
    say(console, "Everything needed is there.", "green")


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
    fast: Annotated[bool, typer.Option("--fast", help="With the champion's few-step student.")] = False,
) -> None:
    """Draw pictures with the champion, or with the best there is; no service is needed."""
    import random

    from genai_assets import durable, stages
    from genai_assets.diffusion import sampling

    if not prompt.strip():
        raise ValueError("the prompt is empty: say what to draw, for example: genai generate “a red fox”")
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"--out is {out}; pictures are written as PNG: let its name end in .png")
    settings, console = read_settings(), make_console()
    folder, who = _student_to_draw_with(settings, model) if fast else _model_to_draw_with(settings, model)
    sampler = stages.drawn_as(settings, folder)
    say(console, f"Drawing with {who}.")
    facts = _facts(folder)
    first = random.randrange(2**31) if seed is None else seed
    seeds = [first + number for number in range(n)]
    asked = facts.prompt(prompt) if facts else prompt
    with StageProgress(console) as progress:
        with console.status("Loading the model …"):
            drawer = sampling.load(
                folder, device=settings.device, backend=settings.sampling.backend, cache=settings.paths.converted
            )
        pictures = drawer.draw(
            [asked] * n,
            seeds=seeds,
            steps=steps or sampler.steps,
            guidance_scale=guidance or sampler.guidance_scale,
            on_step=lambda done, total: progress.on_progress("denoising steps", done, total),
        )
    for picture, place in zip(pictures, _places(out, prompt, seeds), strict=True):
        with durable.replacing(place) as temporary:
            picture.save(temporary, format="PNG")
        typer.echo(place)


@app.command(rich_help_panel=_STEPS)
def prepare() -> None:
    """Read the pictures, validate them, compute their features, split them."""
    from genai_assets import stages, walkthrough

    settings, console = read_settings(), make_console()
    with StageProgress(console) as progress:
        walkthrough.prepare(settings, progress, report=True)
    report = stages.artifact_store(settings).newest("data_readiness_report")
    assert report is not None  # it was just made
    say(console, f"Is the data fit to train on? {report.file('readiness.html')}")
    say(console, "Next: genai train. To look at the data: genai data show.")


@app.command(rich_help_panel=_STEPS)
def train() -> None:
    """Fine-tune the base model on the house style; what is missing before it is done first."""
    from genai_assets import walkthrough

    settings, console = read_settings(), make_console()
    with StageProgress(console) as progress:
        validated, _, split = walkthrough.prepare(settings, progress)
        model, student, _ = walkthrough.train_with_student(settings, progress, validated, split)
    say(console, f"Model {model.summary['model_version']}: {model.path}")
    if student is not model:
        say(console, f"Its student, which draws in {student.summary['drawing_steps']} steps: {student.path}")
    say(console, "Next: genai evaluate. To see it draw: genai generate “a red fox” --model FOLDER.")


@app.command(rich_help_panel=_STEPS)
def evaluate() -> None:
    """Measure the model on held-out concepts and say whether it should be promoted; nothing is promoted."""
    from genai_assets import stages, walkthrough

    settings, console = read_settings(), make_console()
    with StageProgress(console) as progress:
        validated, features, split = walkthrough.prepare(settings, progress)
        model, student, base = walkthrough.train_with_student(settings, progress, validated, split)
        report = progress.stage(
            "eval_report",
            lambda: stages.eval_report(
                settings,
                model,
                base,
                split,
                validated,
                features,
                distilled=student,
                on_progress=progress.on_progress,
            ),
        )
    console.print(figures_table(stages.read_metrics(report)))
    decision = stages.gate(settings, report)
    say(console, f"The gate would say: {decision.reason}", "green" if decision.promote else "yellow")
    say(console, f"Report: {report.file('report.html')}")
    say(console, "Nothing was promoted: that is done by `genai demo`, or by Dagster's job `retrain` (see `genai up`).")


@app.command(rich_help_panel=_STEPS)
def pretrain(
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps in all, those of earlier runs included.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 128,
    hidden_size: Annotated[int | None, typer.Option(help="Width of a token.")] = None,
    depth: Annotated[int | None, typer.Option(help="Transformer blocks.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads; must divide the width.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile first: repays itself after about three minutes.")
    ] = True,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="Begin with the base model in force (GENAI_BASE_MODEL), not from nothing.")
    ] = False,
    export: Annotated[Path | None, typer.Option(help="When done, write the base model into this folder.")] = None,
) -> None:
    """Train a small base model from nothing or go on with one; run again, it goes on from its last checkpoint."""
    from genai_assets import stages
    from genai_assets.diffusion.pretraining import export_embedded_base, pretraining_config, trains_eagerly
    from genai_assets.diffusion.pretraining import pretrain as run
    from genai_assets.settings import STEPS_OF_THE_EMBEDDED_BASE

    settings, console = read_settings(), make_console()
    shape = _shape(hidden_size, depth, heads)
    if go_on and any(value is not None for value in (hidden_size, depth, heads)):
        raise typer.BadParameter("--go-on keeps the base model's shape: leave out --hidden-size, --depth and --heads")
    config = pretraining_config(steps, batch_size)
    if compiled and trains_eagerly(settings):
        say(
            console,
            "Not compiled, so at less than half the speed: this machine has no C++ compiler or no headers of Python.",
        )
    with StageProgress(console) as progress, _interrupt_asks() as interrupt:

        def on_step(report: "StepReport") -> None:
            interrupt.can_wait = True  # from now on there is something to checkpoint
            progress.on_step(report)
            if report.validation_loss is not None:
                say(console, describe_step(report, batch_size))

        pipeline, result = run(
            settings,
            shape,
            config,
            start=stages.base_model(settings).path if go_on else None,
            on_step=on_step,
            on_progress=progress.on_progress,
            compiled=compiled,
            stop=lambda: interrupt.asked,
        )
    if result.steps < steps:
        say(
            console,
            f"Stopped after step {result.steps} of {steps}; a checkpoint is written. The same command goes on from it.",
        )
        raise typer.Exit(INTERRUPTED)
    say(console, f"Done: {result.steps} steps, {result.pictures_seen:,} pictures seen.")
    if export is None:
        say(console, "To write the base model: the same command with --export FOLDER.")
    else:
        export_embedded_base(pipeline, export)
        say(
            console,
            f"Base model written to {export}. It draws in {STEPS_OF_THE_EMBEDDED_BASE} steps. Use it: "
            f"GENAI_BASE_MODEL={export} GENAI_SAMPLING__STEPS={STEPS_OF_THE_EMBEDDED_BASE}",
        )


app.command(rich_help_panel=_STEPS)(tune)


@app.command("settings", rich_help_panel=_EVERYDAY)
def show_settings() -> None:
    """Print the settings in force, in the form of genai.toml."""
    typer.echo(as_toml(read_settings()))


def as_toml(settings: "Settings") -> str:
    """Settings as a TOML document: plain values first, then the sections; what is not set is a comment.

    Passwords in URLs are left out.
    """

    def lines(values: Mapping[str, Any]) -> Iterator[str]:
        for name, value in values.items():
            if value is None:
                yield f"# {name} is not set"
            else:
                yield f"{name} = {_toml_value(value)}"

    # Python's own types, for JSON has no infinity.
    values = settings.model_dump()
    sections = [list(lines({name: value for name, value in values.items() if not isinstance(value, dict)}))]
    sections += [[f"[{name}]", *lines(value)] for name, value in values.items() if isinstance(value, dict)]
    return "\n\n".join("\n".join(section) for section in sections)


def _toml_value(value: Any) -> str:
    """A value of TOML; tables stand in their line, without what is not set."""
    import json

    if isinstance(value, dict):
        kept = {name: it for name, it in value.items() if it is not None}
        return f"{{ {', '.join(f'{json.dumps(name)} = {_toml_value(it)}' for name, it in kept.items())} }}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, float) and abs(value) == float("inf"):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, str):
        value = without_credentials(value)
    # JSON's strings, numbers and truth values are TOML's, too.
    return json.dumps(value, ensure_ascii=False, default=str)


@contextlib.contextmanager
def _database_is_at_fault() -> Iterator[None]:
    """Tell the block's errors of the database by the setting that names it.

    Raises:
        ValueError: it cannot be read, or its dialect or driver is not installed.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, ImportError) as error:
        reason = getattr(error, "orig", None) or error
        raise ValueError(
            f"the database that serving.database_url names cannot be used: {reason}. If the driver is missing, install "
            "it, or name another database; `genai doctor` tries it"
        ) from error


def _model_to_draw_with(settings: "Settings", named: Path | None) -> tuple[Path, str]:
    """A model folder, and who that is."""
    from genai_assets import stages
    from genai_assets.registry.champion import ChampionPointer

    if named is not None:
        if not named.is_dir():
            raise FileNotFoundError(f"--model is {named}, which is not a folder")
        return named, f"the model of {named}"
    with _database_is_at_fault(), ChampionPointer(settings.database_url) as pointer:
        champion = pointer.current()
    if champion and champion.model_path.is_dir():
        return champion.model_path, f"the champion, {champion.model_version}"
    lost = f" (the champion's folder {champion.model_path} is gone)" if champion else " (there is no champion)"
    if newest := stages.artifact_store(settings).newest("fine_tuned_model"):
        return newest.path, f"the newest fine-tuned model, {newest.summary['model_version']}{lost}"
    base = stages.base_model(settings)
    return base.path, f"the base model, which has not learnt the house style: run `genai demo`{lost}"


def _student_to_draw_with(settings: "Settings", named: Path | None) -> tuple[Path, str]:
    """The folder of the champion's student, and who that is.

    Raises:
        ValueError: there is none, or a model is named as well.
    """
    from genai_assets import stages

    if named is not None:
        raise ValueError("--fast draws with the champion's student: leave --model out, or name the student's folder")
    with _database_is_at_fault():
        champion = stages.current_champion(settings)
    folder = stages.few_step_student(champion)
    if folder is None:
        raise ValueError(
            f"the champion {champion.model_version} has no few-step student: set distillation.max_minutes and run "
            "`genai demo`; the line of champion_model says why a student is not served"
        )
    return folder, f"the few-step student of the champion, {champion.model_version}"


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
