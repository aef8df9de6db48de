"""What a study leaves for a person to review: figures, plots, and settings proposed in words and numbers.

Belongs here: ``study.json``, ``study.html`` and ``proposal.toml``, and merging a proposal into ``genai.toml`` when a
person asks for it. Nothing here or elsewhere uses a proposal by itself.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genai_assets import durable
from genai_assets.diffusion.tuning.space import Budget, Choice, Range, Space, Value, Values
from genai_assets.diffusion.tuning.study import CURRENT, StudyResult, Trial
from genai_assets.templates import page_template

STUDY, PAGE, PROPOSAL = "study.json", "study.html", "proposal.toml"
SECTION = "fine_tune"


class CannotMerge(ValueError):
    """The file is written in a way that values cannot be put into without a person; nothing was changed."""


def changes(result: StudyResult) -> Values:
    """What is proposed: the values that differ from the current settings; empty when nothing is."""
    if result.proposed is None:
        return {}
    now = result.current.values
    return {name: value for name, value in result.proposed.values.items() if value != now[name]}


def verdict(result: StudyResult) -> str:
    """What came out, in one or two sentences."""
    current, best = result.current, result.best
    count = f"{len(result.trials)} trials"
    if current.state == "failed":
        told = f"The current settings themselves failed ({current.reason})."
    else:
        told = f"The current settings reach a validation loss of {_told(current.validation_loss)}."
    if best is None:
        return f"{told} No other of {count} was better: nothing is proposed."
    gain = ""
    if current.validation_loss is not None and best.validation_loss is not None:
        gain = f", {1 - best.validation_loss / current.validation_loss:.1%} less"
    told += f" The best of {count}, number {best.number}, reaches {_told(best.validation_loss)}{gain}."
    if not result.again:
        return f"{told} Its settings are proposed; it was not tried with another seed."
    pairs = "; ".join(f"seed {once.seed}: {_told(once.best)} against {_told(once.current)}" for once in result.again)
    if result.proposed is None:
        return f"{told} With another seed it was not ({pairs}): nothing is proposed."
    return f"{told} So it was with another seed ({pairs}): its settings are proposed."


def describe_trial(trial: Trial, trials: int) -> str:
    """One line for a trial that ended, of so many."""
    loss = trial.reason if trial.validation_loss is None else f"validation {trial.validation_loss:.4f}"
    values = ", ".join(f"{name} {_shown(value)}" for name, value in trial.values.items())
    current = ", the current settings" if trial.number == CURRENT else ""
    return f"trial number {trial.number} ({trial.number + 1} of {trials}){current}: {trial.state}, {loss}; {values}"


def write_study(
    out: Path, result: StudyResult, space: Space, budget: Budget, plots: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all files of a study into ``out``; ``proposal.toml`` only when something is proposed.

    Args:
        out: a folder.
        result: of the study.
        space, budget: of the study.
        plots: pieces of HTML by title, the first with plotly.js.
        facts: what else was the same for all trials, for people.

    Returns:
        dict: the summary.
    """
    proposed = changes(result)
    written = {
        "study": result.name,
        "verdict": verdict(result),
        "current": result.current.values,
        "proposed": proposed,
        "trials": [dataclasses.asdict(trial) for trial in result.trials],
        "again": [dataclasses.asdict(once) for once in result.again],
        "interrupted": result.interrupted,
        "space": {name: dataclasses.asdict(varied) for name, varied in space.items()},
        "budget": dataclasses.asdict(budget),
        "facts": dict(facts),
    }
    durable.write_json(out / STUDY, written)
    durable.write_text(out / PAGE, _page(result, space, budget, plots, facts))
    if proposed:
        durable.write_text(out / PROPOSAL, proposal_text(result, budget))
    states = [trial.state for trial in result.trials]
    best = result.best or result.current
    return {
        "study": result.name,
        "trials": len(states),
        "pruned": states.count("pruned"),
        "failed": states.count("failed"),
        "current_validation_loss": result.current.validation_loss,
        "best_validation_loss": best.validation_loss,
        "current": result.current.values,
        "proposed": proposed,
        "verdict": verdict(result),
    }


