"""The measure of parity."""

import numpy as np
import pytest

from genai_assets.diffusion import sampling
from genai_assets.diffusion.drawing.parity import MOST_DECIBELS, parity_with_exact, psnr


def test_equal_pictures_have_the_highest_ratio_there_is():
    pictures = np.full((2, 4, 4, 3), 7, np.uint8)
    assert psnr(pictures, pictures) == MOST_DECIBELS


def test_one_step_of_256_off_everywhere_is_48_decibels():
    pictures = np.full((2, 4, 4, 3), 7, np.uint8)
    assert psnr(pictures, pictures + 1) == pytest.approx(48.13, abs=0.01)
    assert psnr(pictures + 1, pictures) == psnr(pictures, pictures + 1), "below zero is not wrapped round"


def test_pictures_that_do_not_match_are_a_clear_error():
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8))


def test_bf16_is_measured_against_fp32_of_the_same_prompts_and_seeds(tiny_base):
    asked = {"seeds": [3, 4], "steps": 2, "guidance_scale": 3.0}
    exact = sampling.load(tiny_base, exact=True)
    pictures = sampling.load(tiny_base, backend="eager").draw(["a", "b"], **asked)
    near = parity_with_exact(exact, pictures, ["a", "b"], **asked)
    assert 30 < near < MOST_DECIBELS
    assert parity_with_exact(exact, exact.draw(["a", "b"], **asked), ["a", "b"], **asked) == MOST_DECIBELS
    assert parity_with_exact(exact, pictures[::-1], ["a", "b"], **asked) < near
