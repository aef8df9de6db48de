"""The stages of the model: from a base and splits to a fine-tuned model, and the reports people decide by."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings, sqlite_url
from genai_assets.stages.dataset import picture_reader, read_splits
from genai_assets.stages.ground import OnProgress, artifact_store, made_from, model_version, told_as


def base_model(settings: Settings) -> Artifact:
    """The base model as a complete pipeline folder.

    Raises:
        BaseModelError: the setting names nothing that can be fine-tuned, or a model of another resolution.
    """
    from genai_assets.diffusion.base_model import BaseModelError, assemble_base_model, base_model_version

    base = artifact_store(settings).build(
        "base_model",
        made_from("base_model", content=base_model_version(settings.base_model)),
        lambda out: assemble_base_model(settings.base_model, out),
    )
    # Told here, before minutes are spent on a cache that cannot be used.
    asked, multiple = settings.fine_tune.resolution, base.summary["side_multiple"]
    if asked is not None and asked % multiple:
        raise BaseModelError(
            f"the base model {settings.base_model!r} draws sides that are multiples of {multiple} px, but "
            f"fine_tune.resolution is {asked}: leave it unset, which means {base.summary['resolution']}, or round it"
        )
    return base


def fine_tuned_autoencoder(
    settings: Settings,
    validated: Artifact,
    split: Artifact,
    base: Artifact,
    *,
    on_step: Callable[[Any], None] | None = None,
) -> Artifact:
    """The base with its autoencoder trained on the house style; the base itself when that is off or it has none.

    Raises:
        BaseModelError: the family's autoencoder is of a kind that is not trained here.
        AutoencoderDiverged: something was not finite.
        TrainingProcessDied: the process was killed; the next try goes on from its last checkpoint.
    """
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.splits import training_rows
    from genai_assets.diffusion.autoencoder import fine_tuning
    from genai_assets.diffusion.autoencoder.config import AutoencoderConfig
    from genai_assets.diffusion.autoencoder.pictures import Pictures, write_pictures
    from genai_assets.diffusion.base_model import training_resolution
    from genai_assets.diffusion.own_process import run_in_own_process
    from genai_assets.evaluation.features import PictureFeatures
    from genai_assets.evaluation.perceptual import PerceptualFeatures, PictureKid

    wanted, side = settings.autoencoder, training_resolution(settings)
    if not (wanted.wanted and (base.path / "vae").is_dir()):
        return base
    fine_tuning.require_autoencoder(base.path)
    config = AutoencoderConfig(
        steps=wanted.max_steps or _AS_MANY_AS_THE_MINUTES_ALLOW,
        discriminator_layers=2 if side < 128 else 3,
        **wanted.model_dump(exclude={"max_steps", "max_minutes"}),
    )
    inputs = made_from(
        "fine_tuned_autoencoder",
        base=base.data_version,
        validated=validated.data_version,
        splits=split.data_version,
        resolution=side,
        house_style=settings.dataset.house_style,
        background=settings.dataset.background,
        max_feedback_share=settings.monitoring.max_feedback_share,
        max_synthetic_share=settings.synthetic.max_share,
        config=config.model_dump(mode="json"),
        max_minutes=wanted.max_minutes,
        training_code=fine_tuning.CODE_VERSION,
    )
    checkpoints = settings.paths.checkpoints / f"autoencoder-{model_version(inputs)}"

    def make(out: Path) -> dict[str, Any]:
        rows = training_rows(read_manifest(validated.file("manifest.parquet")), read_splits(split), settings)
        rows = rows[rows["style"] == settings.dataset.house_style].reset_index(drop=True)
        read = picture_reader(settings)
        checkpoints.mkdir(parents=True, exist_ok=True)
        file = checkpoints / "pictures.npy"
        write_pictures(file, lambda record: read(record, (side, side)), rows["id"].tolist(), resolution=side)
        figures = run_in_own_process(
            fine_tuning.fine_tune_autoencoder,
            on_step=on_step,
            base=base.path,
            training=Pictures.of_file(file, np.flatnonzero(rows["split"] == "train")),
            validation=Pictures.of_file(file, np.flatnonzero(rows["split"] == "validation")),
            config=config,
            out=out,
            checkpoints=checkpoints / "state",
            device=settings.device,
            perceptual=PerceptualFeatures(),
            max_minutes=wanted.max_minutes,
            distance=PictureKid(PictureFeatures(resolution=settings.evaluation.feature_resolution)),
        )
        return base.summary | {"autoencoder": figures}  # what comes after reads the base's figures here

    made = artifact_store(settings).build("fine_tuned_autoencoder", inputs, make)
    _remove_checkpoints(checkpoints)
    return made


_AS_MANY_AS_THE_MINUTES_ALLOW = 1_000_000


def base_model_selection(
    settings: Settings, validated: Artifact, split: Artifact, *, on_progress: OnProgress | None = None
) -> Artifact:
    """Which base models fit the data, device, licences and budget; those at hand are compared by short trainings."""
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.splits import training_rows
    from genai_assets.diffusion.base_model import EMBEDDED, base_model_version
    from genai_assets.diffusion.catalogue import look_at_device
    from genai_assets.diffusion.selection import DataFacts, Measured, report_selection

    chosen, device = settings.selection, look_at_device(settings.device, settings.home)

    def measure(name: str, workplace: Path) -> Measured:
        trial = settings.model_copy(
            update={
                "base_model": name,
                "fine_tune": settings.fine_tune.model_copy(update={"max_steps": chosen.steps}),
            }
        )
        base = base_model(trial)
        cache = training_cache(trial, validated, split, base, on_progress=on_progress)
        with tempfile.TemporaryDirectory(dir=workplace, prefix=".trial-") as place:
            out = Path(place) / "model"
            out.mkdir()
            figures = _train(trial, cache, base, out, version="trial", checkpoints=Path(place) / "checkpoints")
        return Measured(
            steps=figures["steps"],
            steps_per_second=figures["steps"] / max(figures["training_seconds"], 0.1),
            pictures_per_second=figures["pictures_per_second"],
            validation_loss_before=figures["first_validation_loss"],
            validation_loss_after=figures["validation_loss"],
        )

    def make(out: Path) -> dict[str, Any]:
        rows = training_rows(read_manifest(validated.file("manifest.parquet")), read_splits(split), settings)
        side = int(np.median(np.minimum(rows["width"], rows["height"])))
        return report_selection(
            settings,
            DataFacts(len(rows), rows["concept"].nunique(), side, chosen.language),
            # In there, for what a killed process leaves of an artifact is removed.
            lambda name: measure(name, out),
            out,
        )

    return artifact_store(settings).build(
        "base_model_selection",
        made_from(
            "base_model_selection",
            validated=validated.data_version,
            splits=split.data_version,
            bases={name: base_model_version(name) for name in (EMBEDDED, *map(str, chosen.folders))},
            selection=chosen.model_dump(mode="json"),
            device=[device.kind, device.name, device.memory],
            house_style=settings.dataset.house_style,
            background=settings.dataset.background,
            max_feedback_share=settings.monitoring.max_feedback_share,
            max_synthetic_share=settings.synthetic.max_share,
            captions=settings.captions.model_dump(mode="json", include={"templates", "prompts_a_picture"}),
            fine_tune=settings.fine_tune.model_dump(mode="json"),
        ),
        make,
    )


def prior_pictures(settings: Settings, base: Artifact, *, on_progress: OnProgress | None = None) -> Artifact:
    """Pictures that the base draws of generic prompts, to be trained on along (prior preservation)."""
    from genai_assets.diffusion import sampling
    from genai_assets.diffusion.base_model import training_resolution
    from genai_assets.diffusion.prior import draw_prior_pictures

    wanted, resolution = settings.fine_tune, training_resolution(settings)

    def make(out: Path) -> dict[str, Any]:
        drawer = sampling.load(
            base.path,
            device=settings.device,
            resolution=resolution,
            backend=settings.sampling.backend,
            cache=settings.paths.converted,
        )
        return draw_prior_pictures(
            lambda prompts, seeds: drawer.draw(
                prompts,
                seeds=seeds,
                steps=settings.sampling.steps,
                guidance_scale=settings.sampling.guidance_scale,
            ),
            wanted.prior_prompts,
            wanted.prior_pictures,
            wanted.seed,
            out,
            on_progress=told_as("prior pictures drawn", on_progress),
        )

    return artifact_store(settings).build(
        "prior_pictures",
        made_from(
            "prior_pictures",
            base=base.data_version,
            prompts=list(wanted.prior_prompts),
            pictures=wanted.prior_pictures,
            seed=wanted.seed,
            resolution=resolution,
            sampling=settings.sampling.model_dump(mode="json"),
        ),
        make,
    )


TEXT_PARTS = ("tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3")


PICTURE_PARTS = ("vae",)
"""Parts of a model folder that prompts and pictures are encoded with."""


def training_cache(
    settings: Settings, validated: Artifact, split: Artifact, base: Artifact, *, on_progress: OnProgress | None = None
) -> Artifact:
    """The house style's training and validation pictures and their prompts, encoded as the base's denoiser takes them.

    Raises:
        DataNotFinite: an encoder gave values that are not finite.
    """
    from genai_assets.datasets.attribution import ATTRIBUTION, write_attribution
    from genai_assets.datasets.decoding import WHITE
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.splits import training_rows
    from genai_assets.diffusion.base_model import load_pipeline, training_resolution
    from genai_assets.diffusion.catalogue import check_settings, refuse_unfit
    from genai_assets.diffusion.devices import choose_device
    from genai_assets.diffusion.encoding_store import EncodingStore
    from genai_assets.diffusion.families import family_of
    from genai_assets.diffusion.prior import prior_reader, prior_rows
    from genai_assets.diffusion.training_cache import build_training_cache

    wanted, resolution = settings.fine_tune, training_resolution(settings)
    paper = "" if settings.dataset.paper == WHITE else f" on {settings.dataset.background}"
    encoders: dict[Any, str] = {
        "pictures": _parts_version(base, PICTURE_PARTS) + paper,
        "prompts": _parts_version(base, TEXT_PARTS),
    }
    prior = prior_pictures(settings, base, on_progress=on_progress) if wanted.prior_pictures else None

    def make(out: Path) -> dict[str, Any]:
        refuse_unfit(check_settings(settings))  # before what may be an hour of encoding
        rows = training_rows(read_manifest(validated.file("manifest.parquet")), read_splits(split), settings)
        write_attribution(
            out / ATTRIBUTION, rows, settings.dataset.allowed_licences, of=f"training on {validated.data_version}"
        )
        read = picture_reader(settings)
        if prior:
            rows = pd.concat([rows, prior_rows(prior.path)], ignore_index=True)
            read = prior_reader(prior.path, read)
        family = family_of(load_pipeline(base.path))
        family.prepare_for_encoding(choose_device(settings.device))
        with EncodingStore(sqlite_url(settings.paths.encodings), encoders) as encodings:
            return build_training_cache(
                rows,
                read,
                family,
                out,
                resolution=resolution,
                prompt_template=wanted.prompt_template,
                templates=settings.captions.templates,
                prompts_a_picture=settings.captions.prompts_a_picture,
                augmentation=wanted.augmentation,
                buckets=wanted.aspect_buckets,
                latent_variants=wanted.latent_variants,
                seed=wanted.seed,
                encodings=encodings,
                on_progress=on_progress,
            )

    # Pixels are varied as they are drawn, so nothing of that is in their cache.
    varied = {"augmentation", "latent_variants", "seed"} if (base.path / "vae").is_dir() else set()
    return artifact_store(settings).build(
        "training_cache",
        made_from(
            "training_cache",
            validated=validated.data_version,
            splits=split.data_version,
            encoders=encoders,
            prior=prior.data_version if prior else None,
            resolution=resolution,
            house_style=settings.dataset.house_style,
            side_multiple=base.summary["side_multiple"],
            max_feedback_share=settings.monitoring.max_feedback_share,
            max_synthetic_share=settings.synthetic.max_share,
            **wanted.model_dump(mode="json", include={"prompt_template", "aspect_buckets"} | varied),
            **settings.captions.model_dump(
                mode="json", include={"templates", "prompts_a_picture"}, exclude_defaults=True
            ),
        ),
        make,
    )


def hyperparameter_study(
    settings: Settings, cache: Artifact, base: Artifact, *, on_step: Callable[[Any], None] | None = None
) -> Artifact:
    """Short trainings with other settings, and a proposal for a person to review. Runs in a process of its own.

    Killed, it goes on; asked for more trials, it goes on from those it has.

    Raises:
        ValueError: no trials are asked for; there are no pictures to train or to validate on.
        StudyBusy, StudyUnreadable: as of ``study.run_study``.
        TrainingProcessDied: the process was killed; the next try goes on.
    """
    from genai_assets import durable
    from genai_assets.diffusion import fine_tuning
    from genai_assets.diffusion.own_process import run_in_own_process
    from genai_assets.diffusion.tuning import tune

    wanted = settings.study
    if not wanted.trials:
        raise ValueError("study.trials is 0, so there is no study: set it, or run `genai tune --trials 20`")
    # Everything that a trial's result depends on; how many trials there are is not among it.
    inputs = made_from(
        "hyperparameter_study",
        cache=cache.data_version,
        base=base.data_version,
        config=settings.fine_tune.model_dump(mode="json", exclude=_NOT_OF_THE_RUN),
        house_style=settings.dataset.house_style,
        pictures_a_trial=wanted.pictures_a_trial,
        seed=wanted.seed,
        study_code=tune.CODE_VERSION,
        training_code=fine_tuning.CODE_VERSION,
    )
    name = f"fine-tune-{durable.digest_json(inputs)[:12]}"

    def make(out: Path) -> dict[str, Any]:
        return run_in_own_process(
            tune.tune,
            on_step=on_step,
            base=base.path,
            cache_folder=cache.path,
            settings=settings.fine_tune,
            out=out,
            house_style=settings.dataset.house_style,
            name=name,
            trials=wanted.trials,
            pictures=wanted.pictures_a_trial,
            repeats=wanted.repeats,
            seed=wanted.seed,
            database_url=settings.study_database_url,
            lock=settings.paths.studies.with_suffix(".lock"),
            device=settings.device,
        )

    inputs |= {"trials": wanted.trials, "repeats": wanted.repeats}
    return artifact_store(settings).build("hyperparameter_study", inputs, make)


def fine_tuned_model(
    settings: Settings, cache: Artifact, base: Artifact, *, on_step: Callable[[Any], None] | None = None
) -> Artifact:
    """The base trained on the house style: a folder that stock diffusers loads. Trains in a process of its own.

    Raises:
        UnfitForTraining: licence, memory or disk rule it out; told before it starts.
        TrainingDiverged: the loss is not finite.
        TrainingProcessDied: the process was killed; the next try goes on from its last checkpoint.
    """
    from genai_assets.datasets.attribution import ATTRIBUTION
    from genai_assets.diffusion.fine_tuning import CODE_VERSION

    inputs = made_from(
        "fine_tuned_model",
        cache=cache.data_version,
        base=base.data_version,
        config=settings.fine_tune.model_dump(mode="json", exclude=_NOT_OF_THE_RUN),
        house_style=settings.dataset.house_style,
        training_code=CODE_VERSION,
    )
    version = model_version(inputs)
    checkpoints = settings.paths.checkpoints / version

    def make(out: Path) -> dict[str, Any]:
        figures = _train(settings, cache, base, out, version=version, checkpoints=checkpoints, on_step=on_step)
        shutil.copyfile(cache.file(ATTRIBUTION), out / ATTRIBUTION)
        _write_card(settings, out, version, cache, figures)
        return figures | {"model_version": version}

    made = artifact_store(settings).build("fine_tuned_model", inputs, make)
    _remove_checkpoints(checkpoints)
    return made


# Said by the cache's data version already, or without effect on what is learnt.
_NOT_OF_THE_RUN = {
    "allowed_base_licences",
    "aspect_buckets",
    "checkpoints_kept",
    "latent_variants",
    "prior_pictures",
    "prior_prompts",
}


def _train(
    settings: Settings,
    cache: Artifact,
    base: Artifact,
    out: Path,
    *,
    version: str,
    checkpoints: Path,
    on_step: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune in a process of its own, or in several, after a look at whether that can end well."""
    from genai_assets.diffusion.catalogue import check_settings, refuse_unfit
    from genai_assets.diffusion.fine_tuning import fine_tune
    from genai_assets.diffusion.own_process import run_in_own_process

    refuse_unfit(check_settings(settings))
    return run_in_own_process(
        fine_tune,
        on_step=on_step,
        processes=settings.fine_tune.processes,
        base=base.path,
        cache_folder=cache.path,
        settings=settings.fine_tune,
        sampling=settings.sampling,
        out=out,
        house_style=settings.dataset.house_style,
        model_version=version,
        checkpoints=checkpoints,
        device=settings.device,
        compiled_code=settings.paths.compiled,
    )


