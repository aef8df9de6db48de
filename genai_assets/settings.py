"""Typed settings: environment variables and one TOML file, read once; nothing is created at import.

Belongs here: every choice a team makes, with its default, its range and its meaning, and where things lie below the
home folder. Environment wins over the file: ``GENAI_BASE_MODEL=...``, nested ``GENAI_DATASET__FOLDER=...``. The file
is ``genai.toml`` in the working folder, or the one that ``GENAI_CONFIG`` names.
"""

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from genai_assets.datasets.caption_quality import CaptionRules
from genai_assets.datasets.captions import refuse_template
from genai_assets.diffusion.config import Augmentation
from genai_assets.diffusion.drawing.backends import BackendName

CONFIG_VARIABLE = "GENAI_CONFIG"
CONFIG_FILE = "genai.toml"
OTHER_VARIABLES = frozenset(
    {
        CONFIG_VARIABLE,
        "GENAI_SERVE_MODEL",
        "GENAI_SERVE_FEW_STEPS",
        "GENAI_TRACEBACK",
        "GENAI_TEST_CACHE",
        "GENAI_CHROMIUM",
    }
)
"""Variables of ours that are no settings."""


EMBEDDED = "embedded"
"""The base model that comes with the package."""

STEPS_OF_THE_EMBEDDED_BASE = 8
"""Read off the curve in docs/sampling.md: more steps of its noise scheduler, DPM-Solver++, gain nothing measurable."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _SectionWithDatabase(_Section):
    # Of the whole section, for a message about one field repeats what it was given: here perhaps a password.
    @model_validator(mode="before")
    @classmethod
    def _means_the_same_database_everywhere(cls, values: Any) -> Any:
        """A relative SQLite file is meant from the working folder; our programs run in folders of their own."""
        url = values.get("database_url") if isinstance(values, Mapping) else None
        return {**values, "database_url": _from_anywhere(url)} if url and isinstance(url, str) else values


def sqlite_url(file: Path) -> str:
    """SQLAlchemy URL of a SQLite file, whatever characters its path has."""
    # As SQLAlchemy writes it, and without it: `genai doctor` looks at an environment where it may be missing.
    return "sqlite:///" + str(file).replace("%", "%25").replace("?", "%3F")


def _from_anywhere(url: str) -> str:
    """The URL; with an absolute path when it names a SQLite file by a plain relative one."""
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is no number
        raise ValueError(
            "database_url is no SQLAlchemy URL, dialect+driver://user@host/database or sqlite:///file"
        ) from None
    file = parsed.database or ":memory:"
    if parsed.get_backend_name() != "sqlite" or file == ":memory:" or file.startswith("file:"):
        return url
    absolute = parsed.set(database=str(Path(file).expanduser().absolute()))
    return absolute.render_as_string(hide_password=False)


class DatasetSettings(_Section):
    """Which pictures come in, and under which rules."""

    folder: Path | None = Field(default=None, description="A folder of pictures with captions; replaces the icon sets.")
    folder_licence: str = Field(default="LicenseRef-own", description="SPDX licence of the folder's pictures.")
    house_style: str = Field(
        default="fluent", description="The style to learn; a folder's pictures are given this style."
    )
    icon_sets: tuple[str, ...] | None = Field(
        default=None, description="Which icon sets to read; not set: the example's, when there is no other source."
    )
    sources: tuple[dict[str, Any], ...] = Field(
        default=(), description="Further sources, each a table with its kind and that kind's options."
    )
    allow_mass_removal: bool = Field(
        default=False, description="Let more than half of all pictures vanish from their sources at once."
    )
    limit: int | None = Field(
        default=None, ge=1, description="At most so many pictures a source (small trials and tests)."
    )
    allowed_licences: tuple[str, ...] = (
        "Apache-2.0",
        "MIT",
        "CC-BY-4.0",
        "CC0-1.0",
        "BSD-3-Clause",
        "LicenseRef-own",
        "LicenseRef-own-output",
    )
    max_pixels: int = Field(
        default=64_000_000, ge=1, description="Larger pictures are quarantined before they are decoded."
    )
    background: str = Field(
        default="#ffffff", pattern="^#[0-9a-fA-F]{6}$", description="The paper that transparent pictures are laid on."
    )
    decode_seconds: float = Field(default=20.0, gt=0, description="A picture that takes longer is quarantined.")
    decode_memory_mib: int = Field(
        default=2048, ge=64, description="A picture that needs more, in the worker that decodes it, is quarantined."
    )
    decode_workers: int | None = Field(
        default=None, ge=1, le=256, description="Processes that decode pictures; not set: one a core."
    )
    min_side: int = Field(default=32, ge=1, description="Shorter sides are quarantined, pixels.")
    max_caption_length: int = Field(default=300, ge=1, description="Characters.")
    offline: bool = Field(default=False, description="Never ask a package registry; use what is cached.")

    @property
    def paper(self) -> tuple[int, int, int]:
        """``background`` as red, green and blue, each 0–255."""
        red, green, blue = bytes.fromhex(self.background.removeprefix("#"))
        return red, green, blue


class OwnExpectation(_Section):
    """A claim of the team's own about the manifest: a column and exactly one rule, or a Python function."""

    claim: str = Field(pattern=r"^[a-z][a-z0-9_]{0,79}$", description="Its name, as a claim that can fail.")
    column: str | None = Field(default=None, description="Of the manifest, or aspect: longer side over shorter side.")
    severity: Literal["critical", "warning"] = Field(
        default="warning", description="critical: a record that breaks it is quarantined."
    )
    description: str = Field(default="", description="The claim in a sentence.")
    not_null: bool = Field(default=False, description="Every record has a value; blank text is none.")
    unique: bool = Field(default=False, description="No value occurs twice.")
    between: tuple[float, float] | None = Field(default=None, description="Least and largest number; inf is allowed.")
    in_set: tuple[str | int | float, ...] | None = Field(default=None, min_length=1)
    not_in_set: tuple[str | int | float, ...] | None = Field(default=None, min_length=1)
    matches: str | None = Field(default=None, description="A regular expression found in every text.")
    matches_not: str | None = Field(default=None, description="A regular expression found in no text.")
    max_share: float | None = Field(default=None, gt=0, le=1, description="Of records that one value may have.")
    function: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function; takes the manifest, returns which records hold, or the ids of those that do not.",
    )

    @property
    def rule(self) -> str:
        """Which of the rules it states."""
        return self._stated()[0]

    def _stated(self) -> list[str]:
        rules = ("not_null", "unique", "between", "in_set", "not_in_set", "matches", "matches_not", "max_share")
        return [name for name in (*rules, "function") if getattr(self, name) not in (None, False)]

    @model_validator(mode="after")
    def _states_one_rule(self) -> Self:
        stated = self._stated()
        if len(stated) != 1:
            raise ValueError(f"{self.claim} must state exactly one rule, not {', '.join(stated) or 'none'}")
        if (self.column is None) != (stated == ["function"]):
            needs = "needs no column" if self.column else "needs a column"
            raise ValueError(f"{self.claim}: the rule {stated[0]} {needs}")
        if self.between and not self.between[0] <= self.between[1]:
            raise ValueError(f"{self.claim}: between must go from the least to the largest, not {list(self.between)}")
        for pattern in (self.matches, self.matches_not):
            if pattern is not None:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{self.claim}: {pattern!r} is no regular expression: {error}") from error
        return self


