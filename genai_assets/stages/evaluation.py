"""The stages of judgement: drawings, eval_report, the gate, champion_model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets.artifacts import Artifact, data_version_of
from genai_assets.settings import Settings
from genai_assets.stages.dataset import picture_reader, read_splits
from genai_assets.stages.distillation import drawn_as, is_student
from genai_assets.stages.ground import OnProgress, artifact_store, made_from

if TYPE_CHECKING:
    from genai_assets.evaluation.evaluate import HeldOut
    from genai_assets.registry.champion import Champion

FEW_STEPS = "few_steps"
"""What a report and the champion's facts call the student."""


def drawings(
    settings: Settings,
    model_folder: Path,
    version: str,
    prompts: list[str],
    *,
    on_progress: OnProgress | None = None,
) -> Artifact:
    """Pictures of the evaluation's prompts by one model, drawn once: uint8 [N, S, S, 3], and milliseconds for each.

    The summary says which backend drew them (``backend``), and how near the first few come to fp32 (``parity_db``).
    """
    from genai_assets.diffusion.base_model import training_resolution

    seeds = [settings.evaluation.seed + number for number in range(len(prompts))]
    resolution, sampler = training_resolution(settings), drawn_as(settings, model_folder)

    def make(out: Path) -> dict[str, Any]:
        import time

        from genai_assets.diffusion import sampling
        from genai_assets.diffusion.drawing.parity import parity_with_exact

        drawer = sampling.load(
            model_folder,
            device=settings.device,
            resolution=resolution,
            backend=settings.sampling.backend,
            cache=settings.paths.converted,
        )
        pictures: list[np.ndarray] = []
        milliseconds: list[float] = []
        for start in range(0, len(prompts), _DRAWN_AT_ONCE):
            part = slice(start, start + _DRAWN_AT_ONCE)
            began = time.perf_counter()
            drawn = drawer.draw(
                prompts[part],
                seeds=seeds[part],
                steps=sampler.steps,
                guidance_scale=sampler.guidance_scale,
                batch_size=_DRAWN_AT_ONCE,
            )
            milliseconds += [(time.perf_counter() - began) * 1000 / len(drawn)] * len(drawn)
            pictures += [np.asarray(picture, dtype=np.uint8) for picture in drawn]
            if on_progress:
                on_progress(f"drawn by {version}", len(pictures), len(prompts))
        np.save(out / "pictures.npy", np.stack(pictures))
        np.save(out / "milliseconds.npy", np.array(milliseconds))
        compared = min(_COMPARED_WITH_EXACT, len(pictures))
        return {
            "pictures": len(pictures),
            "model_version": version,
            "backend": drawer.computes,
            "parity_db": round(
                parity_with_exact(
                    sampling.load(model_folder, device=settings.device, resolution=resolution, exact=True),
                    pictures[:compared],
                    prompts[:compared],
                    seeds=seeds[:compared],
                    steps=sampler.steps,
                    guidance_scale=sampler.guidance_scale,
                ),
                1,
            ),
        }

    return artifact_store(settings).build(
        "drawings",
        made_from(
            "drawings",
            model=version,
            content=data_version_of(model_folder),
            prompts=prompts,
            seeds=seeds,
            resolution=resolution,
            sampling=sampler.model_dump(mode="json"),
        ),
        make,
    )


_DRAWN_AT_ONCE = 32
_COMPARED_WITH_EXACT = 4


def read_held_out(settings: Settings, validated: Artifact, split: Artifact) -> "tuple[HeldOut, pd.DataFrame]":
    """What models are asked to draw in an evaluation, with the truth; and the rows of the manifest with their splits.

    Raises:
        ValueError: too few held-out concepts.
    """
    from genai_assets.datasets.records import read_manifest
    from genai_assets.diffusion.base_model import training_resolution
    from genai_assets.evaluation.evaluate import HeldOut

    manifest = read_manifest(validated.file("manifest.parquet"))
    table = manifest.merge(read_splits(split)[["id", "caption", "split"]], on=["id", "caption"])
    asked = _held_out_rows(table[table["style"] == settings.dataset.house_style], settings)
    side = training_resolution(settings)
    read = picture_reader(settings)
    held_out = HeldOut(
        concepts=asked["concept"].tolist(),
        captions=asked["caption"].tolist(),
        prompts=[settings.fine_tune.prompt(caption, settings.dataset.house_style) for caption in asked["caption"]],
        pictures=np.stack([read(record_id, (side, side)) for record_id in asked["id"]]),
    )
    return held_out, table


