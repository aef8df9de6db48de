"""The graph with distillation on: a student is made, measured beside its teacher, promoted with it, packed, asked."""

import json
from pathlib import Path

import dagster as dg
import pytest

from genai_assets import stages
from genai_assets.artifacts import Artifact, ArtifactStore
from genai_assets.defs.orchestra import Orchestra
from genai_assets.diffusion.base_model import model_facts
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.settings import Settings
from genai_assets_tests.defs.test_whole_graph import tiny_settings
from genai_assets_tests.tiny_pipeline import save_tiny_pipeline

TINY = DenoiserConfig(hidden_size=64, depth=1, num_heads=2, axes_dim=(16, 16), bottleneck_size=16)
STUDENT = {
    "max_steps": 2,
    "batch_size": 4,
    "drawing_steps": 2,
    "teacher_steps": 2,
    "trajectories": 8,
    # Two steps make no good student; what is shown here is what happens to one that is good enough.
    "max_kid_loss": 1000.0,
}


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, package_cache: Path) -> Settings:
    """What is there after a retrain with a student."""
    place = tmp_path_factory.mktemp("distilled")
    save_tiny_pipeline(place / "base", TINY)
    settings = tiny_settings(
        place / "home",
        package_cache,
        base_model=str(place / "base"),
        sampling={"steps": 3, "backend": "eager"},
        distillation=STUDENT,
        # Eight pictures of a model of two steps agree with their prompts by chance: of that nothing is asked here.
        promotion={"min_kid_improvement": -1000.0, "max_agreement_loss": 1.0},
    )
    with dg.DagsterInstance.ephemeral() as instance, Orchestra(settings, instance=instance) as orchestra:
        outcome = orchestra.run("retrain")
        assert outcome.success, outcome.error
    return settings


def newest(settings: Settings, kind: str) -> Artifact:
    artifact = stages.artifact_store(settings).newest(kind)
    assert artifact is not None, kind
    return artifact


def test_the_report_measures_the_student_as_its_facts_say_it_is_drawn(distilled: Settings):
    settings = distilled
    student = newest(settings, "distilled_model")
    assert model_facts(student.path)["sampling"] == {"steps": 2, "guidance_scale": 1.0}
    metrics = stages.read_metrics(newest(settings, "eval_report"))
    assert {"base", "fine_tuned", "few_steps", "real"} <= set(metrics["models"])
    drawn = [
        artifact.inputs["sampling"]
        for artifact in (
            stages.artifact_store(settings)._read("drawings", path.name, reused=True)
            for path in (settings.paths.artifacts / "drawings").iterdir()
        )
        if artifact and artifact.inputs["model"] == student.summary["model_version"]
    ]
    assert [(how["steps"], how["guidance_scale"]) for how in drawn] == [(2, 1.0)]
    assert (student.path / "README.md").read_text().count("guidance scale 1")


def test_steps_of_the_teacher_make_another_student_only_where_they_decide_what_it_learns(
    distilled: Settings, monkeypatch: pytest.MonkeyPatch
):
    cache, model = newest(distilled, "training_cache"), newest(distilled, "fine_tuned_model")
    asked: list[str] = []

    def look(self: object, kind: str, inputs: dict[str, object], make: object) -> Artifact:
        asked.append(json.dumps(inputs, sort_keys=True, default=str))
        return model

    monkeypatch.setattr(ArtifactStore, "build", look)
    for steps in (3, 4, 30, 40):  # the student draws in two
        sampling = distilled.sampling.model_copy(update={"steps": steps})
        stages.distilled_model(distilled.model_copy(update={"sampling": sampling}), cache, model)
    assert asked[0] == asked[1] != asked[2] == asked[3]


def test_the_champion_names_its_student_and_both_are_in_the_bento(distilled: Settings):
    champion, student = stages.current_champion(distilled), newest(distilled, "distilled_model")
    assert champion.model_version == newest(distilled, "fine_tuned_model").summary["model_version"]
    assert champion.metrics["few_steps"]["model_version"] == student.summary["model_version"]
    assert stages.few_step_student(champion) == student.path
    bento = newest(distilled, "bento_service")
    assert bento.summary["few_steps"] == student.summary["model_version"]
    assert list((distilled.paths.bentoml / "models" / "genai_few_steps").glob("*/model.json"))


def test_a_champion_gets_and_loses_its_student_without_another_training(distilled: Settings):
    model, report, student = (
        newest(distilled, kind) for kind in ("fine_tuned_model", "eval_report", "distilled_model")
    )
    before = stages.current_champion(distilled)

    strict = distilled.distillation.model_copy(update={"max_kid_loss": -1000.0})
    _, reason = stages.champion_model(distilled.model_copy(update={"distillation": strict}), model, report, student)
    without = stages.current_champion(distilled)
    assert "few-step student is not served: its KID is more than" in reason
    assert stages.few_step_student(without) is None and without.model_version == before.model_version

    artifact, reason = stages.champion_model(distilled, model, report, student)
    again = stages.current_champion(distilled)
    assert "few-step student is served beside it" in reason and artifact is not None
    assert artifact.summary["few_steps"] == again.metrics["few_steps"] == before.metrics["few_steps"]
    assert again.revision == before.revision + 2  # whoever follows the pointer notices
    stages.champion_model(distilled, model, report, student)
    assert stages.current_champion(distilled) == again


def test_without_a_budget_the_fine_tuned_model_stands_in_the_students_place(distilled: Settings):
    off = distilled.model_copy(update={"distillation": type(distilled.distillation)()})
    model = newest(distilled, "fine_tuned_model")
    assert stages.distilled_model(off, newest(distilled, "training_cache"), model) is model
