"""From a teacher's folder to a student's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genai_assets import durable
from genai_assets.diffusion.base_model import load_pipeline, model_facts
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.distillation.distil import distil
from genai_assets.diffusion.distillation.levels import CannotBeDistilled
from genai_assets.diffusion.distillation.trajectories import TrajectoriesDrawn
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.sampling import Drawer
from genai_assets.diffusion.training_cache import build_training_cache
from genai_assets.settings import DistillationSettings, SamplingSettings
from genai_assets_tests.diffusion.drawings import drawn_picture, drawn_rows
from genai_assets_tests.diffusion.families import tiny_transformer
from genai_assets_tests.diffusion.families.tiny_transformer import save_flux
from genai_assets_tests.diffusion.test_exact_resume import die, digests, in_a_fork

SAMPLING = SamplingSettings(steps=3, guidance_scale=2.0)


def settings(**changes: Any) -> DistillationSettings:
    plan = {"max_steps": 8, "batch_size": 4, "drawing_steps": 2, "teacher_steps": 2, "trajectories": 4}
    return DistillationSettings.model_validate(plan | {"learning_rate": 1e-3, "learns": "trajectory"} | changes)


def run(teacher: Path, cache: Path, place: Path, *, plan: DistillationSettings | None = None, **more: Any) -> Any:
    out = place / "model"
    out.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {"house_style": "plain", "model_version": "m-student", "device": "cpu"}
    arguments |= {"checkpoints": place / "checkpoints", "sampling": SAMPLING, "out": out}
    return distil(teacher, cache, plan or settings(), **(arguments | more))


def draws_as_this_project_does(pipeline: Any, model: Path, *, steps: int) -> bool:
    """Whether a stock pipeline draws what we draw from the same folder, but for two of 256 levels."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    asked = {"num_inference_steps": steps, "guidance_scale": 1.0, "use_resolution_binning": False}
    stock = pipeline("red disc, plain style", generator=generator, **asked).images[0]
    drawer = Drawer(load_pipeline(model), torch.device("cpu"), dtype=torch.float32, resolution=64)
    [ours] = drawer.draw(["red disc, plain style"], seeds=[5], steps=steps, guidance_scale=1.0)
    return np.abs(np.asarray(stock, dtype=int) - np.asarray(ours, dtype=int)).max() <= 2


def test_the_student_is_a_folder_that_stock_diffusers_draws_as_this_project_does(
    teacher_folder: Path, cache_folder: Path, tmp_path: Path
):
    from diffusers import DiffusionPipeline

    before, reports = durable.digest_tree(teacher_folder), []
    figures = run(teacher_folder, cache_folder, tmp_path, on_step=reports.append)
    assert durable.digest_tree(teacher_folder) == before, "what the two share must not be written over"
    assert isinstance(reports[0], TrajectoriesDrawn) and reports[-1].step == reports[-1].steps == 8
    assert figures["trajectories"] == 4 and figures["steps"] == 8 and np.isfinite(figures["final_loss"])

    model = tmp_path / "model"
    facts = model_facts(model)
    assert facts["sampling"] == {"steps": 2, "guidance_scale": 1.0}
    assert (facts["model_version"], facts["distilled_from"], facts["resolution"]) == ("m-student", "m-teacher", 64)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert durable.digest_tree(model)[weights] != before[weights]
    assert (model / "samples.png").is_file()

    pipeline: Any = DiffusionPipeline.from_pretrained(model, local_files_only=True, use_safetensors=True)
    assert draws_as_this_project_does(pipeline, model, steps=2)