def _write_card(settings: Settings, folder: Path, version: str, cache: Artifact, figures: Mapping[str, Any]) -> None:
    from genai_assets.registry.model_card import write_model_card

    write_model_card(
        folder,
        {
            "name": f"{settings.dataset.house_style} image model {version}",
            "licence": "other",
            "summary": f"Draws in the style “{settings.dataset.house_style}”. Fine-tuned by genai_assets.",
            "base_model": settings.base_model,
            "tags": ["text-to-image", "diffusers"],
            "model_version": version,
            "data_version": cache.data_version,
            "recipe": settings.fine_tune.model_dump(mode="json"),
            "figures": {name: value for name, value in figures.items() if isinstance(value, int | float)},
            "figures_note": "Of the training run; the evaluation report has the figures on held-out concepts.",
            "attribution": "Whom to credit for the training pictures is in ATTRIBUTION.md, beside this card.",
        },
    )


def _remove_checkpoints(folder: Path) -> None:
    """A finished model needs its checkpoints no more."""
    from genai_assets.diffusion.checkpoints import CheckpointFolder

    CheckpointFolder(folder).clear()


def _parts_version(base: Artifact, parts: tuple[str, ...]) -> str:
    from genai_assets import durable
    from genai_assets.diffusion.base_model import INDEX

    # The index has settings of encoding, too: a number of tokens, what the empty prompt is.
    counted = {name: digest for name, digest in base.digests.items() if name.partition("/")[0] in (*parts, INDEX)}
    return durable.digest_json(counted)[:16]
