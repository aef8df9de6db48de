"""The stages of the graph as plain Python: what each is made from, and the one call that makes it.

Belongs here: which library function a stage calls with which inputs, so that the Dagster assets and the command line
do the very same. A stage takes settings and the artifacts before it and returns its artifact; asked again with nothing
changed, it works on nothing. How things are done is in the rooms.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from genai_assets.artifacts import Artifact, ArtifactStore, data_version_of
from genai_assets.settings import Settings

if TYPE_CHECKING:
    from genai_assets.registry.champion import Champion

OnProgress = Callable[[str, int, int], None]
"""Told (what, done, in all)."""

# Raised by hand when a stage's code changes what it makes.
CODE_VERSIONS = {
    "raw_data": "1",
    "validated_data": "1",
    "image_features": "1",
    "splits": "1",
    "base_model": "2",
    "fine_tuned_autoencoder": "1",
    "base_model_selection": "1",
    "prior_pictures": "1",
    "training_cache": "2",
    "hyperparameter_study": "1",
    "fine_tuned_model": "2",
    "drawings": "2",
    "eval_report": "2",
    "champion_model": "1",
    "bento_service": "1",
    "inference_log": "1",
    "drift_report": "1",
    "feedback_dataset": "1",
}


def artifact_store(settings: Settings) -> ArtifactStore:
    """The artifacts of the home folder."""
    return ArtifactStore(settings.paths.artifacts)


def raw_data(settings: Settings, *, on_progress: OnProgress | None = None) -> Artifact:
    """Every source read into one manifest.

    Raises:
        ValueError, FileNotFoundError, PackageUnavailable: as of ``ingestion.ingest``.
    """
    from genai_assets.datasets.ingestion import MANIFEST, ingest, source_fingerprints
    from genai_assets.datasets.records import read_manifest

    store = artifact_store(settings)
    before = store.newest("raw_data")
    previous = read_manifest(before.file(MANIFEST)) if before else None

    def told(source: str, pictures: int) -> None:
        if on_progress:
            on_progress(source, pictures, 0)

    return store.build(
        "raw_data",
        _inputs("raw_data", sources=source_fingerprints(settings)),
        lambda out: ingest(settings, out, previous=previous, on_progress=told),
    )


def validated_data(settings: Settings, raw: Artifact, *, on_progress: OnProgress | None = None) -> Artifact:
    """The records that passed every check, and the quarantine.

    A failing critical check is in the summary's ``checks``; whoever goes on must look at them.
    """
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.validation import validate

    rules = settings.dataset.model_dump(mode="json", include={"allowed_licences", "max_pixels", "min_side"})
    rules["max_caption_length"] = settings.dataset.max_caption_length
    return artifact_store(settings).build(
        "validated_data",
        _inputs("validated_data", raw=raw.data_version, rules=rules),
        lambda out: validate(
            read_manifest(raw.file("manifest.parquet")),
            PictureStore(settings.paths.pictures),
            settings,
            out,
            on_progress=_named("pictures decoded", on_progress),
        ),
    )


def image_features(settings: Settings, validated: Artifact, *, on_progress: OnProgress | None = None) -> Artifact:
    """Vectors of the pictures and captions, computed once each."""
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.datasets.records import read_manifest
    from genai_assets.evaluation.feature_index import compute_features, open_feature_index

    return artifact_store(settings).build(
        "image_features",
        _inputs(
            "image_features",
            validated=validated.data_version,
            house_style=settings.dataset.house_style,
            version=open_feature_index(settings).version,
        ),
        lambda out: compute_features(
            read_manifest(validated.file("manifest.parquet")),
            PictureStore(settings.paths.pictures),
            settings,
            out,
            on_progress=on_progress,
        ),
    )


def splits(settings: Settings, validated: Artifact) -> Artifact:
    """Every record in its split.

    Raises:
        ValueError: nothing to train on, or nothing held out.
    """
    from genai_assets.datasets.records import read_manifest
    from genai_assets.datasets.release import released_categories
    from genai_assets.datasets.splits import split

    released = released_categories(settings.paths)
    return artifact_store(settings).build(
        "splits",
        _inputs(
            "splits",
            validated=validated.data_version,
            rules=settings.splits.model_dump(mode="json"),
            house_style=settings.dataset.house_style,
            released=sorted(released),
        ),
        lambda out: split(read_manifest(validated.file("manifest.parquet")), settings, released, out),
    )


def base_model(settings: Settings) -> Artifact:
    """The base model as a complete pipeline folder.

    Raises:
        BaseModelError: the setting names nothing that can be fine-tuned, or a model of another resolution.
    """
    from genai_assets.diffusion.base_model import BaseModelError, assemble_base_model, base_model_version

    base = artifact_store(settings).build(
        "base_model",
        _inputs("base_model", content=base_model_version(settings.base_model)),
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
    inputs = _inputs(
        "fine_tuned_autoencoder",
        base=base.data_version,
        validated=validated.data_version,
        splits=split.data_version,
        resolution=side,
        house_style=settings.dataset.house_style,
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

    def measure(name: str) -> Measured:
        trial = settings.model_copy(
            update={
                "base_model": name,
                "fine_tune": settings.fine_tune.model_copy(update={"max_steps": chosen.steps}),
            }
        )
        base = base_model(trial)
        cache = training_cache(trial, validated, split, base, on_progress=on_progress)
        with tempfile.TemporaryDirectory(dir=settings.home, prefix=".trial-") as place:
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
            settings, DataFacts(len(rows), rows["concept"].nunique(), side, chosen.language), measure, out
        )

    return artifact_store(settings).build(
        "base_model_selection",
        _inputs(
            "base_model_selection",
            validated=validated.data_version,
            splits=split.data_version,
            bases={name: base_model_version(name) for name in (EMBEDDED, *map(str, chosen.folders))},
            selection=chosen.model_dump(mode="json"),
            device=[device.kind, device.name, device.memory],
            house_style=settings.dataset.house_style,
            max_feedback_share=settings.monitoring.max_feedback_share,
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
        drawer = sampling.load(base.path, device=settings.device, resolution=resolution)
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
            on_progress=_named("prior pictures drawn", on_progress),
        )

    return artifact_store(settings).build(
        "prior_pictures",
        _inputs(
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
    encoders: dict[Any, str] = {
        "pictures": _parts_version(base, PICTURE_PARTS),
        "prompts": _parts_version(base, TEXT_PARTS),
    }
    prior = prior_pictures(settings, base, on_progress=on_progress) if wanted.prior_pictures else None

    def make(out: Path) -> dict[str, Any]:
        refuse_unfit(check_settings(settings))  # before what may be an hour of encoding
        rows = training_rows(read_manifest(validated.file("manifest.parquet")), read_splits(split), settings)
        read = picture_reader(settings)
        if prior:
            rows = pd.concat([rows, prior_rows(prior.path)], ignore_index=True)
            read = prior_reader(prior.path, read)
        family = family_of(load_pipeline(base.path))
        family.prepare_for_encoding(choose_device(settings.device))
        with EncodingStore(f"sqlite:///{settings.paths.encodings}", encoders) as encodings:
            return build_training_cache(
                rows,
                read,
                family,
                out,
                resolution=resolution,
                prompt_template=wanted.prompt_template,
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
        _inputs(
            "training_cache",
            validated=validated.data_version,
            splits=split.data_version,
            encoders=encoders,
            prior=prior.data_version if prior else None,
            resolution=resolution,
            side_multiple=base.summary["side_multiple"],
            max_feedback_share=settings.monitoring.max_feedback_share,
            **wanted.model_dump(mode="json", include={"prompt_template", "aspect_buckets"} | varied),
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
    inputs = _inputs(
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
    from genai_assets.diffusion.fine_tuning import CODE_VERSION

    inputs = _inputs(
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


def drawings(
    settings: Settings,
    model_folder: Path,
    version: str,
    prompts: list[str],
    *,
    on_progress: OnProgress | None = None,
) -> Artifact:
    """Pictures of the evaluation's prompts by one model, drawn once: uint8 [N, S, S, 3], and milliseconds for each."""
    from genai_assets.diffusion.base_model import training_resolution

    seeds = [settings.evaluation.seed + number for number in range(len(prompts))]
    resolution = training_resolution(settings)

    def make(out: Path) -> dict[str, Any]:
        import time

        from genai_assets.diffusion import sampling

        drawer = sampling.load(model_folder, device=settings.device, resolution=resolution)
        pictures: list[np.ndarray] = []
        milliseconds: list[float] = []
        for start in range(0, len(prompts), _DRAWN_AT_ONCE):
            part = slice(start, start + _DRAWN_AT_ONCE)
            began = time.perf_counter()
            drawn = drawer.draw(
                prompts[part],
                seeds=seeds[part],
                steps=settings.sampling.steps,
                guidance_scale=settings.sampling.guidance_scale,
                batch_size=_DRAWN_AT_ONCE,
            )
            milliseconds += [(time.perf_counter() - began) * 1000 / len(drawn)] * len(drawn)
            pictures += [np.asarray(picture, dtype=np.uint8) for picture in drawn]
            if on_progress:
                on_progress(f"drawn by {version}", len(pictures), len(prompts))
        np.save(out / "pictures.npy", np.stack(pictures))
        np.save(out / "milliseconds.npy", np.array(milliseconds))
        return {"pictures": len(pictures), "model_version": version}

    return artifact_store(settings).build(
        "drawings",
        _inputs(
            "drawings",
            model=version,
            content=data_version_of(model_folder),
            prompts=prompts,
            seeds=seeds,
            resolution=resolution,
            sampling=settings.sampling.model_dump(mode="json"),
        ),
        make,
    )


