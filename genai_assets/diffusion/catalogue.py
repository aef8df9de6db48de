"""What is known of base models before they are trained: licences, sizes, the memory that training needs.

Belongs here: the catalogue (``base_models.toml``), the same facts read from a local folder, the estimate of memory, and
the check that is made before a run starts. Nothing is downloaded and no weights are loaded: configs and the headers of
the weight files say enough. Which of several models to take is ``selection``.
"""

import json
import math
import os
import shutil
import struct
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genai_assets.datasets.licences import LicencePolicy
from genai_assets.diffusion.base_model import (
    EMBEDDED,
    EMBEDDED_FOLDER,
    INDEX,
    BaseModelError,
    locate_base_model,
    pipeline_class_of,
)
from genai_assets.diffusion.families import PIPELINE_CLASSES, UnknownFamily, family_class

if TYPE_CHECKING:
    from genai_assets.settings import Settings

CATALOGUE_FILE = Path(__file__).parent / "base_models.toml"
ALLOWED_BASE_LICENCES = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "LicenseRef-own")
"""Licences that ask for no more than credit. All others bind what is made with the model, or ask who you are."""

GB = 1e9
CHECKPOINTS_ON_DISK = 3
"""A run keeps two, and writes the next before it drops the oldest."""
TRUST = 1.25
"""An estimate is believed when it is wrong by no more than this factor: see docs/base_models.md."""

_FP32, _BF16, _ADAM = 4, 2, 8
_LIBRARIES = 1_000_000_000
_CHECKPOINTING = 0.2
_COMFORT = 0.9
_UTILISATION = 1 / 3

Method = Literal["full", "lora"]
Status = Literal["ok", "warning", "error"]


class UnfitForTraining(ValueError):
    """A run that must not start: licence, memory, disk or resolution; the message says what and how to mend it."""


class ModelFacts(BaseModel):
    """What estimates are made from.

    Attributes:
        name: in the catalogue, or of the folder.
        pipeline: class of the diffusers pipeline.
        denoiser_parameters: of the UNet or transformer.
        parameters: of all parts.
        adapter_parameters: of a LoRA of rank 1 on the layers that this project adapts.
        resolution: pixels a side of the pictures that it draws by default.
        side_multiple: sides must be multiples of this, pixels.
        activation_gb_a_picture, activation_gb_a_megapixel: what one picture of M megapixels keeps for the backward
            pass: the first plus M times the second, 1e9 bytes.
        forward_tflop: operations of the denoiser for one picture at ``resolution``, 1e12.
        languages: of prompts, as ISO 639-1 codes; empty when not known.
        licences: identifiers of every licence that was found, as stated; none when none was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    pipeline: str
    denoiser_parameters: int = Field(gt=0)
    parameters: int = Field(gt=0)
    adapter_parameters: int = Field(ge=0)
    resolution: int = Field(gt=0)
    side_multiple: int = Field(gt=0)
    activation_gb_a_picture: float = Field(ge=0)
    activation_gb_a_megapixel: float = Field(gt=0)
    forward_tflop: float = Field(gt=0)
    languages: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()

    @property
    def can_be_trained(self) -> bool:
        """Whether this version knows the family."""
        return self.pipeline in PIPELINE_CLASSES


class CatalogueEntry(ModelFacts):
    """A base model of the catalogue.

    Attributes:
        hub_id: its repository on the Hugging Face hub; None for the embedded one.
        formerly: repositories that held the same weights.
        download_gb: what is to be downloaded, about, 1e9 bytes.
        licence: as the model card has it.
        obligations: the licence in a line or two; its own text counts.
        gated: the repository asks for an account and consent.
        note: what else one should know.
        source: where the facts are from.
        approximate: names of facts that could not be confirmed exactly.
    """

    hub_id: str | None = None
    formerly: tuple[str, ...] = ()
    download_gb: float = Field(ge=0)
    licence: str = Field(min_length=1)
    obligations: str = Field(min_length=1)
    gated: bool
    note: str = ""
    source: str = Field(min_length=1)
    approximate: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _states_its_licence(cls, values: Any) -> Any:
        return (
            {**values, "licences": (values["licence"],)} if isinstance(values, dict) and "licence" in values else values
        )

    @model_validator(mode="after")
    def _is_consistent(self) -> "CatalogueEntry":
        if unknown := set(self.approximate) - set(type(self).model_fields):
            raise ValueError(f"{self.name}: approximate names {', '.join(sorted(unknown))}, which are no facts")
        if self.resolution % self.side_multiple:
            raise ValueError(f"{self.name}: resolution {self.resolution} is no multiple of {self.side_multiple}")
        if self.denoiser_parameters > self.parameters:
            raise ValueError(f"{self.name}: the denoiser has more parameters than the whole")
        return self

    def download_command(self, folder: str) -> str | None:
        """The command that fetches the parts which training needs; None when there is nothing to fetch.

        Training scripts' leftovers, pickles, other precisions and single-file copies stay where they are.
        """
        if self.hub_id is None:
            return None
        wanted = (INDEX, "README.md", "LICENSE*", *(f"{part}/*" for part in self._parts()))
        unwanted = ("*.bin", "*.msgpack", "*.onnx*", "*openvino*", "*.fp16*", "*.bf16*", "*.int4*", "*non_ema*")
        lines = [f"hf download {self.hub_id} --local-dir {folder}"]
        lines += [f'--include "{pattern}"' for pattern in wanted] + [f'--exclude "{pattern}"' for pattern in unwanted]
        return " \\\n  ".join(lines)

    def _parts(self) -> tuple[str, ...]:
        """Folders of the pipeline's parts."""
        family = family_class(self.pipeline)
        tokenizers = (part.replace("text_encoder", "tokenizer") for part in family.text_encoder_parts)
        more = ("feature_extractor", "safety_checker") if self.pipeline == "StableDiffusionPipeline" else ()
        return (family.denoiser_part, "vae", "scheduler", *family.text_encoder_parts, *tokenizers, *more)