class ReadinessSettings(_Section):
    """What the data must be like as a whole, and the team's own claims about it."""

    min_records: int = Field(default=1, ge=1, description="Fewer records fail.")
    max_aspect: float = Field(default=4.0, ge=1, description="Longer side over shorter; longer pictures are set aside.")
    max_near_duplicate_share: float = Field(
        default=0.25, ge=0, le=1, description="Of pictures that look nearly like another one, variants left out."
    )
    near_duplicate_distance: int = Field(
        default=4, ge=0, le=16, description="Bits of 64 by which two pictures' hashes differ at most to count as near."
    )
    max_class_imbalance: float = Field(
        default=50.0, ge=1, description="Records of the most common category for one of the rarest."
    )
    max_source_share: float = Field(
        default=0.9, gt=0, le=1, description="Of records from one source, when there are several."
    )
    max_synthetic_share: float = Field(default=0.3, ge=0, le=1, description="Of records that a model drew.")
    max_age_days: int | None = Field(
        default=None, ge=1, description="The newest record may be so old; not set: of any age."
    )
    expectations: tuple[OwnExpectation, ...] = Field(default=(), description="Claims of the team's own.")
    functions: tuple[str, ...] = Field(
        default=(), description="module:function each; shorthand for expectations with a function, as warnings."
    )

    @model_validator(mode="after")
    def _names_each_claim_once(self) -> Self:
        names = [own.claim for own in self.own]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"stated twice: {', '.join(twice)}")
        return self

    @property
    def own(self) -> tuple[OwnExpectation, ...]:
        """Every claim of the team's own; a function by itself is named as it is called."""
        shorthand = [OwnExpectation(claim=name.rpartition(":")[2], function=name) for name in self.functions]
        return (*self.expectations, *shorthand)


