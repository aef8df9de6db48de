"""Each noise scheduler is stock, keeps the model's shift, and draws the same here as in the stock pipeline."""

import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from genai_assets.diffusion import sampling
from genai_assets.diffusion.drawing.backends import forward_replaced
from genai_assets.diffusion.drawing.noise_schedulers import (
    NOISE_SCHEDULERS,
    calls,
    main,
    new_noise_scheduler,
    save_noise_scheduler,
    shift_of,
    use_noise_scheduler,
)
from genai_assets_tests.diffusion.families import tiny_transformer

# DPM-Solver++ of diffusers on numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.parametrize("name", NOISE_SCHEDULERS)
def test_a_saved_choice_is_what_stock_diffusers_draws_with(name, tiny_base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    save_noise_scheduler(folder, name)
    stock: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert shift_of(stock.scheduler) == 2.0
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        "red disc",
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        use_resolution_binning=False,
    ).images[0]
    told = []
    (ours,) = sampling.load(folder, exact=True).draw(
        ["red disc"], seeds=[5], steps=4, guidance_scale=3.0, on_step=lambda done, total: told.append((done, total))
    )
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
    assert len(told) == calls(name, 4)
    assert told[-1] == (4, 4)


# Not Heun's: the stock pipeline divides by 0.05 at the least, which makes the correction of its last steps wrong.
@pytest.mark.parametrize("name", ["euler", "dpm++", "unipc"])
def test_led_by_a_denoiser_that_knows_the_picture_each_ends_there(name, tiny_base):
    drawer = sampling.load(tiny_base, exact=True)
    use_noise_scheduler(drawer.family.pipeline, name)

    def knows(hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        return (torch.full_like(hidden_states, 0.5),)

    with forward_replaced(drawer.family.denoiser, knows):
        (found,) = drawer.draw(["red disc"], seeds=[5], steps=12, guidance_scale=3.0)
    assert np.abs(np.asarray(found).astype(int) - 191).max() <= 3


def test_an_unknown_name_and_a_pipeline_of_another_kind_are_clear_errors(tiny_base, tiny_pipeline, tmp_path):
    with pytest.raises(ValueError, match="no noise scheduler 'best'; there are: euler, heun"):
        new_noise_scheduler("best", shift=1.0)
    shutil.copytree(tiny_base, tmp_path / "model")
    place = tmp_path / "model" / "scheduler"
    DDPMScheduler().save_pretrained(place)
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", "DDPMScheduler"]}))
    with pytest.raises(ValueError, match="DDPMScheduler is no noise scheduler of flow matching"):
        save_noise_scheduler(tmp_path / "model", "heun")


def test_a_hard_link_to_the_base_is_not_written_through(tiny_base, tmp_path):
    from genai_assets import durable

    before = (tiny_base / "scheduler/scheduler_config.json").read_text()
    shutil.copytree(tiny_base, tmp_path / "model", copy_function=durable.link_or_copy)
    save_noise_scheduler(tmp_path / "model", "dpm++")
    assert (tiny_base / "scheduler/scheduler_config.json").read_text() == before


FAMILIES = {
    "Stable Diffusion 3": (tiny_transformer.save_stable_diffusion_3, NOISE_SCHEDULERS),
    "Sana": (tiny_transformer.save_sana, NOISE_SCHEDULERS),
    "Flux": (tiny_transformer.save_flux, ("euler",)),
    "Z-Image": (tiny_transformer.save_z_image, ("euler",)),
    "Qwen-Image": (tiny_transformer.save_qwen_image, ("euler",)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_draws_with_what_it_accepts_and_keeps_its_folder_when_it_refuses(family, tmp_path):
    save, accepted = FAMILIES[family]
    save(tmp_path / "model")
    place = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    before = place.read_text()
    if json.loads(before).get("use_dynamic_shifting"):
        with pytest.raises(ValueError, match="shifts sigmas by the picture's size"):
            save_noise_scheduler(tmp_path / "model", "euler")
        assert place.read_text() == before
        before = json.dumps(json.loads(before) | {"use_dynamic_shifting": False})
        place.write_text(before)
    for name in sorted(NOISE_SCHEDULERS, key=lambda name: name in accepted):  # first what is refused
        if name not in accepted:
            with pytest.raises(ValueError, match=rf"\({re.escape(name)}\) does not take"):
                save_noise_scheduler(tmp_path / "model", name)
            assert place.read_text() == before
            continue
        save_noise_scheduler(tmp_path / "model", name)
        drawer = sampling.load(tmp_path / "model", exact=True, resolution=32)
        (picture,) = drawer.draw(["an owl"], seeds=[5], steps=2, guidance_scale=1.0)
        assert np.isfinite(np.asarray(picture)).all()


def test_a_finished_artifact_is_left_as_its_receipt_says(tiny_base, tmp_path, capsys):
    shutil.copytree(tiny_base, tmp_path / "model")
    (tmp_path / "model" / "artifact.json").write_text("{}")
    before = (tmp_path / "model/scheduler/scheduler_config.json").read_text()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model"), "euler"])
    assert "copy the folder" in capsys.readouterr().err
    assert (tmp_path / "model/scheduler/scheduler_config.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "required: folder, name"), (["nowhere", "best"], "invalid choice"), (["nowhere", "euler"], "no folder of a")],
)
def test_a_wrong_command_is_answered_in_words(arguments, told, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert told in capsys.readouterr().err
