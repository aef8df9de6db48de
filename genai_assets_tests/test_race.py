"""The race says who was sooner where, trains both sides on the same, and draws with what they have learnt."""

import math

import numpy as np
import pytest
import torch

from benchmarks import race
from benchmarks.race import Point, judge, time_to_reach
from genai_assets.diffusion.base_model import new_pipeline
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.diffusion.families.prx import PRXPixel

FALLING = [Point(10, 0.8), Point(40, 0.4), Point(160, 0.2)]


def curve(*points: tuple[float, float]) -> list[Point]:
    return [Point(seconds, kid) for seconds, kid in points]


def test_between_two_points_kid_falls_evenly_with_the_logarithm_of_time():
    assert time_to_reach(FALLING, 0.6) == pytest.approx(20)
    assert time_to_reach(FALLING, 0.4) == pytest.approx(40)
    assert time_to_reach(FALLING[::-1], 0.3) == pytest.approx(80)  # the order they are given in does not matter


def test_the_time_counts_from_which_on_the_curve_stays_there():
    assert time_to_reach(curve((10, 0.8), (40, 0.4), (80, 0.7), (160, 0.2)), 0.6) == pytest.approx(80 * 2**0.2)
    assert time_to_reach(curve((10, 0.5), (160, 0.7)), 0.6) is None


def test_what_was_never_reached_has_no_time_and_what_was_there_at_first_has_the_first():
    assert time_to_reach(FALLING, 0.1) is None
    assert time_to_reach(FALLING, 0.9) == 10


def test_the_ratio_is_the_peers_time_over_ours_to_the_peers_last_kid():
    outcome = judge(FALLING, curve((80, 0.9), (160, 0.6)), untrained=1.0)
    assert outcome.ratio == pytest.approx(160 / 20)
    assert (outcome.ours, outcome.peer, outcome.kid, outcome.bound) == (pytest.approx(20), 160, 0.6, False)


def test_ours_there_at_its_first_point_gives_a_ratio_that_is_only_a_bound():
    outcome = judge(FALLING, curve((160, 0.85)), untrained=1.0)
    assert (outcome.ratio, outcome.bound) == (16, True)


def test_ours_that_never_came_so_far_is_told_as_slower():
    outcome = judge(curve((10, 0.8), (160, 0.6)), FALLING, untrained=1.0)
    assert outcome.ratio == pytest.approx(20 / 160)
    assert outcome.kid == 0.6


def test_a_peer_that_draws_no_better_than_untrained_gives_a_bound():
    outcome = judge(FALLING, curve((160, 2.0)), untrained=0.6)
    assert outcome.ratio == pytest.approx(160 / 20)
    assert (outcome.kid, outcome.bound) == (0.6, True)


def test_blobs_that_are_no_better_than_untrained_leave_the_race_undecided():
    grey_then_blobs = curve((10, 1.1), (160, 1.5))
    assert judge(grey_then_blobs, curve((160, 1.4)), untrained=1.15).ratio is None


def test_a_side_without_points_is_refused():
    with pytest.raises(ValueError, match="needs a point"):
        judge([], FALLING, untrained=1.0)


def test_the_peer_has_as_many_parameters():
    ours, peer = (
        sum(weight.numel() for weight in make().transformer.parameters())
        for make in (race.our_pipeline, race.peer_pipeline)
    )
    assert abs(peer / ours - 1) < 0.02


def test_any_length_of_a_race_has_a_rate_that_never_falls():
    for minutes in (4, 60):
        config = race.run_config(minutes)
        assert config.learning_rate_at(10**6 - 1) == config.learning_rate


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return race.make_pictures(tmp_path_factory.mktemp("shapes"), limit=24)


def tiny_pipeline():
    shape = DenoiserConfig(hidden_size=64, depth=1, num_heads=1, bottleneck_size=16, axes_dim=(32, 32))
    return new_pipeline(shape, resolution=64, seed=0)


def tiny_unet_pipeline():
    from diffusers import UNet2DConditionModel

    pipeline = tiny_pipeline()
    torch.manual_seed(0)
    pipeline.transformer = UNet2DConditionModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=384,
        attention_head_dim=2,
    )
    return pipeline


def test_made_up_pictures_are_told_apart_and_captioned(cache):
    pictures = race.pictures_of(cache, cache.select("train"))
    assert pictures.shape == (24, 64, 64, 3)
    assert len({picture.tobytes() for picture in pictures}) == 24
    assert "red disc with a small orange" in cache.rows["caption"].iloc[0]
    # The disc is red in its middle, and the corner is paper.
    assert pictures[0][24, 24].tolist() == [255, 0, 0] and pictures[0][0, 0].tolist() == [255, 255, 255]


def test_both_sides_learn_from_the_same_batches_in_turns_and_draw_what_they_learnt(cache, monkeypatch):
    monkeypatch.setattr(race, "DRAWN", 4)
    monkeypatch.setattr(race, "DRAWING_STEPS", 2)
    monkeypatch.setattr(race, "OUR_POINTS", (0.5, 1.0))
    monkeypatch.setattr(race, "PEER_POINTS", (1.0,))
    rows = cache.select("train")
    config = race.run_config(1).model_copy(update={"batch_size": 4, "warmup_steps": 0})
    ours = race.Racer(PRXPixel, tiny_pipeline, cache, rows, config, None)
    peer = race.Racer(race.UNetPixel, tiny_unet_pipeline, cache, rows, config, None)
    one, other = ours.source.batch(3), peer.source.batch(3)
    assert one.prompts == other.prompts
    assert torch.equal(one.noise, other.noise) and torch.equal(one.level, other.level)
    before = ours.draw(["red disc, flat style"])

    said = []
    curves = race.race(ours, peer, race.Judge(cache, rows), 0.4, said.append)
    assert [len(of) for of in curves] == [2, 1] and len(said) == 3
    for racer, of in zip((ours, peer), curves, strict=True):
        assert racer.step > 0 and of[-1].seconds >= 0.4
        assert all(math.isfinite(point.kid) for point in of)
    assert not np.array_equal(before, ours.draw(["red disc, flat style"]))
    assert np.array_equal(ours.draw(["red disc, flat style"]), ours.draw(["red disc, flat style"]))
