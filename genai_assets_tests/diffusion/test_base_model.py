"""Base models: the embedded one is complete once assembled, and what cannot be used says why."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genai_assets import durable
from genai_assets.diffusion import base_model
from genai_assets.diffusion.base_model import (
    EMBEDDED,
    EMBEDDED_FOLDER,
    BaseModelError,
    assemble_base_model,
    base_model_version,
    load_pipeline,
    locate_base_model,
    model_facts,
    native_resolution,
)
from genai_assets.diffusion.pretraining import export_embedded_base


def draw_with_stock(folder: Path) -> np.ndarray:
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("red apple", num_inference_steps=1, use_resolution_binning=False).images[0]
    assert picture.size == (64, 64)
    return np.asarray(picture)


@pytest.mark.skipif(not EMBEDDED_FOLDER.is_dir(), reason="the embedded base is not in this working copy")
def test_the_embedded_base_is_complete_once_assembled_and_stock_diffusers_draws_with_it(tmp_path):
    summary = assemble_base_model(EMBEDDED, tmp_path)
    assert summary["family"] == "PRXPixelPipeline"
    assert summary["resolution"] == 64
    assert summary["parameters"] > 1_000_000
    assert draw_with_stock(tmp_path).std() > 0


def test_a_base_exported_without_its_text_encoder_is_made_whole_again(tiny_base, tmp_path):
    kept, whole = tmp_path / "kept", tmp_path / "whole"
    kept.mkdir()
    (kept / "README.md").write_text("the model's card")
    export_embedded_base(load_pipeline(tiny_base), kept)
    assert {path.name for path in kept.iterdir() if path.is_dir()} == {"scheduler", "transformer"}
    assert (kept / "README.md").read_text() == "the model's card"
    summary = assemble_base_model(str(kept), whole)
    from safetensors.numpy import load_file

    weights = load_file(tiny_base / "transformer" / "diffusion_pytorch_model.safetensors")
    assert summary["parameters"] == sum(weight.size for weight in weights.values())
    assert draw_with_stock(whole).std() > 0


def test_another_content_is_another_version(tiny_base, tmp_path):
    folder = tmp_path / "base"
    (folder / "transformer").mkdir(parents=True)
    shutil.copy2(tiny_base / "model_index.json", folder)
    weights = folder / "transformer" / "weights.safetensors"
    weights.write_bytes(b"one")
    first = base_model_version(str(folder))
    weights.write_bytes(b"two")
    assert base_model_version(str(folder)) != first
    weights.write_bytes(b"one")
    assert base_model_version(str(folder)) == first
    assert len(first) == 16


def test_a_base_model_that_is_no_folder_is_a_clear_error():
    with pytest.raises(BaseModelError, match=r"base_model is 'some/model', but there is no such folder.*embedded"):
        locate_base_model("some/model")


def test_the_native_resolution_is_read_without_the_weights(tiny_base, tmp_path):
    (tmp_path / "model_index.json").write_text((tiny_base / "model_index.json").read_text())
    assert native_resolution(str(tmp_path)) == 64


def test_a_folder_without_an_index_is_a_clear_error(tmp_path):
    with pytest.raises(BaseModelError, match=r"has no model_index\.json"):
        locate_base_model(str(tmp_path))


@pytest.mark.parametrize("index", ['{"_class_name": ', "[]", "{}", '{"_class_name": "AudioLDMPipeline"}'])
def test_a_folder_of_another_family_or_with_a_damaged_index_is_a_clear_error(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(BaseModelError, match=str(tmp_path)):
        locate_base_model(str(tmp_path))


def test_a_missing_text_encoder_package_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(base_model, "TEXT_ENCODER_PACKAGE", "no_such_package_at_all")
    with pytest.raises(BaseModelError, match="no_such_package_at_all is not installed: run `make setup`"):
        base_model.text_encoder_folder()


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "garbled"])
def test_a_damaged_model_folder_is_a_clear_error(tiny_base, tmp_path, part, damage):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder, copy_function=durable.link_or_copy)
    (weights,) = (folder / part).glob("*.safetensors")
    data = weights.read_bytes()
    weights.unlink()
    if damage == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "garbled":
        weights.write_bytes(b"\xff" * 100)
    with pytest.raises(BaseModelError, match=str(folder)):
        load_pipeline(folder)


def test_a_folder_this_project_did_not_make_has_no_facts(tmp_path):
    with pytest.raises(BaseModelError, match=r"has no model\.json"):
        model_facts(tmp_path)
    durable.write_json(tmp_path / "model.json", {"style": "plain"})
    assert model_facts(tmp_path) == {"style": "plain"}


def test_a_new_pipeline_depends_on_its_seed_and_not_on_what_was_drawn_before(tiny_base):
    import torch

    from genai_assets.diffusion.config import DenoiserConfig
    from genai_assets_tests.diffusion.weights import digest_weights

    shape = DenoiserConfig(hidden_size=64, depth=1, num_heads=2, axes_dim=(16, 16), bottleneck_size=16)

    def make(seed: int) -> dict[str, str]:
        torch.rand(3)
        return digest_weights(base_model.new_pipeline(shape, resolution=64, seed=seed).transformer)

    assert make(1) == make(1) != make(2)


def test_the_index_of_a_base_says_its_resolution(tiny_base):
    assert json.loads((tiny_base / "model_index.json").read_text())["default_sample_size"] == 64
