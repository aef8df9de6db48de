"""At which noise levels a student draws."""

from pathlib import Path

import pytest

from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.distillation.levels import (
    CannotBeDistilled,
    choose_way,
    drawing_shift,
    drawn_levels,
    few_step_noise_scheduler,
    require_flow,
)
from genai_assets.diffusion.drawing.noise_schedulers import use_noise_scheduler
from genai_assets.diffusion.families import family_of
from genai_assets.settings import SamplingSettings
from genai_assets_tests.diffusion.distillation.conftest import prepared
from genai_assets_tests.diffusion.families import tiny_transformer, tiny_unet


def test_the_last_of_a_few_steps_still_has_noise_to_take_away(tiny_base: Path):
    family = prepared(tiny_base, 4)
    levels = drawn_levels(family, 4, 64)
    assert levels[0] == pytest.approx(1) and levels[-1] == 0
    assert levels[-2] == pytest.approx(0.4)  # a quarter, shifted by 2; Euler's noise scheduler by itself has 0.004 here
    use_noise_scheduler(family.pipeline, "euler")
    assert drawn_levels(family, 4, 64)[-2] < 0.01


def test_one_step_goes_from_noise_to_picture(tiny_base: Path):
    assert drawn_levels(prepared(tiny_base, 1), 1, 64) == [1, 0]


@pytest.mark.parametrize("save", [tiny_transformer.save_stable_diffusion_3, tiny_transformer.save_z_image])
def test_latent_families_tell_their_own_levels(save, tmp_path: Path):
    save(tmp_path / "model")
    shift = drawing_shift(require_flow(family_of(load_pipeline(tmp_path / "model"))))
    family = prepared(tmp_path / "model", 3)
    levels = drawn_levels(family, 3, 32)
    assert len(levels) == 4 and levels[2] == pytest.approx(shift / (2 + shift), abs=1e-4)
    assert few_step_noise_scheduler(family, 3).config.shift == shift


def test_a_noise_schedule_of_timesteps_is_refused_with_its_name(tmp_path: Path):
    tiny_unet.save_stable_diffusion(tmp_path / "model")
    with pytest.raises(CannotBeDistilled, match=r"Stable Diffusion draws by a noise schedule.*distillation\.max_steps"):
        require_flow(family_of(load_pipeline(tmp_path / "model")))


def test_a_model_that_knows_its_guidance_already_is_refused(tmp_path: Path):
    tiny_transformer.save_flux(tmp_path / "model", guidance_embeds=True)
    with pytest.raises(CannotBeDistilled, match="guidance costs it nothing"):
        require_flow(family_of(load_pipeline(tmp_path / "model")))


def test_guidance_is_learnt_of_a_teacher_that_is_drawn_in_few_steps_with_the_multistep_noise_scheduler(
    tiny_base: Path, tmp_path: Path
):
    own = require_flow(family_of(load_pipeline(tiny_base)))
    few, many = (SamplingSettings(steps=steps, guidance_scale=3.0) for steps in (8, 30))
    assert [choose_way(own, "auto", steps, few) for steps in (1, 3, 4)] == ["trajectory", "trajectory", "guidance"]
    assert choose_way(own, "auto", 4, many) == "trajectory"
    assert choose_way(own, "guidance", 4, many) == "guidance"
    tiny_transformer.save_z_image(tmp_path / "model")
    other = require_flow(family_of(load_pipeline(tmp_path / "model")))
    assert choose_way(other, "auto", 4, few) == "trajectory"


def test_where_there_is_no_guidance_none_is_learnt(tiny_base: Path):
    own = require_flow(family_of(load_pipeline(tiny_base)))
    without = SamplingSettings(steps=8, guidance_scale=1.0)
    assert choose_way(own, "auto", 4, without) == "trajectory"
    with pytest.raises(CannotBeDistilled, match=r"guidance_scale is 1.*distillation\.learns"):
        choose_way(own, "guidance", 4, without)