_DRAWN_AT_ONCE = 32


def eval_report(
    settings: Settings,
    model: Artifact,
    base: Artifact,
    split: Artifact,
    validated: Artifact,
    features: Artifact,
    *,
    on_progress: OnProgress | None = None,
) -> Artifact:
    """Figures and report of the model beside its base, the champion when it is another one, and real pictures.

    Raises:
        ValueError: too few held-out concepts.
    """
    from genai_assets.datasets.records import read_manifest
    from genai_assets.diffusion.base_model import training_resolution
    from genai_assets.evaluation.evaluate import HeldOut, KnownPictures, evaluate
    from genai_assets.evaluation.feature_index import FeatureTable

    version = model.summary["model_version"]
    champion = _champion(settings)
    rival = champion if champion and champion.model_version != version else None

    def make(out: Path) -> dict[str, Any]:
        manifest = read_manifest(validated.file("manifest.parquet"))
        table = manifest.merge(read_splits(split)[["id", "caption", "split"]], on=["id", "caption"])
        house = table["style"] == settings.dataset.house_style
        asked = _held_out_rows(table[house], settings)
        side = training_resolution(settings)
        read = picture_reader(settings)
        held_out = HeldOut(
            concepts=asked["concept"].tolist(),
            captions=asked["caption"].tolist(),
            prompts=[settings.fine_tune.prompt(caption, settings.dataset.house_style) for caption in asked["caption"]],
            pictures=np.stack([read(record_id, (side, side)) for record_id in asked["id"]]),
        )
        models: dict[str, tuple[Path, str]] = {
            "base": (base.path, f"base-{base.data_version}"),
            "fine_tuned": (model.path, version),
        }
        if rival is not None:
            models["champion"] = (rival.model_path, rival.model_version)
        drawn = {
            name: drawings(settings, folder, label, list(held_out.prompts), on_progress=on_progress)
            for name, (folder, label) in models.items()
        }
        known = FeatureTable.read(features.path)
        others = KnownPictures.from_rows(table[~house], known)
        trained_on = house & (table["split"] == "train")
        result = evaluate(
            {name: np.load(artifact.file("pictures.npy")) for name, artifact in drawn.items()},
            held_out,
            KnownPictures.from_rows(table[trained_on], known),
            others if len(others.names) else None,
            settings=settings,
            out=out,
            floor_vectors=KnownPictures.from_rows(table[trained_on & ~table["variant"]], known).vectors,
            latency_ms={name: np.load(artifact.file("milliseconds.npy")).tolist() for name, artifact in drawn.items()},
            provenance={
                "model_version": version,
                "base_model": settings.base_model,
                "data_version": validated.data_version,
                "splits": split.data_version,
                "sampling_steps": settings.sampling.steps,
                "guidance_scale": settings.sampling.guidance_scale,
                "training": model.summary,
            },
        )
        return {
            "model_version": version,
            "pictures": result["pictures"],
            "models": result["models"],
            "kid_difference": result["kid_difference"],
        }

    return artifact_store(settings).build(
        "eval_report",
        _inputs(
            "eval_report",
            model=model.data_version,
            base=base.data_version,
            champion=rival.model_version if rival else None,
            splits=split.data_version,
            features=features.data_version,
            settings=settings.evaluation.model_dump(mode="json"),
            sampling=settings.sampling.model_dump(mode="json"),
        ),
        make,
    )


