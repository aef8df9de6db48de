"""Changed pictures: within the asked bounds, the same for the same dice, and mirrored only where captions allow it."""

import numpy as np
import pytest

from genai_assets.diffusion.augmentation import change, changes, may_flip, mirror
from genai_assets.diffusion.config import Augmentation
from genai_assets_tests.diffusion.drawings import drawn_picture

RING = drawn_picture("red-ring")
BLACK = np.zeros((40, 60, 3), dtype=np.uint8)


def changed(picture: np.ndarray, seed: int = 0, **asked: float) -> np.ndarray:
    return change(picture, Augmentation.model_validate({"flip": 0, **asked}), np.random.default_rng(seed))


@pytest.mark.parametrize(
    "caption",
    [
        "person facing left",
        "Right hand",
        "clockwise vertical arrows",
        "letter A",
        "input digits",
        "keycap: star",
        "flag: Norway",
        "twelve o’clock",
        "musical notes",
        "a sign with the words no entry",
        "OK hand",
        "2nd place medal",
        "Japanese “here” button",
        "right-facing fist",
        "world MAP",
    ],
)
def test_what_is_wrong_in_a_mirror_is_never_mirrored(caption):
    assert not may_flip(caption)


@pytest.mark.parametrize(
    "caption",
    ["slice of pizza", "bright star", "a cleft stone", "Smiling Cat", "swordfish", "flagstone", "T-shirt", ""],
)
def test_what_is_the_same_in_a_mirror_may_be_mirrored(caption):
    assert may_flip(caption)


def test_a_mirrored_picture_has_its_left_on_the_right():
    pictures = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    assert np.array_equal(mirror(pictures)[:, :, 0], pictures[:, :, 3])
    assert np.array_equal(mirror(mirror(pictures[0])), pictures[0])


def test_nothing_asked_changes_nothing():
    assert not changes(Augmentation(flip=1))
    assert np.array_equal(changed(RING), RING)


@pytest.mark.parametrize("asked", [{"crop": 0.2}, {"colour": 0.3}, {"rotation": 10}])
def test_the_same_dice_give_the_same_picture_and_others_another(asked):
    assert changes(Augmentation(**asked))
    before = RING.copy()
    one, same, other = (changed(RING, seed, **asked) for seed in (1, 1, 2))
    assert one.shape == RING.shape and one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, RING) and not np.array_equal(one, other)
    assert np.array_equal(RING, before)


def test_corners_that_turned_away_are_white_and_the_middle_stays():
    turned = [seed for seed in range(20) if abs(np.random.default_rng(seed).uniform(-1, 1)) > 0.3]
    assert len(turned) > 10
    for seed in turned:
        picture = changed(BLACK, seed, rotation=30)
        assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        assert (picture[15:25, 25:35] == 0).all()


def test_a_picture_turns_no_further_than_asked():
    line = np.full((101, 101, 3), 255, dtype=np.uint8)
    line[50] = 0
    angles = []
    for seed in range(30):
        dark = changed(line, seed, rotation=10)[:, :, 0] < 128
        left, right = (np.flatnonzero(dark[:, column]).mean() for column in (10, 90))
        angles.append(np.degrees(np.arctan2(right - left, 80)))
    assert max(np.abs(angles)) <= 10.5
    assert min(angles) < -4 and max(angles) > 4, "either way"


def test_a_cropped_picture_shows_a_part_of_at_least_the_asked_size():
    across = np.linspace(0, 255, 200, dtype=np.uint8)
    ramp = np.repeat(np.broadcast_to(across[None, :, None], (100, 200, 1)), 3, axis=2)
    spans = [np.ptp(changed(ramp, seed, crop=0.3)[50, :, 0].astype(int)) / 255 for seed in range(40)]
    assert min(spans) == pytest.approx(0.7, abs=0.05)
    assert max(spans) > 0.95
    assert (changed(ramp, 3, crop=0.3) != 255).any(axis=2).mean() > 0.95, "nothing white comes in from outside"


def test_colours_move_no_further_than_asked():
    grey = np.full((4, 4, 3), 100, dtype=np.uint8)
    levels = [int(changed(grey, seed, colour=0.2)[0, 0, 0]) for seed in range(60)]
    assert 79 <= min(levels) < 88 and 112 < max(levels) <= 121
    assert all(np.ptp(changed(grey, seed, colour=0.5)[0, 0].astype(int)) <= 1 for seed in range(10)), "grey stays grey"


def test_a_mean_colour_that_only_gains_contrast_stays():
    """Of the three factors, brightness alone moves a grey mean."""
    two = np.full((2, 2, 3), 60, dtype=np.uint8)
    two[0] = 140
    for seed in range(20):
        brightness = 1 + 0.2 * np.random.default_rng(seed).uniform(-1, 1, size=4)[1]
        assert changed(two, seed, colour=0.2).mean() == pytest.approx(100 * brightness, abs=1)
