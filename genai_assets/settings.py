"""Typed settings: environment variables and one TOML file, read once; nothing is created at import.

Belongs here: every choice a team makes, with its default, its range and its meaning, and where things lie below the
home folder. Environment wins over the file: ``GENAI_BASE_MODEL=...``, nested ``GENAI_DATASET__FOLDER=...``. The file
is ``genai.toml`` in the working folder, or the one that ``GENAI_CONFIG`` names.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

CONFIG_VARIABLE = "GENAI_CONFIG"
CONFIG_FILE = "genai.toml"
OTHER_VARIABLES = frozenset(
    {CONFIG_VARIABLE, "GENAI_SERVE_MODEL", "GENAI_TRACEBACK", "GENAI_TEST_CACHE", "GENAI_CHROMIUM"}
)
"""Variables of ours that are no settings."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetSettings(_Section):
    """Which pictures come in, and under which rules."""

    folder: Path | None = Field(default=None, description="A folder of pictures with captions; replaces the icon sets.")
    folder_licence: str = Field(default="LicenseRef-own", description="SPDX licence of the folder's pictures.")
    house_style: str = Field(
        default="fluent", description="The style to learn; a folder's pictures are given this style."
    )
    icon_sets: tuple[str, ...] = ("noto", "twemoji", "fluent-emoji-3d")
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
    min_side: int = Field(default=32, ge=1, description="Shorter sides are quarantined, pixels.")
    max_caption_length: int = Field(default=300, ge=1, description="Characters.")
    offline: bool = Field(default=False, description="Never ask a package registry; use what is cached.")


class SplitSettings(_Section):
    """How concepts are parted; shares of concepts, decided by a keyed hash."""

    held_out_share: float = Field(default=0.10, gt=0, lt=0.5)
    validation_share: float = Field(default=0.05, gt=0, lt=0.5)
    key: str = Field(default="genai-splits-1", description="Key of the hash: another key is another split.")
    later_categories: tuple[str, ...] = Field(
        default=("animals-nature",),
        description="House-style categories kept back as a batch of their own until released.",
    )


class FineTuneSettings(_Section):
    """Fine-tuning of the base model on the house style."""

    method: Literal["full", "lora"] = "full"
    resolution: int = Field(default=64, ge=16, le=2048, multiple_of=8, description="Pixels a side.")
    max_minutes: float = Field(default=5.0, gt=0, description="Wall-clock budget of training.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Step budget; whichever budget ends first ends training."
    )
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    lora_rank: int = Field(default=16, ge=1)
    seed: int = 0
    prompt_template: str = "{caption}, {style} style"

    @field_validator("prompt_template")
    @classmethod
    def _has_a_place_for_the_caption(cls, template: str) -> str:
        try:
            filled = template.format(caption="CAPTION", style="STYLE")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"may use {{caption}} and {{style}} only, but: {error}") from error
        if "CAPTION" not in filled:
            raise ValueError("must contain {caption}")
        return template

    def prompt(self, caption: str, style: str) -> str:
        """The prompt for a caption in a style."""
        return self.prompt_template.format(caption=caption, style=style)


class SamplingSettings(_Section):
    """How pictures are drawn."""

    steps: int = Field(default=30, ge=1, le=200)
    guidance_scale: float = Field(default=3.0, ge=1, le=20)


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


class ServingSettings(_Section):
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


class MonitoringSettings(_Section):
    """Drift, feedback, and when a retrain is asked for."""

    min_requests: int = Field(default=50, ge=5, description="Fewer distinct prompts than this: drift is unknown.")
    window: int = Field(default=500, ge=5, description="Newest requests compared with the reference.")
    drift_share: float = Field(default=0.5, gt=0, le=1, description="Share of drifted columns that makes drift a yes.")
    feedback_batch_size: int = Field(default=50, ge=1, description="Liked pictures that close a feedback batch.")
    max_feedback_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of training pictures that may be feedback."
    )
    retrain_cooldown_hours: float = Field(default=6.0, ge=0)
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
    base_model: str = Field(default="embedded", description='"embedded", or a folder of a diffusers pipeline.')
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dataset: DatasetSettings = DatasetSettings()
    splits: SplitSettings = SplitSettings()
    fine_tune: FineTuneSettings = FineTuneSettings()
    sampling: SamplingSettings = SamplingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionPolicy = PromotionPolicy()
    serving: ServingSettings = ServingSettings()
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
        return self.serving.database_url or f"sqlite:///{self.paths.database}"


class HomePaths:
    """Every place below the home folder. Naming a place creates nothing."""

    def __init__(self, home: Path):
        self.home = home
        self.packages = home / "packages"  # downloaded npm packages, one folder each
        self.pictures = home / "pictures"  # content-addressed store of source pictures
        self.drawn = home / "drawn"  # content-addressed store of pictures the service drew
        self.artifacts = home / "artifacts"  # finished stages: KIND/FINGERPRINT/
        self.great_expectations = home / "great_expectations"
        self.feedback = home / "feedback"
        self.features = home / "features.lance"  # LanceDB
        self.checkpoints = home / "checkpoints"
        self.compiled = home / "compiled"  # code that torch compiled for this machine
        self.database = home / "genai.sqlite"  # request log, feedback events, retrain ledger
        self.mlflow = home / "mlflow"
        self.bentoml = home / "bentoml"
        self.dagster = home / "dagster"
        self.logs = home / "logs"

    @property
    def feedback_batches(self) -> Path:
        """Where closed feedback batches lie, one manifest each."""
        return self.feedback / "batches"

    @property
    def mlflow_url(self) -> str:
        """Tracking URI of MLflow."""
        return f"sqlite:///{self.mlflow / 'mlflow.sqlite'}"