class SplitSettings(_Section):
    """How concepts are parted; shares of concepts, decided by a keyed hash."""

    held_out_share: float = Field(default=0.10, gt=0, lt=0.5)
    validation_share: float = Field(default=0.05, gt=0, lt=0.5)
    test_share: float = Field(
        default=0.05, ge=0, lt=0.5, description="Sealed: neither training nor the gate looks at these concepts."
    )
    key: str = Field(default="genai-splits-1", description="Key of the hash: another key is another split.")
    later_categories: tuple[str, ...] = Field(
        default=("animals-nature",),
        description="House-style categories kept back as a batch of their own until released.",
    )

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        kept_from_training = self.held_out_share + self.validation_share + self.test_share
        if kept_from_training >= 1:
            raise ValueError(
                f"held_out_share, validation_share and test_share add up to {kept_from_training:g}; "
                "they must leave something to train on"
            )
        return self


class CurationSettings(_Section):
    """When two pictures count as one, and which of them is trained on. docs/curation.md has the measurements."""

    max_hash_distance: int = Field(
        default=4, ge=0, le=16, description="Bits of 64 by which perceptual hashes of near duplicates may differ."
    )
    max_feature_distance: float = Field(
        default=0.03, ge=0, le=0.5, description="Cosine distance by which features of near duplicates may differ."
    )
    max_colour_difference: float = Field(
        default=12.0,
        ge=0,
        le=255,
        description="Levels of 255 by which any of 16 x 16 cells may differ; tells a recoloured picture from a copy.",
    )
    keep: Literal["all", "first", "largest", "real_before_synthetic"] = Field(
        default="all", description="Which picture of a cluster is trained on; all: clusters only bind splits."
    )