def proposal_text(result: StudyResult, budget: Budget) -> str:
    """The proposal as a piece of ``genai.toml``, with what a reviewer should know as comments.

    Raises:
        ValueError: nothing is proposed.
    """
    best, now = result.proposed, result.current.values
    if best is None:
        raise ValueError(f"the study {result.name} proposes nothing: {verdict(result)}")
    told = [
        f"Proposed by the study {result.name}: trial number {best.number}, of {len(result.trials)} trials.",
        f"Validation loss {_told(best.validation_loss)}; current settings: {_told(result.current.validation_loss)}.",
        *(
            f"Both again with seed {once.seed}: {_told(once.best)}; current settings: {_told(once.current)}."
            for once in result.again
        ),
        f"Each trial saw {budget.pictures:,} pictures; what is best for a longer training may differ.",
        "Nobody reads this file but you. To use it, copy the lines into genai.toml, or: genai tune --accept",
    ]
    lines = [f"{name} = {_toml(value)}  # now {_toml(now[name])}" for name, value in changes(result).items()]
    return "\n".join([*(f"# {line}" for line in told), "", f"[{SECTION}]", *lines]) + "\n"


def merge(text: str, proposal: str) -> str:
    """``genai.toml`` with a proposal's values in its section; comments, order and all else stay.

    Args:
        text: the file as it is; may be empty.
        proposal: as :func:`proposal_text` writes it.

    Raises:
        CannotMerge: ``text`` is not TOML, or gives the section in another form than ``[fine_tune]`` and lines below it.
    """
    values: Values = tomllib.loads(proposal)[SECTION]
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CannotMerge(f"it is not valid TOML: {error}") from error
    expected = before | {SECTION: before.get(SECTION, {}) | values}
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\s*{SECTION}\s*\]\s*(#.*)?")
    start = next((number for number, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        lines += ["", f"[{SECTION}]"] if lines else [f"[{SECTION}]"]
        start = len(lines) - 1
    end = next((n for n in range(start + 1, len(lines)) if re.match(r"\s*\[", lines[n])), len(lines))
    added = start + 1
    for name, value in values.items():
        assignment = re.compile(rf"(\s*{name}\s*=\s*)(\"[^\"]*\"|[^\s#\"]+)(\s*(#.*)?)")
        for number in range(start + 1, end):
            if found := assignment.fullmatch(lines[number]):
                lines[number] = found[1] + _toml(value) + found[3]
                break
        else:
            lines.insert(added, f"{name} = {_toml(value)}")
            added, end = added + 1, end + 1
    merged = "\n".join(lines) + "\n"
    # Whatever the text looked like: TOML itself says whether these values changed and no other.
    try:
        right = tomllib.loads(merged) == expected
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise CannotMerge(f"its settings of {SECTION} are not written as [{SECTION}] with one setting a line below it")
    return merged


def _page(result: StudyResult, space: Space, budget: Budget, plots: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    return page_template("genai_assets.diffusion.tuning", "study.html.j2").render(
        result=result,
        verdict=verdict(result),
        proposal=proposal_text(result, budget) if changes(result) else None,
        budget=budget,
        names=list(space),
        ranges={name: _range_told(varied) for name, varied in space.items()},
        rows=[_row(trial, list(space)) for trial in result.trials],
        plots=plots,
        facts=facts,
    )


def _row(trial: Trial, names: list[str]) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state,
        "loss": _told(trial.validation_loss),
        "values": [_shown(trial.values.get(name)) for name in names],
        "minutes": f"{trial.seconds / 60:.1f}",
        "reason": trial.reason,
    }


def _range_told(varied: Range | Choice) -> str:
    if isinstance(varied, Choice):
        return ", ".join(str(value) for value in varied.values)
    return f"{varied.low:.3g} to {varied.high:.3g}" + (", log" if varied.log else "")


def _shown(value: Value | None) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _told(loss: float | None) -> str:
    return "none (failed)" if loss is None else f"{loss:.5g}"


def _toml(value: Value) -> str:
    """A number or text in TOML, which for these is JSON; ``8e-05`` is a number in both."""
    return json.dumps(value)