def test_a_student_of_guidance_draws_with_the_multistep_noise_scheduler_as_stock_diffusers_does(
    teacher_folder: Path, cache_folder: Path, tmp_path: Path
):
    from diffusers import DiffusionPipeline

    figures = run(teacher_folder, cache_folder, tmp_path, plan=settings(drawing_steps=3, learns="auto"))
    assert figures["learns"] == "guidance" and figures["trajectories"] == 4
    model = tmp_path / "model"
    assert model_facts(model)["sampling"] == {"steps": 3, "guidance_scale": 1.0}
    pipeline: Any = DiffusionPipeline.from_pretrained(model, local_files_only=True, use_safetensors=True)
    assert type(pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert pipeline.scheduler.config.flow_shift == 2.0
    assert draws_as_this_project_does(pipeline, model, steps=3)


def test_a_way_that_the_teacher_does_not_allow_is_refused_before_anything_is_drawn(cache_folder: Path, tmp_path: Path):
    save_flux(tmp_path / "teacher", guidance_embeds=False)
    facts = {"model_version": "m", "style": "plain", "prompt_template": "{caption}", "resolution": 32}
    (tmp_path / "teacher" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(CannotBeDistilled, match=r'distillation\.learns to "trajectory"'):
        run(tmp_path / "teacher", cache_folder, tmp_path, plan=settings(learns="guidance"))
    assert not (tmp_path / "checkpoints").exists()


def test_the_student_takes_over_whom_to_credit_and_not_its_teachers_adapters(
    teacher_folder: Path, cache_folder: Path, tmp_path: Path
):
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_folder, teacher)
    (teacher / "ATTRIBUTION.md").write_text("Pictures by Ada")
    (teacher / "lora").mkdir()
    (teacher / "lora" / "adapter_config.json").write_text("{}")
    run(teacher, cache_folder, tmp_path)
    assert (tmp_path / "model" / "ATTRIBUTION.md").read_text() == "Pictures by Ada"
    assert not (tmp_path / "model" / "lora").exists()


@pytest.mark.parametrize("learns", ["guidance", "trajectory"])
def test_training_brings_the_student_nearer_to_its_teacher(
    teacher_folder: Path, cache_folder: Path, tmp_path: Path, learns: str
):
    plan = settings(max_steps=60, batch_size=16, trajectories=24, learns=learns)
    # A random teacher hardly heeds its prompt: only much guidance is worth learning.
    strong = SAMPLING.model_copy(update={"guidance_scale": 8.0})
    figures = run(teacher_folder, cache_folder, tmp_path, plan=plan, sampling=strong)
    assert figures["validation_loss"] < 0.6 * figures["first_validation_loss"]


@pytest.mark.parametrize(("learns", "weight"), [("trajectory", 0.0), ("trajectory", 0.5), ("guidance", 0.0)])
def test_a_killed_run_goes_on_and_ends_the_same(
    teacher_folder: Path, cache_folder: Path, tmp_path: Path, learns: str, weight: float
):
    plan = settings(learns=learns, adversarial_weight=weight)
    run(teacher_folder, cache_folder, tmp_path / "whole", plan=plan)

    def die_at_five(report: Any) -> None:
        if getattr(report, "step", 0) == 5:
            die()

    killed = tmp_path / "killed"
    assert in_a_fork(lambda: run(teacher_folder, cache_folder, killed, plan=plan, on_step=die_at_five)) == -9
    found = CheckpointFolder(killed / "checkpoints" / "state").newest_valid()
    assert found and found[0] == 4
    told: list[Any] = []
    run(teacher_folder, cache_folder, killed, plan=plan, on_step=told.append)
    assert [report.step for report in told] == [5, 6, 7, 8], "nothing is drawn or trained twice"
    states = [digests(place / "checkpoints" / "state") for place in (tmp_path / "whole", killed)]
    assert states[0] == states[1]


def test_a_discriminator_learns_beside_the_student_and_is_not_in_its_folder(
    teacher_folder: Path, cache_folder: Path, tmp_path: Path
):
    run(teacher_folder, cache_folder, tmp_path, plan=settings(adversarial_weight=0.5))
    found = CheckpointFolder(tmp_path / "checkpoints" / "state").newest_valid()
    assert found
    learnt = {name: value for name, value in found[1].items() if name.startswith("optimizer.exp_avg.discriminator.")}
    assert learnt and all(value.abs().sum() > 0 for value in learnt.values())
    folder = json.dumps(sorted(durable.digest_tree(tmp_path / "model")))
    assert "discriminator" not in folder


def latent_teacher(folder: Path) -> Family:
    from genai_assets.diffusion.families import family_of

    tiny_transformer.save_stable_diffusion_3(folder)
    facts = {"model_version": "m-latent", "style": "plain", "prompt_template": "{caption}", "resolution": 32}
    (folder / "model.json").write_text(json.dumps(facts))
    return family_of(load_pipeline(folder))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_a_latent_model_is_distilled_alike_and_its_pixels_are_not_judged(tmp_path: Path):
    family = latent_teacher(tmp_path / "teacher")
    cache = tmp_path / "cache"
    cache.mkdir()
    build_training_cache(
        drawn_rows(),
        lambda record_id, size: drawn_picture(record_id)[::2, ::2],
        family,
        cache,
        resolution=32,
        prompt_template="{caption}",
    )
    figures = run(tmp_path / "teacher", cache, tmp_path)
    assert figures["family"] == "Stable Diffusion 3" and np.isfinite(figures["final_loss"])
    pipeline = load_pipeline(tmp_path / "model")
    assert pipeline.scheduler.config.shift == 3.0 and pipeline.scheduler.config.shift_terminal == pytest.approx(0.75)
    with pytest.raises(CannotBeDistilled, match=r"distillation\.adversarial_weight to 0"):
        run(tmp_path / "teacher", cache, tmp_path / "judged", plan=settings(adversarial_weight=0.5))
