"""``genai tune``: look for better training settings, and accept what a study proposes.

Belongs here: the command's arguments and words. The study itself is ``diffusion/tuning``.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genai_assets.console import StageProgress, make_console, read_settings, say

if TYPE_CHECKING:
    from rich.console import Console

    from genai_assets.diffusion.tuning.tune import Progress
    from genai_assets.settings import Settings

KIND = "hyperparameter_study"


def tune(
    trials: Annotated[int | None, typer.Option(min=1, help="Short trainings in all; else study.trials.")] = None,
    pictures: Annotated[
        int | None, typer.Option(min=1, help="Pictures a trial sees; else study.pictures_a_trial.")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Write what the newest study proposes into genai.toml; trains nothing.")
    ] = False,
) -> None:
    """Try settings of fine_tune by short trainings, and propose better ones; nothing is used before you accept it."""
    settings, console = read_settings(), make_console()
    if accept:
        _accept(settings, console)
        return
    asked = {"trials": trials, "pictures_a_trial": pictures}
    study = settings.study.model_copy(update={name: value for name, value in asked.items() if value is not None})
    if not study.trials:
        raise ValueError("how many trials? For example: genai tune --trials 20 (or set study.trials)")
    _study(settings.model_copy(update={"study": study}), console)


def _study(settings: "Settings", console: "Console") -> None:
    from genai_assets import stages, walkthrough
    from genai_assets.diffusion.tuning.proposal import PAGE, PROPOSAL, describe_trial

    with StageProgress(console) as progress:
        validated, _, split = walkthrough.prepare(settings, progress)
        _, start, cache = walkthrough.starting_point(settings, progress, validated, split)

        def tell(news: "Progress") -> None:
            if news.step is not None:
                progress.on_step(news.step)
            if news.trial is not None:
                progress.on_progress("trials", news.trial.number + 1, news.trials)
                say(console, describe_trial(news.trial, news.trials))

        made = progress.stage(KIND, lambda: stages.hyperparameter_study(settings, cache, start, on_step=tell))
    say(console, made.summary["verdict"], "green" if made.summary["proposed"] else "yellow")
    say(console, f"Trials and plots: {made.file(PAGE)}")
    if made.summary["proposed"]:
        say(console, f"Proposal: {made.file(PROPOSAL)}")
        say(console, "Nothing was changed. To use it: genai tune --accept, or copy its lines into genai.toml.")


def _accept(settings: "Settings", console: "Console") -> None:
    """Merge the newest study's proposal into the settings file.

    Raises:
        ValueError: there is no proposal, it is of other settings than today's, or the file is to be merged by hand.
    """
    from genai_assets import durable, stages
    from genai_assets.diffusion.tuning.proposal import PROPOSAL, SECTION, CannotMerge, merge
    from genai_assets.settings import CONFIG_FILE, CONFIG_VARIABLE

    study = stages.artifact_store(settings).newest(KIND)
    if study is None:
        raise ValueError(f"there is no study in {settings.home} yet: genai tune --trials 20")
    if not study.summary["proposed"]:
        raise ValueError(f"the newest study proposes nothing. {study.summary['verdict']}")
    now = settings.fine_tune.model_dump(mode="json")
    if study.summary["proposed"].items() <= now.items():
        say(console, "These settings are in force already.")
        return
    _require_same(study.inputs["config"], now, study.file(PROPOSAL))
    proposed = study.file(PROPOSAL).read_text()
    path = Path(os.environ.get(CONFIG_VARIABLE, CONFIG_FILE))
    try:
        merged = merge(path.read_text() if path.exists() else "", proposed)
    except CannotMerge as error:
        raise ValueError(f"{path} is left as it is, for {error}. Copy these lines into it:\n\n{proposed}") from error
    typer.echo(proposed)
    durable.write_text(path.resolve(), merged)  # the file itself, where a link leads to it
    say(console, f"Written into {path}; everything else in it is as it was. Next: genai train.", "green")
    hiding = [f"GENAI_{SECTION}__{name}".upper() for name in study.summary["proposed"]]
    if hiding := [name for name in hiding if name in os.environ]:
        say(console, f"But the environment wins over the file: unset {', '.join(hiding)}.", "yellow")


def _require_same(studied: dict[str, object], now: dict[str, object], proposal: Path) -> None:
    """Refuse a proposal made from other settings: its comparison would not be with what is in force."""
    other = sorted(name for name, value in studied.items() if name in now and now[name] != value)
    if other:
        raise ValueError(
            f"fine_tune has other values than when the study was made ({', '.join(other)}): run genai tune again, or "
            f"copy what you want from {proposal}"
        )
