"""Fine-tuning fills a folder that stock diffusers loads, or says what is wrong and leaves nothing."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genai_assets import durable
from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.fine_tuning import fine_tune, training_config
from genai_assets.settings import FineTuneSettings, SamplingSettings

SAMPLING = SamplingSettings(steps=1, guidance_scale=2.0)


def settings(**changes: Any) -> FineTuneSettings:
    plan: dict[str, Any] = {"max_steps": 2, "batch_size": 2}
    return FineTuneSettings(**(plan | changes))


def run(base: Path, cache: Path, place: Path, *, plan: FineTuneSettings | None = None, **more: Any) -> dict[str, Any]:
    out = place / "model"
    out.mkdir(parents=True, exist_ok=True)
    arguments = {"house_style": "plain", "model_version": "v1", "checkpoints": place / "checkpoints", "device": "cpu"}
    return fine_tune(base, cache, plan or settings(), SAMPLING, out, **(arguments | more))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_result_is_a_folder_that_stock_diffusers_loads_and_draws_with(tiny_base, cache_folder, tmp_path, method):
    from diffusers import DiffusionPipeline

    figures = run(tiny_base, cache_folder, tmp_path, plan=settings(method=method))
    model = tmp_path / "model"
    assert sorted(path.name for path in model.iterdir()) == [
        *(["lora"] if method == "lora" else []),
        "model.json",
        "model_index.json",
        "samples.png",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "transformer",
    ]
    assert figures["steps"] == 2 and figures["pictures_seen"] == 4 and figures["training_pictures"] == 9
    assert figures["method"] == method and np.isfinite(figures["final_loss"])

    pipeline: Any = DiffusionPipeline.from_pretrained(model, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("red disc", num_inference_steps=1, use_resolution_binning=False).images[0]
    assert picture.size == (64, 64)

    from safetensors.torch import load_file

    weights = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    before = load_file(tiny_base / "transformer" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == before.keys(), "no adapter's keys are left"
    assert any(not weights[name].equal(before[name].to(weights[name].dtype)) for name in weights)


def test_the_folder_says_what_it_is_and_shares_what_did_not_change(tiny_base, cache_folder, tmp_path):
    from PIL import Image

    from genai_assets.diffusion.base_model import model_facts

    before = durable.digest_tree(tiny_base)
    run(tiny_base, cache_folder, tmp_path, plan=settings(seed=3))
    model = tmp_path / "model"
    facts = model_facts(model)
    assert {name: facts[name] for name in ("model_version", "style", "resolution")} == {
        "model_version": "v1",
        "style": "plain",
        "resolution": 64,
    }
    assert facts["prompt_template"] == "{caption}, {style} style"
    assert facts["training"]["steps"] == 2 and facts["training"]["seed"] == 3
    for part in ("text_encoder", "tokenizer"):
        for file in (tiny_base / part).iterdir():
            assert os.path.samefile(file, model / part / file.name), "a hard link"
    assert durable.digest_tree(tiny_base) == before, "the base is as it was"
    with Image.open(model / "samples.png") as sheet:
        assert sheet.size == (4 * 128, 128), "three validation captions on one line"


def test_a_run_that_broke_off_goes_on_to_the_very_same_model(tiny_base, cache_folder, tmp_path):
    plan = settings(max_steps=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tiny_base, cache_folder, whole, plan=plan)

    def break_off(report: Any) -> None:
        if report.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(tiny_base, cache_folder, broken, plan=plan, on_step=break_off)
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert list((broken / "model").iterdir()) == []
    steps: list[int] = []
    run(tiny_base, cache_folder, broken, plan=plan, on_step=lambda report: steps.append(report.step))
    assert steps == [3]
    one, other = durable.digest_tree(broken / "model"), durable.digest_tree(whole / "model")
    assert one == other, "weights, facts and samples, byte by byte"


def test_the_budget_in_minutes_becomes_a_number_of_steps(tiny_base, cache_folder, tmp_path):
    figures = run(tiny_base, cache_folder, tmp_path, plan=settings(max_steps=5, max_minutes=5))
    assert figures["steps"] == 5
    shorter = run(tiny_base, cache_folder, tmp_path / "other", plan=settings(max_steps=5, max_minutes=1e-9))
    assert shorter["steps"] == 1


def test_the_plan_of_a_run_fits_its_length():
    plan = training_config(settings(batch_size=7, method="lora", lora_rank=3, seed=5), 400)
    assert (plan.steps, plan.batch_size, plan.method, plan.lora_rank, plan.seed) == (400, 7, "lora", 3, 5)
    assert (plan.warmup_steps, plan.checkpoint_every, plan.validate_every) == (20, 100, 66)
    shortest = training_config(settings(), 1)
    assert (shortest.warmup_steps, shortest.checkpoint_every, shortest.validate_every) == (0, 1, 1)
    assert training_config(FineTuneSettings(), 6000).validate_every == 250, "so that the best is found near its step"


def test_a_resolution_that_is_not_the_bases_own_is_trained_and_drawn_at(tiny_base, rows, tiny_pipeline, tmp_path):
    from genai_assets.diffusion import sampling
    from genai_assets.diffusion.families import family_of
    from genai_assets.diffusion.training_cache import build_training_cache
    from genai_assets_tests.diffusion.drawings import drawn_picture

    small = tmp_path / "small"
    small.mkdir()
    build_training_cache(
        rows,
        lambda record_id, size: drawn_picture(record_id)[::2, ::2],
        family_of(tiny_pipeline),
        small,
        resolution=32,
        prompt_template="{caption}",
    )
    run(tiny_base, small, tmp_path, plan=settings(resolution=32))
    drawer = sampling.load(tmp_path / "model", device="cpu")
    (picture,) = drawer.draw(["red disc"], seeds=[1], steps=1, guidance_scale=1)
    assert picture.size == (32, 32)


def test_a_loras_adapters_are_kept_by_themselves_too(tiny_base, cache_folder, tmp_path):
    from peft import PeftModel

    run(tiny_base, cache_folder, tmp_path, plan=settings(method="lora", lora_rank=3))
    model = tmp_path / "model"
    base, merged = load_pipeline(tiny_base).transformer, load_pipeline(model).transformer
    adapted = PeftModel.from_pretrained(base, str(model / "lora")).merge_and_unload()
    for name, weight in adapted.state_dict().items():
        torch.testing.assert_close(weight.bfloat16().float(), merged.state_dict()[name], rtol=0, atol=0, msg=name)


def test_an_empty_training_split_is_a_clear_error_that_names_the_style(tiny_base, cache_folder, tmp_path):
    for steps in (2, 50):
        with pytest.raises(ValueError, match=r"no pictures to train on.*'sketch'"):
            run(tiny_base, cache_folder, tmp_path, plan=settings(max_steps=steps), house_style="sketch")
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_adapters_of_a_base_that_was_trained_here_are_neither_taken_over_nor_changed(
    tiny_base, cache_folder, tmp_path, method
):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "lora").mkdir()
    (base / "lora" / "adapter_config.json").write_text("the base's own")
    run(base, cache_folder, tmp_path, plan=settings(method=method))
    assert (tmp_path / "model" / "lora").exists() == (method == "lora")
    assert (base / "lora" / "adapter_config.json").read_text() == "the base's own"