class FolderFacts(ModelFacts):
    """A base model in a local folder.

    Attributes:
        folder: where it lies.
        folder_bytes: all its files.
        entry: its name in the catalogue, when it says where it is from and that is there.
        likeness: the entry whose activations and operations were scaled to this model's size.
    """

    folder: Path
    folder_bytes: int = Field(ge=0)
    entry: str | None = None
    likeness: str


@cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """Every entry, in the order of the file."""
    return read_catalogue(CATALOGUE_FILE)


def read_catalogue(path: Path) -> tuple[CatalogueEntry, ...]:
    """Entries of a catalogue file.

    Raises:
        pydantic.ValidationError: an entry is incomplete or contradicts itself.
        ValueError: two entries answer to one name.
    """
    entries = tuple(CatalogueEntry.model_validate(values) for values in tomllib.loads(path.read_text())["model"])
    names = [name.casefold() for entry in entries for name in _names(entry)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has more than one entry for {', '.join(twice)}")
    return entries


def find_entry(name: str, entries: Iterable[CatalogueEntry] | None = None) -> CatalogueEntry | None:
    """The entry of a name or hub id, without regard to case; None when there is none."""
    wanted = name.strip().casefold()
    for entry in catalogue() if entries is None else entries:
        if wanted in (known.casefold() for known in _names(entry)):
            return entry
    return None


def _names(entry: CatalogueEntry) -> list[str]:
    return [entry.name, *([entry.hub_id] if entry.hub_id else []), *entry.formerly]


# Licences


def licence_allows(model: ModelFacts, allowed: Iterable[str]) -> bool:
    """Whether every licence of the model is allowed; False when none is known."""
    return bool(model.licences) and licence_refusal(model, allowed) is None


def licence_refusal(model: ModelFacts, allowed: Iterable[str]) -> str | None:
    """Why a licence of the model is refused; None when all are allowed, or none is known."""
    policy = LicencePolicy(allowed)
    return next((why for licence in model.licences if (why := policy.refusal(licence))), None)


def stated_licence(card: str) -> str | None:
    """The licence in the front matter of a model card: ``license``, or ``license_name`` where that says "other"."""
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    stated: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key in ("license", "license_name"):
            stated[key] = value.split(" #")[0].strip().strip("'\"")
    licence = stated.get("license", "")
    return (stated.get("license_name") or "other" if licence == "other" else licence) or None


# Memory


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory that a training needs, in bytes.

    Attributes:
        parts: what for, in the order in which people ask.
        host: main memory for reading the pipeline, where the training itself lies on a GPU; else 0.
    """

    parts: Mapping[str, int]
    host: int = 0

    @property
    def total(self) -> int:
        """On the device that trains."""
        return sum(self.parts.values())

    @property
    def gigabytes(self) -> float:
        """The total in units of 1e9 bytes."""
        return self.total / GB


def training_memory(
    model: ModelFacts,
    *,
    method: Method,
    resolution: int | None = None,
    pictures: int = 1,
    device: Literal["cpu", "cuda"] = "cuda",
    lora_rank: int = 16,
    gradient_checkpointing: bool = False,
    train_text_encoder: bool = False,
    keep_best: bool = False,
) -> MemoryEstimate:
    """Memory of one process that trains a model with this project's loop.

    With P parameters that learn and F that do not: 4 P for weights, 4 P gradients, 8 P AdamW's moments and 4 P the
    moving average, all fp32; 4 P more for the weights that a validation puts aside (more than the 2 P of their bf16
    copies in a step); F in bf16 on a GPU, and in fp32 with a bf16 copy on a CPU. Each picture that is worked on at a
    time keeps the activations that the catalogue has measured; with gradient checkpointing (Chen et al. 2016) about a
    fifth of them, an assumption. The encoders lie in main memory in fp32; on a GPU they work before training, in bf16,
    which counts where it is more than training needs.

    Args:
        model: of the catalogue or of a folder.
        method: every weight, or a LoRA.
        resolution: pixels a side; the model's own when None.
        pictures: worked on at a time: the micro batch of one process.
        device: where the denoiser lies.
        lora_rank: of a LoRA.
        gradient_checkpointing: activations are computed twice.
        train_text_encoder: the text encoders learn, too (with ``"full"``).
        keep_best: a further copy of the weights is kept.
    """
    side = resolution or model.resolution
    others = model.parameters - model.denoiser_parameters
    learning = model.denoiser_parameters if method == "full" else lora_rank * model.adapter_parameters
    frozen = 0 if method == "full" else model.denoiser_parameters
    if train_text_encoder and method == "full":
        learning, others = learning + others, 0
    activations = model.activation_gb_a_picture + model.activation_gb_a_megapixel * side * side / 1e6
    parts = {
        "weights": _FP32 * learning + (_BF16 if device == "cuda" else _FP32 + _BF16) * frozen,
        "gradients": _FP32 * learning,
        "optimizer": _ADAM * learning,
        "moving average": _FP32 * learning * (2 if keep_best else 1),
        "copy for validation": _FP32 * learning,
        "activations": round(pictures * activations * GB * (_CHECKPOINTING if gradient_checkpointing else 1)),
        "encoders": _FP32 * others if device == "cpu" else 0,
        "libraries": _LIBRARIES,
    }
    # Drawing has the whole pipeline on the GPU, in bf16; encoding before training needs less.
    drawing = _BF16 * model.parameters + _LIBRARIES if device == "cuda" else 0
    parts["drawing, beyond that"] = max(0, drawing - sum(parts.values()))
    return MemoryEstimate(parts, host=_FP32 * model.parameters + _LIBRARIES if device == "cuda" else 0)


def training_disk(model: ModelFacts, *, method: Method, lora_rank: int = 16, keep_best: bool = False) -> int:
    """Bytes of a run's checkpoints at their most (weights, average, two moments, fp32) and of the result in bf16."""
    learning = model.denoiser_parameters if method == "full" else lora_rank * model.adapter_parameters
    return CHECKPOINTS_ON_DISK * (5 if keep_best else 4) * _FP32 * learning + _BF16 * model.denoiser_parameters


# A device


@dataclass(frozen=True)
class DeviceFacts:
    """What there is to train with.

    Attributes:
        kind: where the denoiser lies.
        name: for people.
        memory, memory_free: of the device, bytes.
        disk_free: where checkpoints and results go, bytes.
        host_free: main memory that can be had; that of a CPU is ``memory_free``.
        tflops: operations a second in training, 1e12, when that was measured.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    memory: int
    memory_free: int
    disk_free: int
    host_free: int
    tflops: float | None = None


def look_at_device(wanted: str, place: Path) -> DeviceFacts:
    """Facts of the device that a ``device`` setting means.

    Args:
        wanted: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        place: where checkpoints and results go; need not exist.

    Raises:
        ValueError: ``"cuda"`` was asked for and there is none.
    """
    import psutil

    machine = psutil.virtual_memory()
    limit = _container_limit()
    total, free = min(machine.total, limit), min(machine.available, limit)
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    disk = shutil.disk_usage(existing).free
    if wanted != "cpu":
        from genai_assets.diffusion.devices import choose_device

        if choose_device(wanted).type == "cuda":
            import torch

            gpu_free, gpu_total = torch.cuda.mem_get_info()
            return DeviceFacts("cuda", torch.cuda.get_device_name(), gpu_total, gpu_free, disk, free)
    return DeviceFacts("cpu", f"CPU, {os.cpu_count()} cores", total, free, disk, free)


def measure_tflops(kind: Literal["cpu", "cuda"]) -> float:
    """Operations a second that a training may reach here, 1e12: a third of what large bf16 products do.

    Takes about a second. The share is what this project's loop reaches on CPUs (38 % at best); it is an assumption for
    GPUs. For :class:`DeviceFacts`' ``tflops``.
    """
    import time

    import torch

    side = 8192 if kind == "cuda" else 2048
    factor = torch.ones(side, side, dtype=torch.bfloat16, device=kind)
    seconds = math.inf
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        (factor @ factor)[0, 0].item()  # waits for a GPU
        seconds = min(seconds, time.perf_counter() - began)
    return 2 * side**3 / seconds / 1e12 * _UTILISATION


def _container_limit() -> int:
    """What a container may use at most (control groups, version 2), bytes; without a limit, more than there is."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such file; or the word "max"
        return 2**62


# A folder


def read_folder(folder: Path, *, name: str | None = None) -> FolderFacts:
    """Facts of a local pipeline folder, from its configs, its card and the headers of its weight files.

    Activations and operations are those of the catalogue's entry it is, or of the nearest of its family scaled with the
    parameters: by their ratio when it is larger, by its square root when it is smaller, which errs on the safe side.

    Raises:
        BaseModelError: no pipeline's folder, of an unknown family, or without safetensors of the denoiser.
    """
    pipeline = pipeline_class_of(folder)
    try:
        family = family_class(pipeline)
    except UnknownFamily as error:
        raise BaseModelError(f"{folder} cannot be trained: {error}") from error
    shapes = _shapes(folder / family.denoiser_part)
    if not shapes:
        raise BaseModelError(
            f"{folder / family.denoiser_part} has no safetensors weights; download them, or save the model by diffusers"
        )
    counted = {part.name: sum(map(math.prod, _shapes(part).values())) for part in folder.iterdir() if part.is_dir()}
    entry = find_entry(EMBEDDED) if folder.resolve() == EMBEDDED_FOLDER.resolve() else _entry_of(folder)
    size = counted[family.denoiser_part]
    likeness = entry or min(
        (known for known in catalogue() if known.pipeline == pipeline),
        key=lambda known: abs(math.log(known.denoiser_parameters / size)),
    )
    ratio = size / likeness.denoiser_parameters
    scale = max(ratio, math.sqrt(ratio))
    multiple = _side_multiple(folder, family.denoiser_part)
    return FolderFacts(
        name=name or folder.name,
        pipeline=pipeline,
        denoiser_parameters=size,
        # The embedded base is kept without its text encoder, which its package carries.
        parameters=max(sum(counted.values()), entry.parameters if entry else 0),
        adapter_parameters=sum(
            shape[0] + math.prod(shape[1:])
            for weight, shape in shapes.items()
            if len(shape) > 1 and _is_adapted(weight, family.lora_targets)
        ),
        resolution=family.resolution_of(folder),
        side_multiple=multiple,
        activation_gb_a_picture=likeness.activation_gb_a_picture * scale,
        activation_gb_a_megapixel=likeness.activation_gb_a_megapixel * scale,
        forward_tflop=likeness.forward_tflop * ratio * (family.resolution_of(folder) / likeness.resolution) ** 2,
        languages=entry.languages if entry else (),
        licences=tuple(dict.fromkeys(_licences(folder, entry))),
        folder=folder,
        folder_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        entry=entry.name if entry else None,
        likeness=likeness.name,
    )


def _entry_of(folder: Path) -> CatalogueEntry | None:
    """The entry of the repository that a folder says it is from."""
    return find_entry(str(json.loads((folder / INDEX).read_text()).get("_name_or_path", "")))


def _licences(folder: Path, entry: CatalogueEntry | None) -> list[str]:
    """What the card states, and what the catalogue has for where the folder is from: both bind."""
    card = folder / "README.md"
    stated = stated_licence(card.read_text(errors="replace")) if card.is_file() else None
    return [*([stated.casefold()] if stated else []), *([entry.licence] if entry else [])]


def _is_adapted(weight: str, targets: Sequence[str]) -> bool:
    layer = weight.removesuffix(".weight")
    return layer != weight and any(layer == target or layer.endswith(f".{target}") for target in targets)


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a part's weight files, by name; the variants in other precisions are left out."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.split(".")[1:] == ["safetensors"]:
            shapes |= _header(path)
    return shapes


def _header(path: Path) -> dict[str, list[int]]:
    """Shapes in a safetensors file: eight bytes of length, little-endian, and a JSON of that length come first."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        return {name: list(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{path} is no safetensors file: {error!r}; get it anew") from error


def _side_multiple(folder: Path, denoiser_part: str) -> int:
    """What sides must be multiples of, from the configs, as the families have it of loaded models."""
    denoiser, autoencoder = (_config(folder / part) for part in (denoiser_part, "vae"))
    channels = autoencoder.get("block_out_channels") or autoencoder.get("encoder_block_out_channels")
    # Qwen-Image's autoencoder halves the sides once for each entry of this list.
    halvings = len(channels) - 1 if channels else len(autoencoder.get("temperal_downsample", ()))
    if denoiser_part == "unet":
        return 2 ** (halvings + len(denoiser["block_out_channels"]) - 1)
    if denoiser["_class_name"] in ("FluxTransformer2DModel", "QwenImageTransformer2DModel", "ZImageTransformer2DModel"):
        return 2 * 2**halvings  # their pipelines pack squares of two latents a side
    return denoiser.get("patch_size", 1) * 2**halvings


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


# The check before a run


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what, in a word or two.
        status: ``ok``; ``warning``: it may go wrong, or nobody knows; ``error``: it must not start.
        detail: what was found.
        mend: what to do; empty when nothing needs to be done.
    """

    name: str
    status: Status
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Plan:
    """The part of a run's settings that decides whether it can be run.

    Attributes:
        method, resolution, lora_rank, gradient_checkpointing, train_text_encoder: as ``fine_tune`` has them.
        batch_size: pictures a step, over all processes.
        micro_batch_size: pictures that a process works on at a time; all of its part when None.
        processes: that train together.
        keep_best: whether the weights of the best validation are kept.
        allowed_licences: of base models.
    """

    method: Method = "full"
    resolution: int | None = None
    batch_size: int = 1
    micro_batch_size: int | None = None
    processes: int = 1
    lora_rank: int = 16
    gradient_checkpointing: bool = False
    train_text_encoder: bool = False
    keep_best: bool = False
    allowed_licences: tuple[str, ...] = field(default=ALLOWED_BASE_LICENCES)

    @classmethod
    def from_settings(cls, settings: "Settings") -> "Plan":
        """The plan that the settings make."""
        wanted = settings.fine_tune
        return cls(
            method=wanted.method,
            resolution=wanted.resolution,
            batch_size=wanted.batch_size,
            micro_batch_size=wanted.micro_batch_size,
            processes=wanted.processes,
            lora_rank=wanted.lora_rank,
            gradient_checkpointing=wanted.gradient_checkpointing,
            train_text_encoder=wanted.train_text_encoder,
            keep_best=wanted.keep == "best",
            allowed_licences=wanted.allowed_base_licences,
        )

    @property
    def pictures(self) -> int:
        """Pictures that one process works on at a time."""
        mine = -(-self.batch_size // self.processes)
        return min(mine, self.micro_batch_size or mine)

    def memory(self, model: ModelFacts, kind: Literal["cpu", "cuda"], *, pictures: int | None = None) -> MemoryEstimate:
        """What one process needs, with so many pictures at a time instead of the plan's."""
        return training_memory(
            model,
            method=self.method,
            resolution=self.resolution,
            pictures=pictures or self.pictures,
            device=kind,
            lora_rank=self.lora_rank,
            gradient_checkpointing=self.gradient_checkpointing,
            train_text_encoder=self.train_text_encoder,
            keep_best=self.keep_best,
        )


def check_before_training(folder: Path, plan: Plan, device: DeviceFacts) -> list[Finding]:
    """Whether a base model in a folder may and can be trained as planned.

    Looks at its family, weights, licence and resolution, and at the device's memory and disk. Takes less than a second;
    loads no weights.
    """
    try:
        model = read_folder(folder)
    except (BaseModelError, OSError) as error:
        return [
            Finding("model", "error", str(error), f"name a pipeline folder; families: {', '.join(PIPELINE_CLASSES)}")
        ]
    detail = f"{model.pipeline}, {model.denoiser_parameters:,} parameters in the denoiser"
    return [Finding("model", "ok", detail), *check_model(model, plan, device)]


def check_model(model: ModelFacts, plan: Plan, device: DeviceFacts) -> list[Finding]:
    """:func:`check_before_training` of facts that are known already: of a folder, or of an entry not yet downloaded."""
    return [
        _check_family(model),
        _check_licence(model, plan.allowed_licences),
        _check_resolution(model, plan),
        _check_memory(model, plan, device),
        *_check_host_memory(model, plan, device),
        _check_disk(model, plan, device),
    ]


def check_settings(settings: "Settings") -> list[Finding]:
    """:func:`check_before_training` of the run that the settings ask for."""
    folder = locate_base_model(settings.base_model)
    return check_before_training(folder, Plan.from_settings(settings), look_at_device(settings.device, settings.home))


def refuse_unfit(findings: Iterable[Finding]) -> list[str]:
    """Raise when there are errors; else the warnings, for people.

    Raises:
        UnfitForTraining: naming every error and how to mend it.
    """
    found = list(findings)
    if errors := [finding for finding in found if finding.status == "error"]:
        lines = [f"{finding.name}: {finding.detail}. To mend it: {finding.mend}" for finding in errors]
        raise UnfitForTraining("the training must not start.\n  " + "\n  ".join(lines))
    return [f"{finding.name}: {finding.detail}. {finding.mend}" for finding in found if finding.status == "warning"]


def _check_family(model: ModelFacts) -> Finding:
    if model.can_be_trained:
        return Finding("family", "ok", model.pipeline)
    known = ", ".join(PIPELINE_CLASSES)
    return Finding("family", "error", f"{model.pipeline} cannot be trained by this version", f"take one of {known}")


def _check_licence(model: ModelFacts, allowed: Sequence[str]) -> Finding:
    if not model.licences:
        return Finding(
            "licence",
            "warning",
            "not known: the folder has no README.md that states a licence, nor says where the model is from",
            "find out what you may do with it, and write `license: ID` between two lines of --- atop its README.md",
        )
    if refusal := licence_refusal(model, allowed):
        known = find_entry(getattr(model, "entry", None) or model.name)
        obligations = f" ({known.obligations})" if known and known.licence in model.licences else ""
        return Finding(
            "licence",
            "error",
            refusal,
            f"take another base model; or read the licence{obligations} and, if your use keeps to it, "
            "add it to fine_tune.allowed_base_licences",
        )
    return Finding("licence", "ok", ", ".join(model.licences))


def _check_resolution(model: ModelFacts, plan: Plan) -> Finding:
    side = plan.resolution or model.resolution
    if rest := side % model.side_multiple:
        below, above = side - rest, side - rest + model.side_multiple
        choices = f"{below} or {above}" if below else str(above)
        detail = f"{side} px is no multiple of the {model.side_multiple} px that the model needs"
        return Finding("resolution", "error", detail, f"set fine_tune.resolution to {choices}")
    if not model.resolution / 2 <= side <= model.resolution * 2:
        detail = f"{side} px, while the model was made for {model.resolution} px: it will draw badly for long"
        return Finding("resolution", "warning", detail, f"leave fine_tune.resolution unset, or near {model.resolution}")
    return Finding("resolution", "ok", f"{side} px")


def _check_memory(model: ModelFacts, plan: Plan, device: DeviceFacts) -> Finding:
    # On a CPU the processes share the memory; each has a GPU of its own.
    sharing = plan.processes if device.kind == "cpu" else 1
    needed = plan.memory(model, device.kind).total * sharing
    detail = (
        f"about {needed / GB:.1f} GB are needed (an estimate); {device.name} has {device.memory / GB:.1f} GB, "
        f"{device.memory_free / GB:.1f} of them free"
    )
    if needed <= device.memory_free * _COMFORT:
        return Finding("memory", "ok", detail)
    mend = _less_memory(model, plan, device, sharing)
    if needed > device.memory * TRUST:
        return Finding("memory", "error", detail, mend)
    return Finding("memory", "warning", detail, f"close other programs, or {mend}")


def _less_memory(model: ModelFacts, plan: Plan, device: DeviceFacts, sharing: int) -> str:
    """The mildest changes that would fit, for people."""
    import dataclasses

    def fits(changed: Plan) -> bool:
        return changed.memory(model, device.kind).total * sharing <= device.memory_free * _COMFORT

    smaller = dataclasses.replace(plan, micro_batch_size=max(1, plan.pictures // 2))
    while smaller.pictures > 1 and not fits(smaller):
        smaller = dataclasses.replace(smaller, micro_batch_size=smaller.pictures // 2)
    saving = dataclasses.replace(smaller, gradient_checkpointing=True)
    adapted = dataclasses.replace(smaller, method="lora", train_text_encoder=False)
    both = dataclasses.replace(adapted, gradient_checkpointing=True)
    size = f"fine_tune.micro_batch_size to {smaller.pictures}"
    for changed, told in (
        (smaller, f"set {size}"),
        (saving, f"set {size} and fine_tune.gradient_checkpointing to true"),
        (adapted, f'set {size} and fine_tune.method to "lora"'),
        (both, f'set {size}, fine_tune.method to "lora" and fine_tune.gradient_checkpointing to true'),
    ):
        if changed != plan and fits(changed):
            return told
    return "take a smaller base model or a larger machine: no setting makes this one fit"


def _check_host_memory(model: ModelFacts, plan: Plan, device: DeviceFacts) -> list[Finding]:
    """Main memory for reading the pipeline, which has room in a GPU's only in parts."""
    needed = plan.memory(model, device.kind).host
    if not needed:
        return []
    detail = f"about {needed / GB:.1f} GB to read the model; {device.host_free / GB:.1f} GB are free"
    if needed <= device.host_free:
        return [Finding("main memory", "ok", detail)]
    return [Finding("main memory", "warning", detail, "close other programs, or take a machine with more main memory")]


def _check_disk(model: ModelFacts, plan: Plan, device: DeviceFacts) -> Finding:
    # A folder is copied into the home; what is not downloaded yet has to get there first.
    copied = model.folder_bytes if isinstance(model, FolderFacts) else round(getattr(model, "download_gb", 0.0) * GB)
    run = training_disk(model, method=plan.method, lora_rank=plan.lora_rank, keep_best=plan.keep_best)
    needed = copied + run
    detail = (
        f"{needed / GB:.1f} GB are needed ({copied / GB:.1f} for the base, {run / GB:.1f} for checkpoints and result); "
        f"{device.disk_free / GB:.1f} GB are free"
    )
    if needed > device.disk_free:
        return Finding("disk", "error", detail, "make room, or set GENAI_HOME to a folder on another disk")
    return Finding("disk", "ok", detail)
