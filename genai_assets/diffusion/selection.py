"""Which base model to take: what rules one out, and a measured comparison of those at hand.

Belongs here: the verdicts, as a pure function of facts; the comparison, by a callable that trains; and the report of
both. Facts of models and devices are ``catalogue``'s; training is the caller's.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets import durable
from genai_assets.diffusion.base_model import EMBEDDED, EMBEDDED_FOLDER
from genai_assets.diffusion.catalogue import (
    GB,
    DeviceFacts,
    Finding,
    FolderFacts,
    ModelFacts,
    Plan,
    catalogue,
    check_model,
    look_at_device,
    measure_tflops,
    read_folder,
)
from genai_assets.templates import page_template

if TYPE_CHECKING:
    from genai_assets.settings import Settings

SELECTION_FILE, REPORT_FILE = "selection.json", "selection.html"
FORWARD_AND_BACKWARD = 3
"""A backward pass takes twice the operations of a forward pass (Kaplan et al. 2020, section 2.1)."""
_ENLARGED = 2.0


@dataclass(frozen=True)
class DataFacts:
    """What the choice needs to know of the data.

    Attributes:
        pictures: to train on.
        concepts: different ones among them.
        median_side: of the pictures' shorter sides, pixels.
        language: of the captions, as an ISO 639-1 code; None when not known.
    """

    pictures: int
    concepts: int
    median_side: int
    language: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a model fits.

    Attributes:
        model: its name.
        pipeline: class of its pipeline.
        folder: where it lies, when it is at hand.
        fits: whether nothing speaks against it.
        against: every reason why it does not.
        mind: what does not rule it out, yet should be known.
        memory_gb: that training it as planned needs, estimated.
        passes: how often every picture would be seen within the budget, estimated; None when the device's speed is not
            known.
    """

    model: str
    pipeline: str
    folder: Path | None
    fits: bool
    against: tuple[str, ...]
    mind: tuple[str, ...]
    memory_gb: float
    passes: float | None


@dataclass(frozen=True)
class Measured:
    """What a short training of a model at hand has shown. Losses of different families do not compare.

    Attributes:
        steps: that were trained.
        steps_per_second: without what comes before the first.
        pictures_per_second: the same times the batch.
        validation_loss_before, validation_loss_after: on the same fixed noise.
        kid_before, kid_after: of drawn validation prompts to the house style's pictures, when they were drawn.
    """

    steps: int
    steps_per_second: float
    pictures_per_second: float
    validation_loss_before: float | None = None
    validation_loss_after: float | None = None
    kid_before: float | None = None
    kid_after: float | None = None


Measure = Callable[[Path], Measured]
"""Trains the model of a folder for a few steps, the same number for each, and tells what came of it."""


def select_base_models(
    models: Iterable[ModelFacts], *, data: DataFacts, device: DeviceFacts, plan: Plan, minutes: float
) -> tuple[Verdict, ...]:
    """Verdicts: those that fit first, then those at hand, then the larger ones; the order of ``models`` breaks ties.

    A pure function: the same facts give the same verdicts. A model does not fit when its family is not known here, its
    licence is refused or not known, it needs more memory or disk than there is, the sides of pictures do not suit it,
    it does not read the captions' language, or the budget ends before every picture was seen once.

    Args:
        models: entries of the catalogue and folders.
        data: what is to be learnt.
        device: what there is to train with.
        plan: how it would be trained; ``allowed_licences`` is the licence policy.
        minutes: budget of one training.
    """
    judged = [(_judge(model, data, device, plan, minutes), model.denoiser_parameters) for model in models]
    judged.sort(key=lambda pair: (not pair[0].fits, pair[0].folder is None, -pair[1]))
    return tuple(verdict for verdict, _ in judged)


def compare_base_models(verdicts: Iterable[Verdict], measure: Measure) -> dict[str, Measured | str]:
    """Measure every model that fits and is at hand, one after the other.

    Returns:
        dict: by the model's name what was measured; or why it could not be, which ends nothing.
    """
    figures: dict[str, Measured | str] = {}
    for verdict in verdicts:
        if verdict.fits and verdict.folder is not None:
            try:
                figures[verdict.model] = measure(verdict.folder)
            except (ValueError, RuntimeError, OSError) as error:  # one model's failure is a finding about that model
                figures[verdict.model] = f"{type(error).__name__}: {error}"
    return figures


def report_selection(
    settings: "Settings", data: DataFacts, measure: Callable[[str], Measured], out: Path
) -> dict[str, Any]:
    """Judge the catalogue, the embedded base and the listed folders; compare those at hand; write the report.

    Args:
        settings: plan, device, budget and ``selection.folders``.
        data: what is trained on.
        measure: trains the base model of this name for a short while.
        out: an empty folder.

    Returns:
        dict: as :func:`write_selection_report`.
    """
    names = {EMBEDDED_FOLDER: EMBEDDED} | {folder: str(folder) for folder in settings.selection.folders}
    at_hand = [read_folder(folder, name=name) for folder, name in names.items()]
    known = {model.entry for model in at_hand}
    device = look_at_device(settings.device, settings.home)
    asked: dict[str, Any] = {
        "data": data,
        "device": dataclasses.replace(device, tflops=measure_tflops(device.kind)),
        "plan": Plan.from_settings(settings),
        "minutes": settings.fine_tune.max_minutes,
    }
    models = [*(entry for entry in catalogue() if entry.name not in known), *at_hand]
    verdicts = select_base_models(models, **asked)
    figures = compare_base_models(verdicts, lambda folder: measure(names[folder]))
    return write_selection_report(out, verdicts, figures, **asked)