class CaptionSettings(CaptionRules):
    """What captions must be like, how they become prompts, and who writes those that are missing."""

    templates: tuple[str, ...] = Field(
        default=(),
        description="Further prompts of a picture, from {caption}, {style}, {category}, {keywords} and {concept}.",
    )
    prompts_a_picture: int = Field(default=4, ge=1, le=64, description="The most prompts that a picture has.")
    model: str | None = Field(
        default=None, description="An image-to-text model, a folder or a hub's name, for pictures without a caption."
    )
    download: bool = Field(default=False, description="The model may be fetched from the hub; else it must be here.")
    max_new_tokens: int = Field(default=40, ge=1, le=512, description="The longest caption the model writes.")
    batch_size: int = Field(default=8, ge=1, le=256, description="Pictures the model looks at together.")

    @field_validator("templates")
    @classmethod
    def _can_be_filled(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            refuse_template(template)
        return templates


class GovernanceSettings(_Section):
    """Opt-outs, and what the dataset card says that the pictures do not."""

    honour_opt_outs: bool = Field(
        default=True, description="Quarantine pictures whose makers reserve them from training."
    )
    title: str = Field(default="", description="Of the dataset card; not set: made of the house style.")
    description: str = Field(default="", description="A paragraph for the dataset card: what the pictures are for.")
    creators: tuple[str, ...] = Field(default=(), description="People or teams who made the dataset.")
    url: str = Field(default="", description="Where the dataset can be found, if anywhere.")
    language: str | None = Field(default="en", description="Of the captions, ISO 639-1; not set: not known.")


class SyntheticSettings(_Section):
    """Pictures that the champion draws for thin classes; off unless a share is set."""

    max_share: float = Field(
        default=0.0, ge=0, le=0.5, description="Share of training pictures that may be synthetic; 0: none, and off."
    )
    thin_below: float = Field(
        default=0.5, gt=0, le=1, description="A category with fewer training concepts than this share of the median."
    )
    candidates: int = Field(default=4, ge=1, le=64, description="Pictures drawn for each that is wanted.")
    max_pictures: int = Field(default=64, ge=1, le=10_000, description="Kept in one batch, at most.")
    max_strangeness: float = Field(
        default=1.5,
        gt=0,
        description="Farther from the nearest real picture than this, times the usual distance, is dropped.",
    )
    seed: int = Field(default=0, ge=0)

    @property
    def wanted(self) -> bool:
        """Whether a share is set."""
        return self.max_share > 0


def _written(field: str | None, form: str | None, conversion: str | None) -> str:
    """A place of a template as it stands there, of what ``Formatter.parse`` makes of it; empty where there is none."""
    if field is None:
        return ""
    return f"{{{field}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}}"


class FineTuneSettings(_Section):
    """Fine-tuning of the base model on the house style."""

    method: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=16, ge=1)
    train_text_encoder: bool = Field(default=False, description="Train the text encoder along; with method full only.")
    resolution: int | None = Field(
        default=None, ge=16, le=2048, multiple_of=8, description="Pixels a side; not set: the base model's own."
    )
    aspect_buckets: bool = Field(default=False, description="Keep the pictures' aspects instead of padding to squares.")
    max_minutes: float = Field(default=5.0, gt=0, description="Wall-clock budget of training, estimated at the start.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Step budget; whichever budget ends first ends training."
    )
    batch_size: int = Field(default=64, ge=1, description="Pictures a step, over all processes.")
    micro_batch_size: int | None = Field(default=None, ge=1, description="Pictures at a time; not set: all of a batch.")
    gradient_checkpointing: bool = Field(default=False, description="Save memory, spend time.")
    processes: int = Field(default=1, ge=1, le=64, description="Training processes: one for each GPU.")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the matrices of attention and feed-forward layers, AdamW for the rest."
    )
    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    schedule: Literal["constant_then_decay", "cosine"] = "constant_then_decay"
    weight_decay: float = Field(default=0.02, ge=0)
    loss_weighting: Literal["family", "none", "min_snr"] = "family"
    level_mean: float | None = Field(
        default=None, description="Of the logit-normal noise levels; not set: the family's."
    )
    level_std: float | None = Field(default=None, gt=0)
    min_snr_gamma: float = Field(default=5.0, gt=0)
    warmup_steps: int = Field(default=20, ge=0, description="At most a tenth of all steps.")
    decay_share: float = Field(default=0.5, ge=0, le=1, description="The last share of steps, in which the rate falls.")
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.98, ge=0, lt=1)
    checkpoints_kept: int = Field(default=2, ge=1)
    prompt_dropout: float = Field(default=0.1, ge=0, lt=1, description="Share trained with the empty prompt.")
    augmentation: Augmentation = Augmentation(flip=0)
    latent_variants: int = Field(
        default=4, ge=1, le=64, description="Augmented variants of a picture kept by latent models that crop or turn."
    )
    class_balance: float = Field(default=0.0, ge=0, le=1, description="1: each category is drawn equally often.")
    prior_pictures: int = Field(default=0, ge=0, description="Pictures of the base to preserve its knowledge with.")
    prior_prompts: tuple[str, ...] = Field(default=("a picture",), min_length=1)
    prior_share: float = Field(default=0.25, ge=0, lt=1, description="Share of a batch that is prior pictures.")
    prior_weight: float = Field(default=1.0, ge=0)
    allowed_base_licences: tuple[str, ...] = Field(
        default=("Apache-2.0", "MIT", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "LicenseRef-own"),
        description="Licences a base model may have.",
    )
    keep: Literal["last", "best"] = Field(default="best", description="best: the weights of the best validation.")
    early_stop_after: int = Field(default=0, ge=0, description="Validations without a new best; 0: never.")
    seed: int = Field(default=0, ge=0)
    prompt_template: str = "{caption}, {style} style"

    @field_validator("prompt_template")
    @classmethod
    def _has_a_place_for_the_caption(cls, template: str) -> str:
        try:
            places = [_written(*place) for _, *place in Formatter().parse(template)]
        except ValueError as error:
            raise ValueError(f"may use {{caption}} and {{style}} only, but: {error}") from error
        if others := [place for place in places if place not in ("", "{caption}", "{style}")]:
            raise ValueError(f"may use {{caption}} and {{style}} only, not {others[0]}")
        if not 0 < template.count("{caption}") == places.count("{caption}"):
            raise ValueError("must contain {caption}, and none in double braces")
        return template

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.method == "lora" and self.train_text_encoder:
            raise ValueError("train_text_encoder needs method 'full': a LoRA is of the denoiser alone")
        if self.batch_size < self.processes:
            raise ValueError(f"a batch of {self.batch_size} cannot be shared by {self.processes} processes")
        return self

    def prompt(self, caption: str, style: str) -> str:
        """The prompt for a caption in a style."""
        return self.prompt_template.format(caption=caption, style=style)