def gate(settings: Settings, report: Artifact) -> Any:
    """What the gate decides of an evaluated model: a ``promotion.Decision``.

    A model that is the champion already is measured without a rival and stays.
    """
    from genai_assets.evaluation.promotion import Decision, Figures, decide

    champion = _champion(settings)
    metrics = read_metrics(report)
    if champion is None:
        return decide(Figures.from_metrics(metrics), None, settings.promotion)
    if champion.model_version == report.summary["model_version"]:
        return Decision(False, f"{champion.model_version} is the champion already ({champion.reason})")
    if report.inputs["champion"] != champion.model_version:
        return Decision(
            False,
            f"Not promoted: this evaluation does not compare with the champion, {champion.model_version}; "
            "materialize eval_report again.",
        )
    rival = Figures.from_metrics(metrics, "champion")
    return decide(Figures.from_metrics(metrics), rival, settings.promotion)


def champion_model(settings: Settings, model: Artifact, report: Artifact) -> tuple[Artifact | None, str]:
    """Promote the model if the gate says so.

    Returns:
        tuple: the champion's artifact, or None when this model is not the champion; and the reason.

    Raises:
        BrokenModel: the gate calls the model broken.
        ChampionChanged: another promotion came in between.
    """
    from genai_assets.registry import tracking
    from genai_assets.registry.champion import ChampionPointer, ModelVersion

    version = model.summary["model_version"]
    with ChampionPointer(settings.database_url) as pointer:
        before = pointer.current()
        decision = gate(settings, report)
        if decision.broken:
            raise BrokenModel(decision.reason)
        champion = before
        if decision.promote:
            model.verify()
            metrics = {**report.summary["models"]["fine_tuned"], "eval_report": str(report.path)}
            champion = pointer.promote(
                ModelVersion(version, model.path, metrics),
                expected_revision=before.revision if before else 0,
                reason=decision.reason,
            )
    tracking.reconcile_champion(settings, champion)
    if champion is None or champion.model_version != version:
        return None, decision.reason
    facts = {
        "model_version": version,
        "path": str(champion.model_path),
        "revision": champion.revision,
        "reason": champion.reason,
        "eval_report": champion.metrics["eval_report"],
    }

    def make(out: Path) -> dict[str, Any]:
        from genai_assets import durable

        durable.write_json(out / "champion.json", facts)
        return facts

    artifact = artifact_store(settings).build("champion_model", _inputs("champion_model", **facts), make)
    return artifact, decision.reason