def eval_report(
    settings: Settings,
    model: Artifact,
    base: Artifact,
    split: Artifact,
    validated: Artifact,
    features: Artifact,
    *,
    distilled: Artifact | None = None,
    on_progress: OnProgress | None = None,
) -> Artifact:
    """Figures and report of the model beside its base, the champion when it is another one, and real pictures.

    ``distilled`` is measured as well, as ``few_steps``, when it is a student of the model.

    Raises:
        ValueError: too few held-out concepts.
    """
    from genai_assets.evaluation.evaluate import KnownPictures, evaluate
    from genai_assets.evaluation.feature_index import FeatureTable

    version = model.summary["model_version"]
    champion = _champion(settings)
    rival = champion if champion and champion.model_version != version else None
    student = distilled if distilled and is_student(distilled) else None

    def make(out: Path) -> dict[str, Any]:
        held_out, table = read_held_out(settings, validated, split)
        house = table["style"] == settings.dataset.house_style
        models: dict[str, tuple[Path, str]] = {
            "base": (base.path, f"base-{base.data_version}"),
            "fine_tuned": (model.path, version),
        }
        if rival is not None:
            models["champion"] = (rival.model_path, rival.model_version)
        if student is not None:
            models[FEW_STEPS] = (student.path, student.summary["model_version"])
        prompts = {
            name: list(held_out.prompts) if name == "base" else _prompts_of(folder, held_out.captions)
            for name, (folder, _) in models.items()
        }
        drawn = {
            name: drawings(settings, folder, label, prompts[name], on_progress=on_progress)
            for name, (folder, label) in models.items()
        }
        known = FeatureTable.read(features.path)
        # Not even in other styles: the test split's concepts are sealed.
        others = KnownPictures.from_rows(table[~house & (table["split"] != "test")], known)
        trained_on = house & (table["split"] == "train")
        result = evaluate(
            {name: np.load(artifact.file("pictures.npy")) for name, artifact in drawn.items()},
            held_out,
            KnownPictures.from_rows(table[trained_on], known),
            others if len(others.names) else None,
            settings=settings,
            out=out,
            floor_vectors=KnownPictures.from_rows(table[trained_on & ~table["variant"]], known).vectors,
            latency_ms={name: np.load(artifact.file("milliseconds.npy")).tolist() for name, artifact in drawn.items()},
            provenance={
                "model_version": version,
                "base_model": settings.base_model,
                "data_version": validated.data_version,
                "splits": split.data_version,
                "sampling_steps": settings.sampling.steps,
                "guidance_scale": settings.sampling.guidance_scale,
                "asked_for": {name: own[0] for name, own in prompts.items()},
                "drawn_by": {
                    name: f"{artifact.summary['backend']}, {artifact.summary['parity_db']} dB against fp32"
                    for name, artifact in drawn.items()
                },
                "training": model.summary,
                **({"distillation": student.summary} if student else {}),
            },
        )
        return {
            "model_version": version,
            "pictures": result["pictures"],
            "models": result["models"],
            "kid_difference": result["kid_difference"],
            "backend": drawn["fine_tuned"].summary["backend"],
            "parity_db": drawn["fine_tuned"].summary["parity_db"],
        }

    return artifact_store(settings).build(
        "eval_report",
        made_from(
            "eval_report",
            model=model.data_version,
            base=base.data_version,
            champion=rival.model_version if rival else None,
            few_steps=student.data_version if student else None,
            splits=split.data_version,
            features=features.data_version,
            settings=settings.evaluation.model_dump(mode="json"),
            sampling=settings.sampling.model_dump(mode="json"),
        ),
        make,
    )


def _prompts_of(folder: Path, captions: Sequence[str]) -> list[str]:
    """Captions as the model in a folder was taught to read them, which may be otherwise than the settings have it."""
    from genai_assets.diffusion.base_model import model_facts

    facts = model_facts(folder)
    return [facts["prompt_template"].format(caption=caption, style=facts["style"]) for caption in captions]


def gate(settings: Settings, report: Artifact) -> Any:
    """What the gate decides of an evaluated model: a ``promotion.Decision``.

    A model that is the champion already is measured without a rival and stays.
    """
    from genai_assets.evaluation.promotion import Decision, Figures, decide

    champion = _champion(settings)
    metrics = read_metrics(report)
    if champion is None:
        return decide(Figures.from_metrics(metrics), None, settings.promotion)
    if champion.model_version == report.summary["model_version"]:
        return Decision(False, f"{champion.model_version} is the champion already ({champion.reason})")
    if report.inputs["champion"] != champion.model_version:
        return Decision(
            False,
            f"Not promoted: this evaluation does not compare with the champion, {champion.model_version}; "
            "materialize eval_report again.",
        )
    rival = Figures.from_metrics(metrics, "champion")
    return decide(Figures.from_metrics(metrics), rival, settings.promotion)