def write_selection_report(
    out: Path,
    verdicts: Sequence[Verdict],
    figures: Mapping[str, Measured | str],
    *,
    data: DataFacts,
    device: DeviceFacts,
    plan: Plan,
    minutes: float,
) -> dict[str, Any]:
    """Fill a folder with ``selection.json`` and ``selection.html``, which needs no network and no other file.

    Returns:
        dict: ``models``, ``fitting``, ``at_hand`` and ``measured`` as counts, and ``fits`` as names.
    """
    facts = {
        "data": dataclasses.asdict(data),
        "device": dataclasses.asdict(device),
        "plan": dataclasses.asdict(plan),
        "minutes": minutes,
    }
    result = {
        **facts,
        "verdicts": [
            {**dataclasses.asdict(verdict), "folder": str(verdict.folder) if verdict.folder else None}
            for verdict in verdicts
        ],
        "measured": {
            name: figure if isinstance(figure, str) else dataclasses.asdict(figure) for name, figure in figures.items()
        },
    }
    result = json.loads(json.dumps(result))  # tuples become lists: what is written is what is shown
    durable.write_json(out / SELECTION_FILE, result)
    html = page_template("genai_assets.diffusion", "selection_report.html.j2").render(result=result, gb=GB)
    durable.write_text(out / REPORT_FILE, html)
    return {
        "models": len(verdicts),
        "fitting": sum(verdict.fits for verdict in verdicts),
        "at_hand": sum(verdict.folder is not None for verdict in verdicts),
        "measured": sum(not isinstance(figure, str) for figure in figures.values()),
        "fits": [verdict.model for verdict in verdicts if verdict.fits],
    }


def _judge(model: ModelFacts, data: DataFacts, device: DeviceFacts, plan: Plan, minutes: float) -> Verdict:
    findings = [_eased(finding, model, plan, device) for finding in check_model(model, plan, device)]
    against = [f"{finding.name}: {finding.detail}" for finding in findings if finding.status == "error"]
    mind = [f"{finding.name}: {finding.detail}" for finding in findings if finding.status == "warning"]
    if not model.licences:  # for a run on a folder of one's own that is a warning; nobody should choose it
        against.append("licence: not known")
        mind = [told for told in mind if not told.startswith("licence:")]
    if data.language and model.languages and data.language not in model.languages:
        against.append(f"language: captions are in {data.language!r}; it was taught {', '.join(model.languages)}")
    side = plan.resolution or model.resolution
    if side > data.median_side * _ENLARGED:
        mind.append(f"data: half of the pictures are smaller than {data.median_side} px; {side} px would enlarge them")
    passes = _passes(model, data, device, plan, minutes)
    if passes is not None and passes < 1:
        against.append(
            f"budget: in {minutes:g} min it would see {passes * data.pictures:,.0f} of {data.pictures:,} pictures"
        )
    return Verdict(
        model=model.name,
        pipeline=model.pipeline,
        folder=model.folder if isinstance(model, FolderFacts) else None,
        fits=not against,
        against=tuple(against),
        mind=tuple(mind),
        memory_gb=round(plan.memory(model, device.kind).gigabytes, 2),
        passes=None if passes is None else round(passes, 3),
    )


def _eased(finding: Finding, model: ModelFacts, plan: Plan, device: DeviceFacts) -> Finding:
    """Too little memory for the batch at once is to be known, and rules nothing out where parts of it would fit."""
    if finding.name != "memory" or finding.status != "error":
        return finding
    least = dataclasses.replace(plan, micro_batch_size=1, gradient_checkpointing=True)
    eased = next(other for other in check_model(model, least, device) if other.name == "memory")
    if eased.status == "ok":
        return dataclasses.replace(finding, status="warning", detail=f"{finding.detail}; {finding.mend}")
    return dataclasses.replace(finding, detail=f"even with one picture at a time and checkpointing, {eased.detail}")


def _passes(model: ModelFacts, data: DataFacts, device: DeviceFacts, plan: Plan, minutes: float) -> float | None:
    """How often each picture is seen in the budget: the device's operations over those of a picture."""
    if device.tflops is None or not data.pictures:
        return None
    side = plan.resolution or model.resolution
    again = 1 if plan.gradient_checkpointing else 0  # the forward pass is computed twice
    a_picture = model.forward_tflop * (side / model.resolution) ** 2 * (FORWARD_AND_BACKWARD + again)
    return minutes * 60 * device.tflops / a_picture / data.pictures