class AutoencoderSettings(_Section):
    """Fine-tuning of a latent model's autoencoder on the house style; off unless a budget is set."""

    max_steps: int = Field(default=0, ge=0, description="Step budget; 0: none, and off when max_minutes is unset, too.")
    max_minutes: float | None = Field(default=None, gt=0, description="Wall-clock budget, estimated at the start.")
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    train_encoder: bool = Field(default=False, description="Changes the latents: the denoiser must be trained anew.")
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = Field(default=1e-6, ge=0, description="Without effect on a frozen encoder.")
    perceptual_weight: float = Field(default=0.1, ge=0)
    adversarial_weight: float = Field(default=0.5, ge=0)
    adversarial_start: int = Field(default=200, ge=0, description="Steps before the discriminator sets in.")
    gradient_checkpointing: bool = False
    seed: int = 0

    @property
    def wanted(self) -> bool:
        """Whether a budget is set."""
        return self.max_steps > 0 or self.max_minutes is not None


class DistillationSettings(_Section):
    """A student that draws in a few steps and without guidance; off unless a budget is set."""

    max_steps: int = Field(default=0, ge=0, description="Step budget; 0: none, and off when max_minutes is unset, too.")
    max_minutes: float | None = Field(
        default=None, gt=0, description="Wall-clock budget of the teacher's drawing and the student's training."
    )
    drawing_steps: int = Field(default=4, ge=1, le=4, description="That the student draws in.")
    learns: Literal["auto", "guidance", "trajectory"] = Field(
        default="auto",
        description="What guidance does, in one pass; or to land where many steps lead. auto: as suits the model.",
    )
    teacher_steps: int = Field(
        default=12, ge=1, le=200, description="Of the teacher, where the student learns its trajectory."
    )
    trajectories: int = Field(default=4096, ge=1, description="Pictures the teacher draws; fewer when minutes run out.")
    method: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=32, ge=1)
    batch_size: int = Field(default=64, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1, description="Pictures at a time; not set: all of a batch.")
    gradient_checkpointing: bool = Field(default=False, description="Save memory, spend time.")
    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    ema_decay: float = Field(default=0.98, ge=0, lt=1)
    adversarial_weight: float = Field(
        default=0.0, ge=0, description="Of a discriminator's verdict on the student's pictures; 0: none."
    )
    max_kid_loss: float = Field(
        default=0.1,
        ge=0,
        description="The student serves if its KID is higher than the teacher's by at most this share.",
    )
    seed: int = Field(default=0, ge=0)

    @property
    def wanted(self) -> bool:
        """Whether a budget is set."""
        return self.max_steps > 0 or self.max_minutes is not None


class SelectionSettings(_Section):
    """Which base models at hand are compared, and how long."""

    folders: tuple[Path, ...] = Field(default=(), description="Pipeline folders to compare beside the embedded base.")
    steps: int = Field(default=50, ge=2, description="Training steps of each comparison.")
    language: str | None = Field(default="en", description="Of the captions, ISO 639-1; not set: not known.")


