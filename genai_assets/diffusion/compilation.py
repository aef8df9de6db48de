"""Compiling a denoiser for training: when it can be done, and when it repays itself."""

import os
import shutil
import sysconfig
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A first compilation takes about a minute on two cores; from then on a step takes less than half the time.
SHORTEST_RUN_MINUTES = 3.0
SHORTEST_RUN_STEPS = 200


def can_compile() -> bool:
    """Whether this machine has what torch's CPU compiler needs: a C++ compiler and Python's headers."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.is_file()


def repays_itself(device: "torch.device", *, minutes: float, steps: int | None) -> bool:
    """Whether to compile for a run of at most so many minutes and steps. On a GPU this was not measured: no."""
    long_enough = minutes >= SHORTEST_RUN_MINUTES and (steps is None or steps >= SHORTEST_RUN_STEPS)
    return device.type == "cpu" and long_enough and can_compile()


def compile_denoiser(denoiser: Any, cache: Path | None = None) -> Any:
    """A compiled denoiser that shares the weights of ``denoiser``; compiled at its first call.

    Args:
        denoiser: a UNet or transformer.
        cache: keep the compiled code here, so that the next run starts at once.
    """
    import torch

    if cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)  # importing diffusers has set torch's own default by now
    # Diffusers caches a look at torch's version; that the compiler reads it without the cache harms nothing.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    # With convolutions laid out anew, torch 2.13 compiles a UNet whose upsamplers pass no gradient on (on a CPU).
    return torch.compile(denoiser, options={"layout_optimization": False})
