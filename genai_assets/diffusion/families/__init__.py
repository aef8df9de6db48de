"""Families of text-to-image models that can be trained and drawn with, one module each.

``family_of`` finds the family of a loaded pipeline, ``family_class`` that of a pipeline class by its name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_assets.diffusion.families.family import Family

_FAMILIES = {
    "PRXPixelPipeline": "prx.PRXPixel",
    "StableDiffusionPipeline": "stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "stable_diffusion.StableDiffusionXL",
    "StableDiffusion3Pipeline": "stable_diffusion_3.StableDiffusion3",
    "FluxPipeline": "flux.Flux",
    "SanaPipeline": "sana.Sana",
    "ZImagePipeline": "z_image.ZImage",
    "QwenImagePipeline": "qwen_image.QwenImage",
}
"""Pipeline classes of diffusers, and where their family is: MODULE.CLASS in this package."""

PIPELINE_CLASSES = tuple(_FAMILIES)


class UnknownFamily(ValueError):
    """A pipeline of a family that cannot be trained or drawn with here."""


def family_class(pipeline_class: str) -> "type[Family]":
    """The family of a pipeline class, by its name.

    Raises:
        UnknownFamily: there is none.
    """
    if pipeline_class not in _FAMILIES:
        raise UnknownFamily(f"{pipeline_class} is of no known family; known are {', '.join(PIPELINE_CLASSES)}")
    module, name = _FAMILIES[pipeline_class].split(".")
    return getattr(import_module(f"{__name__}.{module}"), name)


def family_of(pipeline: Any) -> "Family":
    """The family of a loaded pipeline, holding it.

    Raises:
        UnknownFamily: there is none.
    """
    return family_class(type(pipeline).__name__)(pipeline)
