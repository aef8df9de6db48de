"""The graph with a latent base model of a team: autoencoder, LoRA, study and selection, as Dagster runs them."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.orchestra import Orchestra
from genai_assets.settings import Settings
from genai_assets_tests.defs.test_whole_graph import tiny_settings
from genai_assets_tests.diffusion.families.tiny_unet import save_stable_diffusion

JOBS = ("retrain", "study", "select_base_model")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, package_cache: Path) -> Iterator[Settings]:
    """What is there after a retrain, a study and a selection with a tiny Stable Diffusion."""
    place = tmp_path_factory.mktemp("latent")
    save_stable_diffusion(place / "base")
    made = tiny_settings(
        place / "home",
        package_cache,
        base_model=str(place / "base"),
        splits={"held_out_share": 0.2, "validation_share": 0.2},
        fine_tune={"method": "lora", "max_steps": 2, "batch_size": 4, "lora_rank": 2, "resolution": 32},
        autoencoder={"max_steps": 2, "batch_size": 2},
        selection={"folders": [place / "base"], "steps": 2},
        study={"trials": 2, "pictures_a_trial": 16, "repeats": 0},
    )
    with dg.DagsterInstance.ephemeral() as instance, Orchestra(made, instance=instance) as orchestra:
        for job in JOBS:
            outcome = orchestra.run(job)
            assert outcome.success, (job, outcome.error)
    yield made


def newest(settings: Settings, kind: str) -> Artifact:
    artifact = stages.artifact_store(settings).newest(kind)
    assert artifact is not None, kind
    return artifact


def test_the_model_draws_at_the_resolution_asked_for_with_the_trained_autoencoder(settings: Settings):
    from genai_assets.diffusion import sampling

    champion = stages.current_champion(settings)
    autoencoder = newest(settings, "fine_tuned_autoencoder")
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert (champion.model_path / weights).read_bytes() == autoencoder.file(weights).read_bytes()
    assert autoencoder.file("reconstructions.png").exists()
    assert (champion.model_path / weights).read_bytes() != (Path(settings.base_model) / weights).read_bytes()
    (picture,) = sampling.load(champion.model_path).draw(["red apple"], seeds=[1], steps=2, guidance_scale=3.0)
    assert picture.size == (32, 32)


def test_the_adapters_are_there_for_the_stock_pipeline_to_load(settings: Settings):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(settings.base_model, local_files_only=True)
    pipeline.load_lora_weights(stages.current_champion(settings).model_path / "lora")
    assert pipeline.get_active_adapters()


def test_the_study_ran_its_trials_and_left_its_page(settings: Settings):
    study = newest(settings, "hyperparameter_study")
    assert study.summary["trials"] == 2
    assert study.file("study.html").stat().st_size > 0


def test_the_selection_measured_the_embedded_base_and_the_teams_own(settings: Settings):
    selection = newest(settings, "base_model_selection")
    assert selection.summary["at_hand"] == 2
    page = selection.file("selection.html").read_text()
    assert "embedded" in page and settings.base_model in page
