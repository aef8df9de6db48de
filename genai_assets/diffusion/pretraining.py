"""Making a base model: a small denoiser trained on freely licensed icon styles, from nothing or from another base.

Belongs here: which styles, how they become a cache, the run, and the export of the winner. The house style that the
example fine-tunes on must never be among the styles (in no variant: they share its shapes).
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genai_assets import durable
from genai_assets.artifacts import Artifact, ArtifactStore
from genai_assets.diffusion.base_model import (
    DIGESTS,
    PAPERS,
    TEXT_ENCODER_PACKAGE,
    BaseModelError,
    base_model_version,
    load_pipeline,
    native_resolution,
    new_pipeline,
    pipeline_class_of,
    text_encoder_folder,
)
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.compilation import can_compile
from genai_assets.diffusion.config import Augmentation, DenoiserConfig, TrainingConfig
from genai_assets.diffusion.devices import choose_device, keep_freed_memory
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.prx import PRXPixel
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.recolouring import recoloured_ids, recoloured_reader
from genai_assets.diffusion.training import StepReport, TrainingResult, train
from genai_assets.diffusion.training_cache import PictureReader, TrainingCache, build_training_cache
from genai_assets.settings import Settings
from genai_assets.turns import in_turn

PRETRAINING_SETS = ("noto", "twemoji", "fxemoji", "noto-v1", "emojione", "streamline-emojis")
LEFT_OUT = ("flags",)
"""Categories that are not learnt: hundreds of detailed pictures, of a kind that house styles hardly have."""
RECOLOURED = ("animals-nature", "food-drink", "travel-places", "objects", "activities")
"""Categories whose things may be of any colour: pictures of them are learnt in four more, each named in its caption."""
RESOLUTION = 64
VALIDATION_SHARE = 0.015
CODE_VERSION = "4"
_COLOURS_EACH, _COLOUR_SEED = 4, "genai-pretraining-colours-1"


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
        warmup_steps=60,
        decay_share=0.45,
        ema_decay=0.998,
        augmentation=Augmentation(flip=0),
        class_balance=0.5,
        level_mean=1.2,
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
    from genai_assets.datasets.decoding import WHITE
    from genai_assets.datasets.ingestion import Batch, ingest
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.sources.icon_sets import IconSetSource
    from genai_assets.datasets.splits import concept_position
    from genai_assets.diffusion.aspect_buckets import reader_of

    resolution = settings.fine_tune.resolution or RESOLUTION
    store = PictureStore(settings.paths.pictures)
    artifacts = ArtifactStore(settings.paths.artifacts)
    # Not the settings' sources: feedback and synthetic pictures are among those, in the house style.
    icons = [
        IconSetSource(name, settings.paths.packages, offline=settings.dataset.offline) for name in PRETRAINING_SETS
    ]
    arrivals = look(settings, icons)
    inputs = {"sources": dict(arrivals.digests), "code": CODE_VERSION}
    first = Batch(1, "pretraining")
    raw = artifacts.build("pretraining_data", inputs, lambda out: ingest(settings, arrivals, out, batch=first))

    def make(out: Path) -> dict[str, Any]:
        read = reader_of(store, max_pixels=settings.dataset.max_pixels, background=WHITE)
        rows = with_recoloured(read_manifest(raw.file("manifest.parquet")), read, resolution)
        held = [concept_position(concept, "genai-pretraining-1") < VALIDATION_SHARE for concept in rows["concept"]]
        rows["split"] = np.where(held, "validation", "train")
        pipeline = new_pipeline(DenoiserConfig(depth=1), resolution=resolution, seed=0)
        return build_training_cache(
            rows,
            recoloured_reader(read),
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


def with_recoloured(rows: pd.DataFrame, read: PictureReader, resolution: int) -> pd.DataFrame:
    """A manifest's rows and behind them those of recoloured pictures, for ``recoloured_reader(read)`` to read.

    A recoloured picture is a variant, which is learnt from more seldom, and has no keywords: they may name the colour
    that it had.

    Args:
        rows: as a manifest has them.
        read: gives the picture of an id at a size.
        resolution: pixels a side at which pictures are looked at.
    """
    plain = rows[rows["category"].isin(RECOLOURED) & ~rows["variant"]]
    plain = plain.drop_duplicates("id").set_index("id")  # two styles, or two things, may share a picture
    captions = dict(zip(plain.index.tolist(), plain["caption"], strict=True))
    found = recoloured_ids(
        captions, lambda record_id: read(record_id, (resolution, resolution)), _COLOURS_EACH, _COLOUR_SEED
    )
    made = pd.DataFrame(found, columns=["id", "of", "caption"])
    changed = plain.loc[made["of"]].reset_index(drop=True).assign(id=made["id"], caption=made["caption"], variant=True)
    changed["keywords"] = [[]] * len(changed)
    return pd.concat((rows, changed), ignore_index=True)


def learnt_rows(cache: TrainingCache) -> np.ndarray:
    """Row numbers of what a base learns from: the training split without the categories of ``LEFT_OUT``."""
    rows = cache.select("train")
    return rows[~cache.rows["category"].iloc[rows].isin(LEFT_OUT).to_numpy()]


def pretrain(
    settings: Settings,
    denoiser: DenoiserConfig,
    config: TrainingConfig,
    *,
    start: Path | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    compiled: bool = True,
    stop: Callable[[], bool] | None = None,
) -> tuple[Any, TrainingResult]:
    """Train a denoiser, going on from the newest valid checkpoint in the home folder.

    While another process trains the same, this one waits, and goes on from where that one ends.

    Args:
        settings: where everything lies, and the resolution.
        denoiser: its shape, when it is trained from nothing.
        config: the run.
        start: a complete pipeline folder to begin with, not from nothing.
        on_step: told after every step.
        on_progress: told (stage, done, total) while the training cache is made.
        compiled: costs about two minutes at the start and more than doubles the speed on a CPU; without a compiler the
            run is eager.
        stop: asked after every step; when true a checkpoint is written and training ends.

    Raises:
        BaseModelError: ``start`` is of another family, resolution or text encoder than what is made here.

    Returns:
        tuple: the pipeline with the EMA weights, and the figures of the run.
    """
    keep_freed_memory()
    if start is not None:
        _require_fitting(start, settings.fine_tune.resolution or RESOLUTION)
    made = pretraining_cache(settings, on_progress=on_progress)
    cache = TrainingCache.open(made.path)
    # A run goes on from its own checkpoints: with other data, another beginning or other values it is another run.
    # More steps are not.
    run = {
        "data": made.data_version,
        "start": base_model_version(str(start)) if start else denoiser.model_dump(mode="json"),
        "config": config.model_dump(mode="json", exclude={"steps"}),
    }
    name = f"pretraining-{durable.digest_json(run)[:12]}"
    settings.paths.checkpoints.mkdir(parents=True, exist_ok=True)
    with in_turn(settings.paths.checkpoints / f".{name}.turn", "this base model"):
        if start is None:
            pipeline = new_pipeline(denoiser, resolution=settings.fine_tune.resolution or RESOLUTION, seed=config.seed)
        else:
            pipeline = load_pipeline(start)
        family, device = family_of(pipeline), choose_device(settings.device)
        result = train(
            family,
            cache,
            config,
            training_rows=learnt_rows(cache),
            validation_rows=cache.select("validation")[:256],
            device=device,
            checkpoints=CheckpointFolder(settings.paths.checkpoints / name),
            on_step=on_step,
            learner=Learner(
                family,
                config,
                device,
                compiled="whole" if compiled and not trains_eagerly(settings) else None,
                compiled_code=settings.paths.compiled,
            ),
            stop=stop,
        )
    return pipeline, result


def trains_eagerly(settings: Settings) -> bool:
    """Whether this machine lacks what compiling for its device needs."""
    return choose_device(settings.device).type == "cpu" and not can_compile()


def _require_fitting(start: Path, resolution: int) -> None:
    """Refuse a base that would not learn from pictures of this size, with prompts as MiniLM encodes them."""
    from safetensors import safe_open

    family = pipeline_class_of(start)
    if family not in PRXPixel.pipeline_classes:
        raise BaseModelError(f"{start} is a {family}; only a PRXPixelPipeline can go on: set base_model to one")
    own = native_resolution(str(start))
    if own != resolution:
        raise BaseModelError(
            f"{start} draws {own} pixels a side, icons would be {resolution}: set fine_tune.resolution"
        )
    words = []
    for folder in (start / "text_encoder", text_encoder_folder()):
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            [name] = [name for name in weights.keys() if name.endswith("word_embeddings.weight")] or [None]  # noqa: SIM118
            words.append(None if name is None else weights.get_tensor(name).float())
    if words[0] is None or words[0].shape != words[1].shape or not words[0].equal(words[1]):
        raise BaseModelError(f"{start} has another text encoder than MiniLM, which prompts are encoded with here")


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
