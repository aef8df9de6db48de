"""From a pipeline folder to a pipeline folder that stock diffusers loads, with only the decoder another one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from genai_assets import durable
from genai_assets.diffusion.autoencoder.config import AutoencoderConfig
from genai_assets.diffusion.autoencoder.fine_tuning import (
    fine_tune_autoencoder,
    require_autoencoder,
    trainable_autoencoder,
)
from genai_assets.diffusion.autoencoder.pictures import Pictures
from genai_assets.diffusion.autoencoder.reconstruction import psnr, reconstruct
from genai_assets.diffusion.autoencoder.training import AutoencoderDiverged, AutoencoderStep, is_of_encoder
from genai_assets.diffusion.base_model import BaseModelError
from genai_assets.evaluation.features import PictureFeatures
from genai_assets.evaluation.perceptual import PictureKid
from genai_assets_tests.diffusion.autoencoder.tiny_autoencoder import SIDE, drawn_pictures, save_stable_diffusion

WEIGHTS = "diffusion_pytorch_model.safetensors"
STEPS = 24


def tune(base: Path, out: Path, perceptual: Any, **more: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    plan = {
        "steps": STEPS,
        "batch_size": 4,
        "learning_rate": 4e-3,
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "adversarial_start": 20,
        "perceptual_weight": 0.5,
        "discriminator_width": 8,
        "discriminator_layers": 2,
        "validate_every": 12,
        "checkpoint_every": 8,
    }
    return fine_tune_autoencoder(
        base,
        Pictures.of_array(drawn_pictures("train")),
        more.pop("validation", Pictures.of_array(drawn_pictures("validation"))),
        AutoencoderConfig.model_validate(plan | more.pop("changes", {})),
        out,
        checkpoints=more.pop("checkpoints", out.with_name("checkpoints")),
        device="cpu",
        perceptual=perceptual,
        **more,
    )


@pytest.fixture(scope="module")
def tuned(stable_diffusion: Path, perceptual: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished folder, and its figures."""
    out = tmp_path_factory.mktemp("tuned") / "model"
    distance = PictureKid(PictureFeatures(resolution=SIDE))
    return out, tune(stable_diffusion, out, perceptual, distance=distance)


def drawn_with_stock_diffusers(folder: Path) -> np.ndarray:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    drawn = pipeline("a red disc", num_inference_steps=2, generator=generator, height=SIDE, width=SIDE)
    return np.asarray(drawn.images[0])


def test_unseen_pictures_are_rendered_better_than_by_the_base(tuned):
    figures = tuned[1]
    assert figures["psnr_after"] > figures["psnr_before"] + 3
    assert figures["kid_after"] < figures["kid_before"]
    assert figures["kid_floor"] < figures["kid_before"]


def test_the_figures_are_of_the_autoencoder_that_was_saved(tuned):
    from diffusers import AutoencoderKL

    folder, figures = tuned
    saved = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
    validation = drawn_pictures("validation")
    found = psnr(validation, reconstruct(saved, validation, torch.device("cpu"))).mean()
    assert found == pytest.approx(figures["psnr_after"], abs=1e-3)
    assert json.loads(json.dumps(figures)) == figures, "plain JSON"


def test_stock_diffusers_loads_the_folder_and_draws_another_picture_with_it(tuned, stable_diffusion):
    before, after = drawn_with_stock_diffusers(stable_diffusion), drawn_with_stock_diffusers(tuned[0])
    assert after.shape == (SIDE, SIDE, 3)
    assert np.abs(before.astype(int) - after).mean() > 1


def test_only_the_decoder_changed_and_the_rest_costs_no_disk(tuned, stable_diffusion):
    folder = tuned[0]
    before, after = (load_file(path / "vae" / WEIGHTS) for path in (stable_diffusion, folder))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == is_of_encoder(name), name
    old, new = durable.digest_tree(stable_diffusion), durable.digest_tree(folder)
    assert {name for name in new if old.get(name) != new[name]} <= {
        f"vae/{WEIGHTS}", "vae/config.json", "reconstructions.png"
    }  # fmt: skip
    assert set(old) <= set(new)
    assert (folder / "unet" / WEIGHTS).stat().st_ino == (stable_diffusion / "unet" / WEIGHTS).stat().st_ino
    told = [json.loads((path / "vae" / "config.json").read_text()) for path in (stable_diffusion, folder)]
    assert told[0] == {name: value for name, value in told[1].items() if name != "_name_or_path"}