class BrokenModel(RuntimeError):
    """The gate refuses a model as broken; the message says why."""


def bento_service(settings: Settings, champion: Artifact) -> Artifact:
    """The champion packed as a Bento that was started, asked for a picture over HTTP, and stopped.

    Raises:
        PackagingError: BentoML refused to build.
        ServiceFailed: the service did not start, or did not draw.
    """
    from genai_assets import durable
    from genai_assets.serving.packaging import build_bento, smoke_test

    package = Path(__file__).parent
    code = {path.relative_to(package).as_posix(): durable.digest_file(path) for path in package.rglob("*.py")}

    def make(out: Path) -> dict[str, Any]:
        facts = champion.summary
        bento = build_bento(Path(facts["path"]), facts["model_version"], settings)
        tried = smoke_test(bento, settings, SMOKE_TEST_PROMPT)
        (out / "smoke_test.png").write_bytes(tried.png)
        return {
            "tag": bento.tag,
            "path": str(bento.path),
            "megabytes": round(bento.size / 1e6, 1),
            "model_version": bento.model_version,
            "smoke_test_prompt": SMOKE_TEST_PROMPT,
            "smoke_test_ms": tried.latency_ms,
        }

    return artifact_store(settings).build(
        "bento_service",
        _inputs(
            "bento_service",
            model=champion.summary["model_version"],
            package=durable.digest_json(code)[:16],
            sampling=settings.sampling.model_dump(mode="json"),
        ),
        make,
    )


SMOKE_TEST_PROMPT = "red apple"


def inference_log(settings: Settings) -> Artifact:
    """The champion's newest requests, described for drift detection.

    Raises:
        NoChampion: nothing was promoted yet.
        LogUnavailable: the request log exists but cannot be read.
    """
    from genai_assets import durable
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.diffusion.base_model import training_resolution
    from genai_assets.evaluation.features import PictureFeatures, PictureProjection
    from genai_assets.monitoring.inference_log import write_inference_log
    from genai_assets.serving.request_log import RequestLog

    champion = current_champion(settings)
    window = settings.monitoring.window
    with RequestLog(settings.database_url) as log:
        ids = log.requests(model_version=champion.model_version, newest=window)["id"].tolist()
        return artifact_store(settings).build(
            "inference_log",
            _inputs(
                "inference_log",
                model=champion.model_version,
                report=champion.metrics["eval_report"],
                requests=durable.digest_json(ids)[:16],
                count=len(ids),
            ),
            lambda out: write_inference_log(
                log,
                PictureStore(settings.paths.drawn),
                PictureProjection.load(Path(champion.metrics["eval_report"]) / "pca.npz"),
                out,
                window=window,
                resolution=training_resolution(settings),
                model_version=champion.model_version,
                features=PictureFeatures(resolution=settings.evaluation.feature_resolution),
            ),
        )


