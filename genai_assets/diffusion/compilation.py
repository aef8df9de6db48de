"""Compiling a denoiser for training: when it can be done, and when it repays itself."""

import os
import shutil
import sysconfig
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Compiling = Literal["blocks", "whole"]
"""Once for all of a transformer's blocks, which are alike; or the denoiser as a whole."""

# A first compilation of the embedded base takes about a minute on two cores, of its block a quarter of that; from then
# on a step takes two thirds of the time, and six in a hundred more when only blocks are compiled (docs/experiments.md).
SHORTEST_RUN_MINUTES = 3.0
SHORTEST_RUN_STEPS = 200
WHOLE_FROM_MINUTES = 15.0


def can_compile() -> bool:
    """Whether this machine has what torch's CPU compiler needs: a C++ compiler and Python's headers."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.is_file()


def way_to_compile(device: "torch.device", *, minutes: float, steps: int | None) -> Compiling | None:
    """What to compile for a run of at most so many minutes and steps; None: it would not repay itself.

    On a GPU this was not measured: nothing.
    """
    long_enough = minutes >= SHORTEST_RUN_MINUTES and (steps is None or steps >= SHORTEST_RUN_STEPS)
    if device.type != "cpu" or not long_enough or not can_compile():
        return None
    return "whole" if minutes >= WHOLE_FROM_MINUTES else "blocks"


def compile_denoiser(denoiser: Any, cache: Path | None = None, what: Compiling = "whole") -> Any:
    """A compiled denoiser that shares the weights of ``denoiser``; compiled at its first call.

    Args:
        denoiser: a UNet or transformer, perhaps with adapters.
        cache: keep the compiled code here, so that the next run starts at once.
        what: with "blocks" the blocks of ``denoiser`` itself are compiled, in place, and it is what is given back; one
            without blocks that are alike is compiled whole.
    """
    import torch

    if cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)  # importing diffusers has set torch's own default by now
    # Diffusers caches a look at torch's version; that the compiler reads it without the cache harms nothing.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    # It looks at the gradients of all inputs of a block, of which there are none.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    # With convolutions laid out anew, torch 2.13 compiles a UNet whose upsamplers pass no gradient on (on a CPU).
    options: dict[str, Any] = {"layout_optimization": False}
    blocks = _blocks_alike(denoiser) if what == "blocks" else []
    for block in blocks:
        block.compile(options=options)
    return denoiser if blocks else torch.compile(denoiser, options=options)


def forget_compiled(denoiser: Any) -> None:
    """Undo what :func:`compile_denoiser` did in place."""
    for module in denoiser.modules():
        module._compiled_call_impl = None


def _blocks_alike(denoiser: Any) -> list[Any]:
    """Blocks of one class and shape that make up most of a transformer; none when there are no such."""
    import torch

    inside = denoiser.get_base_model() if hasattr(denoiser, "get_base_model") else denoiser  # PEFT's wrapper
    blocks: list[Any] = []
    for child in inside.children():
        if isinstance(child, torch.nn.ModuleList):
            shapes = {(type(block), *(value.shape for value in block.parameters())) for block in child}
            blocks += list(child) if len(shapes) == 1 else []
    held = sum(value.numel() for block in blocks for value in block.parameters())
    return blocks if held >= _MOST * sum(value.numel() for value in inside.parameters()) else []


_MOST = 0.7