def champion_model(
    settings: Settings, model: Artifact, report: Artifact, distilled: Artifact | None = None
) -> tuple[Artifact | None, str]:
    """Promote the model if the gate says so, and with it its student, if that is nearly as good.

    Returns:
        tuple: the champion's artifact, or None when this model is not the champion; and the reason.

    Raises:
        BrokenModel: the gate calls the model broken.
        ChampionChanged: another promotion came in between.
        ValueError: the report is of another model.
    """
    from genai_assets.registry import tracking
    from genai_assets.registry.champion import ChampionPointer, ModelVersion

    version = model.summary["model_version"]
    if report.inputs["model"] != model.data_version:
        raise ValueError(
            f"the evaluation is of {report.summary['model_version']}, not of {version}: materialize eval_report, then "
            "champion_model again"
        )
    with ChampionPointer(settings.database_url) as pointer:
        before = pointer.current()
        decision = gate(settings, report)
        if decision.broken:
            raise BrokenModel(decision.reason)
        champion, reason = before, decision.reason
        is_champion = before is not None and before.model_version == version
        if decision.promote or is_champion:
            student, told = _student(settings, report, distilled)
            reason = f"{reason}{told}"
            # A champion that was promoted before its student was made gets it now: a revision of its own, so that
            # whoever follows the pointer notices.
            if decision.promote or (before is not None and _named(before) != student):
                model.verify()
                metrics = {**report.summary["models"]["fine_tuned"], "eval_report": str(report.path)}
                champion = pointer.promote(
                    ModelVersion(version, model.path, {**metrics, FEW_STEPS: student} if student else metrics),
                    expected_revision=before.revision if before else 0,
                    reason=reason,
                )
    tracking.reconcile_champion(settings, champion)
    if champion is None or champion.model_version != version:
        return None, reason
    facts: dict[str, Any] = {
        "model_version": version,
        "path": str(champion.model_path),
        "revision": champion.revision,
        "reason": champion.reason,
        "eval_report": champion.metrics["eval_report"],
        FEW_STEPS: _named(champion),
    }

    def make(out: Path) -> dict[str, Any]:
        from genai_assets import durable

        durable.write_json(out / "champion.json", facts)
        return facts

    artifact = artifact_store(settings).build("champion_model", made_from("champion_model", **facts), make)
    return artifact, reason


def few_step_student(champion: "Champion") -> Path | None:
    """Folder of the champion's student, which draws in a few steps; None when it has none, or has lost it."""
    named = _named(champion)
    folder = Path(named["path"]) if named else None
    return folder if folder and folder.is_dir() else None


def _named(champion: "Champion") -> dict[str, Any] | None:
    return champion.metrics.get(FEW_STEPS)


def _student(settings: Settings, report: Artifact, distilled: Artifact | None) -> tuple[dict[str, Any] | None, str]:
    """What the champion's facts say of its student, None when it is not to serve; and the reason, to be added."""
    from genai_assets.evaluation.promotion import Figures, judge_student

    if distilled is None or not is_student(distilled) or report.inputs["few_steps"] != distilled.data_version:
        return None, ""
    metrics = read_metrics(report)
    verdict = judge_student(
        Figures.from_metrics(metrics, FEW_STEPS),
        Figures.from_metrics(metrics),
        settings.promotion,
        max_kid_loss=settings.distillation.max_kid_loss,
    )
    if not verdict.promote:
        return None, f" {verdict.reason}"
    distilled.verify()
    facts = {
        "model_version": distilled.summary["model_version"],
        "path": str(distilled.path),
        "kid": report.summary["models"][FEW_STEPS]["kid"],
    }
    return facts, f" {verdict.reason}"


class BrokenModel(RuntimeError):
    """The gate refuses a model as broken; the message says why."""


class NoChampion(RuntimeError):
    """There is no champion yet; something must be trained, evaluated and promoted first."""


def current_champion(settings: Settings) -> "Champion":
    """The champion as the pointer has it.

    Raises:
        NoChampion: nothing was promoted yet.
    """
    champion = _champion(settings)
    if champion is None:
        raise NoChampion("there is no champion yet: run `make demo`, or the job `retrain`")
    return champion


def _champion(settings: Settings) -> "Champion | None":
    from genai_assets.registry.champion import ChampionPointer

    with ChampionPointer(settings.database_url) as pointer:
        return pointer.current()


def read_metrics(report: Artifact | Path) -> dict[str, Any]:
    """All figures of an evaluation, from its artifact or that artifact's folder."""
    import json

    folder = report if isinstance(report, Path) else report.path
    return json.loads((folder / "metrics.json").read_text())


def _held_out_rows(house: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """One plain picture for each held-out concept, in an order that is the same for ever, at most as many as asked."""
    from genai_assets.datasets.records import FEEDBACK_SOURCE
    from genai_assets.datasets.splits import concept_position

    real = (house["source"] != FEEDBACK_SOURCE) & ~house["variant"]
    rows = house[(house["split"] == "held_out") & real].drop_duplicates("concept")
    order = rows["concept"].map(lambda concept: concept_position(str(concept), "genai-evaluation-1"))
    return rows.assign(order=order).sort_values(["order", "concept"]).head(settings.evaluation.pictures)