def drift_report(settings: Settings, log: Artifact) -> Artifact:
    """Whether requests or drawn pictures moved away from what the champion was evaluated with: yes, no or unknown."""
    from genai_assets.monitoring.drift import detect_drift

    champion = current_champion(settings)

    def make(out: Path) -> dict[str, Any]:
        reference = pd.read_parquet(Path(champion.metrics["eval_report"]) / "reference.parquet")
        current = pd.read_parquet(log.file("inference_log.parquet"))
        result = detect_drift(reference, current, settings.monitoring, out)
        return {
            "verdict": result.verdict,
            "reason": result.reason,
            "share": result.share,
            "latency_drifted": result.latency_drifted,
            "requests": result.current_requests,
            "model_version": champion.model_version,
        }

    return artifact_store(settings).build(
        "drift_report",
        _inputs(
            "drift_report",
            log=log.data_version,
            model=champion.model_version,
            settings=settings.monitoring.model_dump(mode="json"),
        ),
        make,
    )


def feedback_dataset(settings: Settings) -> Artifact:
    """What people think of the pictures, curated; full batches are closed and thereby become raw data.

    Raises:
        LogUnavailable: the request log exists but cannot be read.
    """
    from genai_assets import durable
    from genai_assets.monitoring.feedback import build_feedback_dataset
    from genai_assets.serving.request_log import RequestLog

    with RequestLog(settings.database_url) as log:
        events = log.feedback()["id"].tolist()
    return artifact_store(settings).build(
        "feedback_dataset",
        _inputs(
            "feedback_dataset",
            events=durable.digest_json(sorted(events))[:16],
            count=len(events),
            batch_size=settings.monitoring.feedback_batch_size,
        ),
        lambda out: build_feedback_dataset(settings, out),
    )


class NoChampion(RuntimeError):
    """There is no champion yet; something must be trained, evaluated and promoted first."""


def current_champion(settings: Settings) -> "Champion":
    """The champion as the pointer has it.

    Raises:
        NoChampion: nothing was promoted yet.
    """
    champion = _champion(settings)
    if champion is None:
        raise NoChampion("there is no champion yet: run `make demo`, or the job `retrain`")
    return champion


def _champion(settings: Settings) -> "Champion | None":
    from genai_assets.registry.champion import ChampionPointer

    with ChampionPointer(settings.database_url) as pointer:
        return pointer.current()


def read_metrics(report: Artifact | Path) -> dict[str, Any]:
    """All figures of an evaluation, from its artifact or that artifact's folder."""
    import json

    folder = report if isinstance(report, Path) else report.path
    return json.loads((folder / "metrics.json").read_text())


def model_version(inputs: Mapping[str, Any]) -> str:
    """Name of the model that these inputs make."""
    from genai_assets import durable

    return f"m-{durable.digest_json(dict(inputs))[:12]}"


def read_splits(split: Artifact) -> pd.DataFrame:
    """The table of a splits artifact."""
    return pd.read_parquet(split.file("splits.parquet"))


def picture_reader(settings: Settings) -> Callable[[str, tuple[int, int]], np.ndarray]:
    """Reads a picture of the store at a size (height, width), as RGB uint8 [height, width, 3] on white."""
    from genai_assets.datasets.decoding import decode
    from genai_assets.datasets.picture_store import PictureStore
    from genai_assets.diffusion.aspect_buckets import to_bucket

    store = PictureStore(settings.paths.pictures)

    def read(record_id: str, size: tuple[int, int]) -> np.ndarray:
        return to_bucket(decode(store.read(record_id), max_pixels=settings.dataset.max_pixels), *size)

    return read


def _held_out_rows(house: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """One plain picture for each held-out concept, in an order that is the same for ever, at most as many as asked."""
    from genai_assets.datasets.records import FEEDBACK_SOURCE
    from genai_assets.datasets.splits import concept_position

    real = (house["source"] != FEEDBACK_SOURCE) & ~house["variant"]
    rows = house[(house["split"] == "held_out") & real].drop_duplicates("concept")
    order = rows["concept"].map(lambda concept: concept_position(concept, "genai-evaluation-1"))
    return rows.assign(order=order).sort_values(["order", "concept"]).head(settings.evaluation.pictures)


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
            "limits": "Licences of the training pictures, and whom to credit, are in the manifest's records.",
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


def _named(what: str, on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    return (lambda done, total: on_progress(what, done, total)) if on_progress else None


def _inputs(kind: str, **values: Any) -> dict[str, Any]:
    return {"code": CODE_VERSIONS[kind], **values}