class StudySettings(_SectionWithDatabase):
    """The search for better training settings, by short trainings. Off unless trials are asked for."""

    trials: int = Field(default=0, ge=0, le=10_000, description="Short trainings in all; 0: no study.")
    pictures_a_trial: int = Field(default=8192, ge=1, description="Seen by each trial, whatever its batch size.")
    repeats: int = Field(
        default=1, ge=0, le=20, description="Other seeds with which the best trial must be better once more."
    )
    seed: int = Field(default=0, ge=0, description="Of the choice of values.")
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL of the studies; default SQLite in the home, a file of its own."
    )


class SamplingSettings(_Section):
    """How pictures are drawn."""

    steps: int = Field(default=30, ge=1, le=200, description="Denoising steps; with the embedded base 8 unless set.")
    guidance_scale: float = Field(default=3.0, ge=1, le=20)
    backend: BackendName = Field(
        default="auto", description="How the denoiser computes; auto: OpenVINO on a CPU where it can, else eager."
    )


class EvaluationSettings(_Section):
    """What is measured before a model may be promoted."""

    pictures: int = Field(default=128, ge=4, description="Held-out concepts drawn and measured.")
    seed: int = 1234
    feature_resolution: int = Field(
        default=128, ge=32, le=512, description="Pixels a side seen by the feature extractor."
    )


class PromotionPolicy(_Section):
    """When a challenger replaces the champion."""

    min_kid_improvement: float = Field(
        default=0.0, description="KID must fall by more than this; below 0, it may rise by less than that."
    )
    max_agreement_loss: float = Field(default=0.05, ge=0, le=1, description="R@5 may fall by at most this.")
    max_copied_share: float = Field(
        default=0.2, ge=0, le=1, description="Share of pictures that nearly copy a training one."
    )


class ServingSettings(_SectionWithDatabase):
    """The HTTP service."""

    host: str = "127.0.0.1"
    port: int = Field(default=3111, ge=1, le=65535)
    max_prompt_length: int = Field(default=300, ge=1, description="Characters.")
    max_pictures: int = Field(default=4, ge=1, le=16, description="Pictures a request.")
    max_body_bytes: int = Field(default=16_384, ge=1024)
    max_waiting: int = Field(
        default=8, ge=0, description="Requests that may wait for the one being drawn; more get a 429."
    )
    request_timeout_seconds: float = Field(default=120.0, gt=0)
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL of the request log; default SQLite in the home."
    )


class PagesSettings(_Section):
    """Reports and Data Docs over HTTP, on this machine only."""

    port: int = Field(default=3113, ge=1, le=65535, description="Links in Dagster's metadata lead here.")


class MonitoringSettings(_Section):
    """Drift, feedback, and when a retrain is asked for."""

    min_requests: int = Field(default=50, ge=5, description="Fewer distinct prompts than this: drift is unknown.")
    window: int = Field(default=500, ge=5, description="Newest requests compared with the reference.")
    drift_share: float = Field(default=0.5, gt=0, le=1, description="Share of drifted columns that makes drift a yes.")
    feedback_batch_size: int = Field(default=50, ge=1, description="Liked pictures that close a feedback batch.")
    max_feedback_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of training pictures that may be feedback."
    )
    retrain_cooldown_hours: float = Field(default=6.0, ge=0, le=8784, description="At most a year.")
    max_retrains_a_week: int = Field(default=7, ge=1)


