"""What a student learns of trajectories, as batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genai_assets.diffusion.config import Augmentation, TrainingConfig
from genai_assets.diffusion.distillation.adversary import JudgedBatch
from genai_assets.diffusion.distillation.segments import SegmentBatches, noise_at
from genai_assets.diffusion.distillation.trajectories import Trajectories, end_of_line
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.training_cache import TrainingCache

CONFIG = TrainingConfig(steps=1, batch_size=8, augmentation=Augmentation(flip=0))


def test_picture_and_noise_of_a_segment_mix_to_both_of_its_states(tiny_family: Family):
    here, there = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for above, below in ((1.0, 0.8), (0.9, 0.5), (0.4, 0.0)):
        clean = end_of_line(here, there, above, below)
        noise = noise_at(here, clean, torch.tensor([above]))
        assert torch.allclose(tiny_family.add_noise(clean, noise, torch.tensor([above])), here, atol=1e-5)
        assert torch.allclose(tiny_family.add_noise(clean, noise, torch.tensor([below])), there, atol=1e-5)
    assert torch.allclose(clean, there, atol=1e-5)  # the last one ends in its picture


def test_a_student_that_gives_the_target_lands_where_its_teacher_did(trajectories: Trajectories, cache: TrainingCache):
    batch = SegmentBatches(trajectories, cache, CONFIG, np.arange(6)).batch(0)
    levels = trajectories.recipe.levels
    following = torch.tensor([levels[levels.index(pytest.approx(level)) + 1] for level in batch.level.tolist()])
    noisy = (1 - batch.level.view(-1, 1, 1, 1)) * batch.clean + batch.level.view(-1, 1, 1, 1) * batch.noise
    landed = noisy + (following - batch.level).view(-1, 1, 1, 1) * (batch.noise - batch.clean)
    inner, last = trajectories.states[:, 1:], trajectories.targets[:, -1:]
    ends = torch.from_numpy(np.concatenate((inner, last), axis=1).astype(np.float32)).flatten(0, 1)
    nearest = (landed[:, None] - ends[None]).abs().amax(dim=(2, 3, 4)).amin(dim=1)
    assert nearest.max() < 4e-3  # of noise around 3, half precision keeps thousandths


def test_batches_are_functions_of_seed_and_step_and_have_every_level_equally_often(
    trajectories: Trajectories, cache: TrainingCache
):
    source = SegmentBatches(trajectories, cache, CONFIG, np.arange(6))
    first, again, other = source.batch(3), source.batch(3), source.batch(4)
    assert torch.equal(first.clean, again.clean) and not torch.equal(first.clean, other.clean)
    levels, counts = np.unique(first.level.numpy(), return_counts=True)
    assert levels == pytest.approx(sorted(trajectories.recipe.levels[:-1])) and set(counts) == {4}
    assert first.prompts[0] in cache.texts and len(first.conditions["embeddings"]) == 8


def test_validation_has_every_segment_of_its_trajectories_once(trajectories: Trajectories, cache: TrainingCache):
    [batch] = SegmentBatches(trajectories, cache, CONFIG, np.arange(4)).validation_batches(np.array([4, 5]))
    assert batch.level.tolist() == pytest.approx([*trajectories.recipe.levels[:2]] * 2)
    state = (1 - batch.level[3]) * batch.clean[3] + batch.level[3] * batch.noise[3]
    assert np.allclose(state.numpy(), trajectories.states[5, 1], atol=1e-3)


def test_real_pictures_lie_beside_segments_for_a_discriminator(
    trajectories: Trajectories, cache: TrainingCache, tiny_base: Path
):
    source = SegmentBatches(trajectories, cache, CONFIG, np.arange(6), cache.select("train"))
    batch = source.batch(0).part(2, 6)
    assert isinstance(batch, JudgedBatch)
    assert len(batch) == 4 and batch.real.shape == batch.clean.shape
    last = trajectories.recipe.levels[-2]
    assert torch.equal(batch.is_last, (batch.level - last).abs() < 1e-6)
    assert batch.real.amax() <= 1 and (batch.real == 1).float().mean() > 0.3  # the drawn pictures are mostly white


def test_no_trajectories_are_told(trajectories: Trajectories, cache: TrainingCache):
    with pytest.raises(ValueError, match=r"raise distillation\.trajectories"):
        SegmentBatches(trajectories, cache, CONFIG, np.array([], dtype=np.int64))