def test_the_sheet_shows_original_before_and_after_side_by_side(tuned):
    sheet = np.asarray(Image.open(tuned[0] / "reconstructions.png")).astype(int)
    validation = drawn_pictures("validation")
    cell = sheet.shape[1] // 3
    body = sheet[sheet.shape[0] % cell :]  # under the names of the columns
    original, before, after = (body[:, column * cell : (column + 1) * cell] for column in range(3))
    assert np.array_equal(original[:cell][:: cell // SIDE, :: cell // SIDE], validation[0])
    assert np.abs(original - after).mean() < np.abs(original - before).mean()


def test_a_run_killed_and_begun_again_saves_the_very_same_folder(tuned, stable_diffusion, perceptual, tmp_path):
    class Killed(Exception):
        pass

    def kill(report: AutoencoderStep) -> None:
        if report.step == 21:
            raise Killed

    kid = PictureKid(PictureFeatures(resolution=SIDE))
    with pytest.raises(Killed):
        tune(stable_diffusion, tmp_path / "model", perceptual, distance=kid, on_step=kill)
    assert list((tmp_path / "model").iterdir()) == []
    reports: list[AutoencoderStep] = []
    figures = tune(stable_diffusion, tmp_path / "model", perceptual, distance=kid, on_step=reports.append)
    assert reports[0].step == 17
    assert durable.digest_tree(tmp_path / "model") == durable.digest_tree(tuned[0])
    took = "training_seconds"
    assert figures | {took: 0} == tuned[1] | {took: 0}


def test_a_trained_encoder_is_told_as_a_changed_latent_space(stable_diffusion, perceptual, tmp_path):
    figures = tune(
        stable_diffusion, tmp_path / "model", perceptual, changes={"train_encoder": True, "steps": 3, "kl_weight": 0.1}
    )
    assert figures["latents_changed"] and figures["scaled_latent_std"] > 0
    assert figures["kid_before"] is None and figures["psnr_before"] is not None
    before, after = (load_file(path / "vae" / WEIGHTS) for path in (stable_diffusion, tmp_path / "model"))
    assert not torch.equal(before["encoder.conv_in.weight"], after["encoder.conv_in.weight"])


def test_a_budget_of_minutes_becomes_a_number_of_steps_that_a_second_try_keeps(stable_diffusion, perceptual, tmp_path):
    class Killed(Exception):
        pass

    def kill(_: AutoencoderStep) -> None:
        raise Killed

    more: dict[str, Any] = {"changes": {"steps": 5, "checkpoint_every": 1}, "checkpoints": tmp_path / "state"}
    with pytest.raises(Killed):
        tune(stable_diffusion, tmp_path / "model", perceptual, max_minutes=60, on_step=kill, **more)
    figures = tune(stable_diffusion, tmp_path / "model", perceptual, max_minutes=1e-6, **more)
    assert figures["steps"] == 5, "the steps that were set are fewer than an hour allows, and are kept"
    more = {"changes": {"steps": 10_000}, "checkpoints": tmp_path / "other"}
    assert tune(stable_diffusion, tmp_path / "short", perceptual, max_minutes=1e-6, **more)["steps"] == 1


def test_an_autoencoder_stored_in_half_precision_stays_so_with_its_encoder_untouched(
    stable_diffusion, perceptual, tmp_path
):
    import shutil

    base = tmp_path / "half"
    shutil.copytree(stable_diffusion, base)
    halves = {name: tensor.half() for name, tensor in load_file(base / "vae" / WEIGHTS).items()}
    save_file(halves, base / "vae" / WEIGHTS, metadata={"format": "pt"})
    tune(base, tmp_path / "model", perceptual, changes={"steps": 2})
    after = load_file(tmp_path / "model" / "vae" / WEIGHTS)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert all(torch.equal(halves[name], after[name]) for name in halves if is_of_encoder(name))


def test_a_broken_base_stops_with_a_word_and_nothing_is_saved(perceptual, tmp_path):
    base = tmp_path / "base"
    save_stable_diffusion(base)
    weights = load_file(base / "vae" / WEIGHTS)
    weights["decoder.conv_out.bias"][0] = torch.nan
    save_file(weights, base / "vae" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(AutoencoderDiverged, match="nothing was saved"):
        tune(base, tmp_path / "model", perceptual)
    assert list((tmp_path / "model").iterdir()) == [] and not (tmp_path / "checkpoints").exists()


def test_without_validation_pictures_there_is_no_figure_and_no_sheet(stable_diffusion, perceptual, tmp_path):
    nothing = Pictures.of_array(drawn_pictures("validation")[:0])
    figures = tune(stable_diffusion, tmp_path / "model", perceptual, changes={"steps": 1}, validation=nothing)
    assert figures["psnr_after"] is None and figures["scaled_latent_std"] is None
    assert not (tmp_path / "model" / "reconstructions.png").exists()


def test_a_model_that_works_on_pixels_is_refused_by_name(tiny_base):
    assert not trainable_autoencoder(tiny_base)
    with pytest.raises(BaseModelError, match=r"PRX pixel \(PRXPixelPipeline\) has no autoencoder.*own pixels"):
        require_autoencoder(tiny_base)


def test_an_autoencoder_of_another_kind_is_refused_by_name(stable_diffusion, perceptual, tmp_path):
    assert trainable_autoencoder(stable_diffusion)
    index = {"_class_name": "SanaPipeline", "vae": ["diffusers", "AutoencoderDC"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=r"autoencoder of Sana \(SanaPipeline\) is an AutoencoderDC"):
        tune(tmp_path, tmp_path / "model", perceptual)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match=r"model_index\.json"):
        require_autoencoder(tmp_path)
