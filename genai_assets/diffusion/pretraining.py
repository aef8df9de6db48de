"""Making the embedded base model: a small denoiser trained from nothing on freely licensed icon styles.

Belongs here: which styles, how they become a cache, the run, and the export of the winner. The house style that the
example fine-tunes on must never be among the styles (in no variant: they share its shapes).
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genai_assets import durable
from genai_assets.artifacts import Artifact, ArtifactStore
from genai_assets.diffusion.base_model import DIGESTS, PAPERS, TEXT_ENCODER_PACKAGE, new_pipeline
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.config import Augmentation, DenoiserConfig, TrainingConfig
from genai_assets.diffusion.devices import choose_device, keep_freed_memory
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.training import StepReport, TrainingResult, train
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache
from genai_assets.settings import Settings

PRETRAINING_SETS = ("noto", "twemoji", "fxemoji")
LEFT_OUT = ("flags",)
"""Categories that are not learnt: hundreds of detailed pictures, of a kind that house styles hardly have."""
RESOLUTION = 64
VALIDATION_SHARE = 0.015
CODE_VERSION = "2"


def pretraining_config(steps: int, batch_size: int = 128) -> TrainingConfig:
    """The run that makes a base; why these values, docs/experiments.md tells.

    Pictures are not mirrored: a caption then stands for one picture, and not for the blur of two. Levels lie near pure
    noise, where a prompt decides what is drawn; what little noise hides is learnt from few pictures.
    """
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer="muon",
        learning_rate=1.2e-3,
        ema_decay=0.999,
        augmentation=Augmentation(flip=0),
        class_balance=0.5,
        level_mean=1.4,
        level_std=1.5,
        checkpoint_every=200,
        validate_every=200,
    )


def pretraining_cache(settings: Settings, *, on_progress: Callable[[str, int, int], None] | None = None) -> Artifact:
    """The training cache of the pre-training styles; built once.

    Raises:
        ValueError: no picture is left, or a set is unknown.
        PackageUnavailable: an icon set cannot be fetched.
    """
    from genai_assets.datasets.arrivals import look
    from genai_assets.datasets.ingestion import Batch, ingest
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.splits import concept_position
    from genai_assets.diffusion.aspect_buckets import reader_of

    dataset = settings.dataset.model_copy(update={"icon_sets": PRETRAINING_SETS, "folder": None, "sources": ()})
    wanted = settings.model_copy(update={"dataset": dataset})
    resolution = settings.fine_tune.resolution or RESOLUTION
    store = PictureStore(settings.paths.pictures)
    artifacts = ArtifactStore(settings.paths.artifacts)
    arrivals = look(wanted)
    inputs = {"sources": dict(arrivals.digests), "code": CODE_VERSION}
    first = Batch(1, "pretraining")
    raw = artifacts.build("pretraining_data", inputs, lambda out: ingest(wanted, arrivals, out, batch=first))
    rows = read_manifest(raw.file("manifest.parquet"))
    held = [concept_position(concept, "genai-pretraining-1") < VALIDATION_SHARE for concept in rows["concept"]]
    rows["split"] = np.where(held, "validation", "train")

    def make(out: Path) -> dict[str, Any]:
        pipeline = new_pipeline(DenoiserConfig(depth=1), resolution=resolution, seed=0)
        return build_training_cache(
            rows,
            reader_of(store, max_pixels=settings.dataset.max_pixels, background=settings.dataset.paper),
            family_of(pipeline),
            out,
            resolution=resolution,
            prompt_template=settings.fine_tune.prompt_template,
            on_progress=on_progress,
        )

    inputs = {
        "data": raw.data_version,
        "resolution": resolution,
        "prompt_template": settings.fine_tune.prompt_template,
        "text_encoder": TEXT_ENCODER_PACKAGE,
        "code": CODE_VERSION,
    }
    return artifacts.build("pretraining_cache", inputs, make)


def pretrain(
    settings: Settings,
    denoiser: DenoiserConfig,
    config: TrainingConfig,
    *,
    on_step: Callable[[StepReport], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    compiled: bool = True,
    stop: Callable[[], bool] | None = None,
) -> tuple[Any, TrainingResult]:
    """Train a denoiser from nothing, going on from the newest valid checkpoint in the home folder.

    ``compiled`` costs about two minutes at the start and more than doubles the speed on a CPU.

    Returns:
        tuple: the pipeline with the EMA weights, and the figures of the run.
    """
    keep_freed_memory()
    cache = TrainingCache.open(pretraining_cache(settings, on_progress=on_progress).path)
    pipeline = new_pipeline(denoiser, resolution=settings.fine_tune.resolution or RESOLUTION, seed=config.seed)
    family, device = family_of(pipeline), choose_device(settings.device)
    learnt, validation = cache.select("train"), cache.select("validation")
    result = train(
        family,
        cache,
        config,
        training_rows=learnt[~cache.rows["category"].iloc[learnt].isin(LEFT_OUT).to_numpy()],
        validation_rows=validation[:256],
        device=device,
        checkpoints=CheckpointFolder(settings.paths.checkpoints / "pretraining"),
        on_step=on_step,
        learner=Learner(family, config, device, compiled="whole" if compiled else None),
        stop=stop,
    )
    return pipeline, result


def export_embedded_base(pipeline: Any, out: Path) -> None:
    """Write what is kept of a base model: denoiser in bf16, noise scheduler and index, without the text encoder.

    Args:
        pipeline: a trained ``PRXPixelPipeline``.
        out: the folder; its weights are replaced, its model card stays.
    """
    import torch

    for part in ("transformer", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)
    pipeline.transformer.to(torch.bfloat16)
    pipeline.save_pretrained(out, safe_serialization=True)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(out / part)
    digests = {name: value for name, value in durable.digest_tree(out).items() if name not in PAPERS}
    durable.write_json(out / DIGESTS, digests)
