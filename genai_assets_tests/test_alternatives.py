"""The race of alternatives: each learns and draws; what it changes is what it says; results are told in order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import race
from benchmarks.quality import alternatives, sheets
from benchmarks.quality.alternatives import ALTERNATIVES, AlignedPRX, ConvolutionalStem, Entrant, Latents
from genai_assets import durable
from genai_assets.diffusion.base_model import new_pipeline
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.diffusion.pretraining import RESOLUTION, pretraining_config
from genai_assets.diffusion.training_cache import to_model_range

TINY = {"hidden_size": 16, "num_heads": 1, "depth": 4, "axes_dim": (8, 8), "mlp_ratio": 2.0}
OWN_WAYS = sorted(name for name, alternative in ALTERNATIVES.items() if alternative.entrant is not Entrant)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return race.make_pictures(tmp_path_factory.mktemp("shapes"), limit=24)


def enter(name, cache, seconds=2.0) -> Entrant:
    alternative = ALTERNATIVES[name]
    tiny = replace(alternative, denoiser=alternative.denoiser.model_copy(update=TINY))
    config = pretraining_config(steps=10).model_copy(update={"batch_size": 4, "warmup_steps": 0, "decay_share": 0.0})
    return tiny.entrant(tiny, cache, cache.select("train"), config, seconds, None)


@pytest.mark.parametrize("name", ["default", *OWN_WAYS])
def test_an_alternative_learns_and_draws_what_it_learnt(name, cache):
    entrant = enter(name, cache)
    before = entrant.draw(["red disc"], guidance_scale=3.0)
    assert before.shape == (1, RESOLUTION, RESOLUTION, 3)
    entrant.train_until(entrant.seconds + 0.01)
    assert entrant.step >= 1
    after = entrant.draw(["red disc"], guidance_scale=3.0)
    assert (after != before).any()
    np.testing.assert_array_equal(after, entrant.draw(["red disc"], guidance_scale=3.0))


def test_alternatives_have_about_as_many_parameters():
    def parameters(name: str) -> int:
        config = ALTERNATIVES[name].denoiser
        pipeline = new_pipeline(config, resolution=RESOLUTION, seed=0)
        return sum(weight.numel() for weight in pipeline.transformer.parameters())

    usual = parameters("default")
    for name in ("patch_4", "patch_16", "wide", "deep"):
        assert abs(parameters(name) / usual - 1) < 0.1, name


def test_the_rate_falls_to_zero_over_the_last_of_the_time(cache):
    entrant = enter("default", cache, seconds=100.0)
    rates = []
    for seconds in (0.0, 70.0, 85.0, 100.0, 101.0):
        entrant.seconds = seconds
        rates.append(entrant.learning_rate / entrant.config.learning_rate)
    assert rates == pytest.approx([1, 1, 0.5, 0, 0])


def test_plain_prompts_are_labels_alone(cache):
    several = replace(cache, rows=cache.rows.assign(prompts=[[number, 0] for number, *_ in cache.rows["prompts"]]))
    entrant = enter("plain_prompts", several)
    without = entrant.source.config.model_copy(update={"prompt_dropout": 0.0})
    entrant.source.config = without
    assert "" not in [prompt for step in range(8) for prompt in entrant.source.batch(step).prompts]


def test_the_stem_sees_the_picture_that_was_cut_into_patches():
    from diffusers.models.transformers.transformer_prx import img2seq

    picture = torch.rand(2, 3, 16, 16)
    stem = ConvolutionalStem(8)
    torch.testing.assert_close(stem(img2seq(picture, 8)), stem.layers(picture).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", ["routed", "aligned"])
def test_drawing_goes_through_all_tokens_and_blocks_as_the_stock_forward_pass(name, cache):
    denoiser = enter(name, cache).painter.denoiser.float()
    told = {
        "hidden_states": torch.randn(2, 3, 64, 64),
        "timestep": torch.tensor([0.3, 0.8]),
        "encoder_hidden_states": torch.randn(2, 5, 384),
        "attention_mask": torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
        "return_dict": False,
    }
    with torch.no_grad():
        ours = denoiser(**told)[0]
        stock = type(denoiser).forward(denoiser, **told)[0]
    torch.testing.assert_close(ours, stock)


def test_routing_leaves_half_of_the_tokens_out_and_others_in_each_step(cache):
    entrant = enter("routed", cache)
    chosen = []
    for step in range(2):
        batch = entrant.source.batch(step)
        entrant.learner.module(batch, len(batch)).backward()
        chosen.append(entrant.family.denoiser.route.tolist())
    assert [len(set(tokens)) for tokens in chosen] == [32, 32]
    assert chosen[0] != chosen[1]


def test_alignment_asks_middle_tokens_for_what_the_extractor_sees(cache):
    entrant = enter("aligned", cache)
    batch = entrant.source.batch(0)
    loss = entrant.learner.module(batch, len(batch))
    loss.backward()
    assert entrant.family.denoiser.projector[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        plain = entrant.learner.module(batch, len(batch))
    assert 0 < loss.item() - plain.item() <= 2 * AlignedPRX.weight


def test_latents_have_unit_variance_and_decode_to_more_of_the_picture_the_longer_the_autoencoder_has_learnt(cache):
    [codes] = cache.codes.values()
    codes = np.array(codes)

    def error(latents: Latents) -> float:
        return (latents.decode(latents.encode(codes)) - to_model_range(codes)).square().mean().item()

    trained = Latents(codes, seconds=5.0)
    found = trained.encode(codes)
    assert found.shape == (24, Latents.channels, 8, 8)
    assert found.std().item() == pytest.approx(1, abs=0.05)
    assert error(trained) < 0.8 * error(Latents(codes, seconds=0.0))


def test_what_was_found_is_told_from_the_smallest_kid_and_drawn_in_that_order(cache, tmp_path):
    from PIL import Image

    for name, kid in (("default", 0.5), ("deep", 0.4), ("wide", 0.6)):
        points = [{"seconds": 1.0, "steps": 3, "kid": kid, "error": 0.01, "own_first": 0.25, "own_in_five": 0.5}] * 3
        result = {
            "name": name,
            "what": "",
            "minutes": 15.0,
            "parameters": 18e6,
            "validation_loss": 0.3,
            "points": points,
        }
        durable.write_json(tmp_path / f"{name}.json", result)
        Image.new("RGB", (64 * len(sheets.THINGS), 64)).save(tmp_path / f"{name}.png")
    assert alternatives.found(tmp_path, 30.0) == [], "another length is another race"
    results = alternatives.found(tmp_path, 15.0)
    assert [result["name"] for result in results] == ["deep", "default", "wide"]
    assert alternatives.cells(results[0])[-2:] == ["0.400 ± 0.010", "25%"]
    assert alternatives.markdown(results).splitlines()[2].startswith("| deep |  | 18.0 M | 3 |")
    alternatives.draw_sheet(results, tmp_path, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_an_unknown_alternative_or_no_time_is_a_clear_error(capsys):
    for arguments, said in ((["patch_5"], "patch_5"), (["--minutes", "0"], "above 0")):
        with pytest.raises(SystemExit):
            alternatives.main(arguments)
        assert said in capsys.readouterr().err


def test_no_alternative_changes_what_the_default_is():
    assert ALTERNATIVES["default"].denoiser == DenoiserConfig()
    assert not ALTERNATIVES["default"].training