class Settings(BaseSettings):
    """All settings.

    Raises:
        pydantic.ValidationError: a value is out of range or a name is unknown; the message names it.
    """

    model_config = SettingsConfigDict(
        env_prefix="GENAI_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    home: Path = Path(".genai")
    base_model: str = Field(default=EMBEDDED, description='"embedded", or a folder of a diffusers pipeline.')
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dataset: DatasetSettings = DatasetSettings()
    readiness: ReadinessSettings = ReadinessSettings()
    curation: CurationSettings = CurationSettings()
    splits: SplitSettings = SplitSettings()
    captions: CaptionSettings = CaptionSettings()
    governance: GovernanceSettings = GovernanceSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    fine_tune: FineTuneSettings = FineTuneSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    distillation: DistillationSettings = DistillationSettings()
    selection: SelectionSettings = SelectionSettings()
    study: StudySettings = StudySettings()
    sampling: SamplingSettings = SamplingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionPolicy = PromotionPolicy()
    serving: ServingSettings = ServingSettings()
    pages: PagesSettings = PagesSettings()
    monitoring: MonitoringSettings = MonitoringSettings()

    @model_validator(mode="before")
    @classmethod
    def _knows_every_variable(cls, values: Any) -> Any:
        """A misspelt variable would else be passed over in silence."""
        names = [name for name in os.environ if name.startswith("GENAI_") and name not in OTHER_VARIABLES]
        unknown = [name for name in names if name.removeprefix("GENAI_").lower().split("__")[0] not in cls.model_fields]
        if unknown:
            known = ", ".join(f"GENAI_{name.upper()}" for name in cls.model_fields)
            raise ValueError(f"the environment has {', '.join(sorted(unknown))}, but the settings are {known}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _draws_as_its_base_wants(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The embedded base has a noise scheduler that needs few steps; of another base's nothing is known here."""
        asked = values.get("sampling", {})
        asked = asked.model_dump(exclude_unset=True) if isinstance(asked, BaseModel) else asked
        if not isinstance(asked, Mapping):
            return values  # is refused where its own type is known
        if values.get("base_model", EMBEDDED) != EMBEDDED or "steps" in asked:
            return values
        return values | {"sampling": {"steps": STEPS_OF_THE_EMBEDDED_BASE, **asked}}

    @field_validator("home")
    @classmethod
    def _is_absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file."""
        path = Path(os.environ.get(CONFIG_VARIABLE, CONFIG_FILE))
        if CONFIG_VARIABLE in os.environ and not path.is_file():
            raise FileNotFoundError(f"{CONFIG_VARIABLE} names {path}, which is not a file")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    @cached_property
    def paths(self) -> "HomePaths":
        """Where things lie."""
        return HomePaths(self.home)

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the request log and the ledgers."""
        return self.serving.database_url or sqlite_url(self.paths.database)

    @property
    def study_database_url(self) -> str:
        """SQLAlchemy URL of the hyperparameter studies."""
        return self.study.database_url or sqlite_url(self.paths.studies)


class HomePaths:
    """Every place below the home folder. Naming a place creates nothing."""

    def __init__(self, home: Path):
        self.home = home
        self.packages = home / "packages"  # downloaded npm packages, one folder each
        self.downloads = home / "downloads"  # what sources keep of what they fetched; one folder each, safe to delete
        self.pictures = home / "pictures"  # content-addressed store of source pictures
        self.thumbnails = home / "thumbnails"  # of source pictures, by the picture's content
        self.inspections = home / "inspections.sqlite"  # what decoding each picture told, by content
        self.corrections = home / "corrections.sqlite"  # what people made of captions; kept for ever
        self.auto_captions = home / "auto_captions.sqlite"  # what a model said of pictures, by content
        self.drawn = home / "drawn"  # content-addressed store of pictures the service drew
        self.artifacts = home / "artifacts"  # finished stages: KIND/FINGERPRINT/
        self.great_expectations = home / "great_expectations"
        self.feedback = home / "feedback"
        self.synthetic = home / "synthetic"
        self.features = home / "features.lance"  # LanceDB
        self.encodings = home / "encodings.sqlite"  # latents and prompt embeddings by content
        self.checkpoints = home / "checkpoints"
        self.compiled = home / "compiled"  # code that torch compiled for this machine
        self.converted = home / "converted"  # denoisers that OpenVINO converted for this machine
        self.database = home / "genai.sqlite"  # request log, feedback events, retrain ledger
        self.studies = home / "studies.sqlite"  # hyperparameter studies, tables of Optuna's own
        self.mlflow = home / "mlflow"
        self.bentoml = home / "bentoml"
        self.dagster = home / "dagster"
        self.logs = home / "logs"

    @property
    def feedback_batches(self) -> Path:
        """Where closed feedback batches lie, one manifest each."""
        return self.feedback / "batches"

    @property
    def synthetic_batches(self) -> Path:
        """Where closed batches of synthetic pictures lie, one manifest each."""
        return self.synthetic / "batches"

    @property
    def mlflow_url(self) -> str:
        """Tracking URI of MLflow."""
        return sqlite_url(self.mlflow / "mlflow.sqlite")
