"""Ways to compute a denoiser while drawing: as torch has it, compiled by torch, or converted for OpenVINO.

Belongs here: which way a device takes, and how a way takes the denoiser's place. The seam is one: for the time of a
drawing, the denoiser's ``forward`` is another callable with the same arguments and the same results. Its weights,
config, dtype, device and class stay, so stock pipelines and the families' own loops notice nothing.
"""

import contextlib
import importlib.util
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from genai_assets.diffusion.compilation import can_compile, compile_denoiser

if TYPE_CHECKING:
    import torch

BackendName = Literal["auto", "eager", "compiled", "openvino"]

logger = logging.getLogger(__name__)

# Pictures that are drawn at once where every new shape costs a compilation: a batch is cut into these, and what is left
# is filled up to the next. On two cores a row of 32 costs half of what a row of 2 costs; 64 gain nothing more.
_BATCH_SIZES = (1, 4, 16)

# A shape's conversion takes as long as this many rows save (a row is one picture in one step, with guidance two).
# Measured with the embedded base on two cores: 1.5 to 3 s for the one, 4 to 7 ms for the other.
_REPAYS_AFTER_ROWS = 500


class BackendUnavailable(RuntimeError):
    """The backend asked for cannot be used here; the message says why and what to set instead."""


class Backend(ABC):
    """A way to compute one denoiser.

    Attributes:
        name: as ``sampling.backend`` has it.
        batch_sizes: pictures at once, ascending; none: any number does equally well.
    """

    name: ClassVar[str]
    batch_sizes: tuple[int, ...] = ()

    @property
    def computes(self) -> str:
        """The way that computed last, in words, for reports."""
        return self.name

    @abstractmethod
    def standing_in(self, rows: float) -> contextlib.AbstractContextManager[None]:
        """While entered, the denoiser computes this way.

        Args:
            rows: how many rows each shape will compute at least, in all steps; infinite when it must be made ready.
        """


class Eager(Backend):
    """As torch has it."""

    name = "eager"

    def __init__(self, denoiser: Any):
        self._denoiser = denoiser

    @property
    def computes(self) -> str:
        """With the dtype."""
        return f"eager {dtype_name(self._denoiser.dtype)}"

    def standing_in(self, rows: float) -> contextlib.AbstractContextManager[None]:
        """Nothing stands in."""
        return contextlib.nullcontext()


class Compiled(Backend):
    """Compiled by torch, at the first call of each shape: tens of seconds.

    Raises:
        BackendUnavailable: the machine lacks what the compiler needs.
    """

    name = "compiled"
    batch_sizes = _BATCH_SIZES

    def __init__(self, denoiser: Any):
        if denoiser.device.type == "cpu" and not can_compile():
            raise BackendUnavailable(
                "sampling.backend is 'compiled', but this machine has no C++ compiler or no headers of Python; install "
                "them (g++, python3-dev), or set it to 'auto'"
            )
        self._denoiser = denoiser
        self._forward = compile_denoiser(denoiser.forward)

    @property
    def computes(self) -> str:
        """With the dtype."""
        return f"torch.compile {dtype_name(self._denoiser.dtype)}"

    def standing_in(self, rows: float) -> contextlib.AbstractContextManager[None]:
        """The compiled code, however few rows there are."""
        return forward_replaced(self._denoiser, self._forward)


class OpenVINO(Backend):
    """Converted for OpenVINO, one static shape at a time, kept on disk.

    Args:
        denoiser: on the CPU, in the dtype it is drawn with.
        cache: folder of converted denoisers; not given: they last as long as this object.
        demanded: asked for by name. Then every shape is converted, and what cannot be is an error. Otherwise a shape is
            converted when that repays itself, taken from the cache when it is there, and eager in all other cases.

    Raises:
        BackendUnavailable: demanded, and OpenVINO is not installed or the denoiser is not on a CPU.
    """

    name = "openvino"
    batch_sizes = _BATCH_SIZES

    def __init__(self, denoiser: Any, cache: Path | None = None, *, demanded: bool = True):
        self._denoiser = denoiser
        self._demanded = demanded
        self._computed_eagerly = False
        if why_not := openvino_unavailable(denoiser.device):
            raise BackendUnavailable(f"sampling.backend is 'openvino', but {why_not}; set it to 'auto'")
        from genai_assets.diffusion.drawing.openvino_denoiser import ConvertedDenoiser

        self._converted = ConvertedDenoiser(denoiser, cache)
        self._failed = False

    @property
    def computes(self) -> str:
        """With the precision; eager when it had to be."""
        if self._computed_eagerly:
            return f"eager {dtype_name(self._denoiser.dtype)}"
        return f"OpenVINO {self._converted.precision}"

    @contextlib.contextmanager
    def standing_in(self, rows: float) -> Iterator[None]:
        """The converted denoiser, as the class says.

        Raises:
            BackendUnavailable: it was asked for by name, and this denoiser cannot be converted.
        """
        from genai_assets.diffusion.drawing.openvino_denoiser import ConversionFailed

        eager = self._denoiser.forward
        convert = self._demanded or rows >= _REPAYS_AFTER_ROWS

        def forward(*args: Any, **kwargs: Any) -> Any:
            runner = None
            if not self._failed:
                try:
                    runner = self._converted.runner(args, kwargs, convert=convert)
                except ConversionFailed as error:
                    if self._demanded:
                        raise BackendUnavailable(
                            f"sampling.backend is 'openvino', but {error}; set it to 'auto' or 'eager'"
                        ) from error
                    self._failed = True
                    logger.warning("drawing goes on with eager torch: %s", error)
            self._computed_eagerly = runner is None
            return eager(*args, **kwargs) if runner is None else runner(args, kwargs)

        with forward_replaced(self._denoiser, forward):
            yield


def choose_backend(wanted: BackendName, denoiser: Any, cache: Path | None = None) -> Backend:
    """The backend that a setting means for a denoiser.

    Args:
        wanted: ``"auto"`` is OpenVINO on a CPU that has it, if the denoiser can be converted, and eager elsewhere.
        denoiser: on its device, in its dtype.
        cache: folder of what OpenVINO converted.

    Raises:
        BackendUnavailable: it was asked for by name and cannot be used.
    """
    if wanted == "compiled":
        return Compiled(denoiser)
    if wanted == "openvino":
        return OpenVINO(denoiser, cache)
    if wanted == "eager" or denoiser.device.type != "cpu":
        return Eager(denoiser)
    if why_not := openvino_unavailable(denoiser.device):
        logger.info("drawing with eager torch: %s", why_not)
        return Eager(denoiser)
    return OpenVINO(denoiser, cache, demanded=False)


def openvino_unavailable(device: "torch.device") -> str | None:
    """Why OpenVINO cannot be used on a device, or None when it can."""
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed (pip install openvino, where there is a wheel of it)"
    if device.type != "cpu":
        return f"the denoiser is on {device.type}, and OpenVINO draws on CPUs here"
    from genai_assets.diffusion.drawing.openvino_denoiser import FEWEST_THREADS

    if cores() < FEWEST_THREADS:
        return "this process may use one core only, and OpenVINO needs two threads"
    return None


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def forward_replaced(denoiser: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """While entered, calling ``denoiser`` calls ``forward``; all else of it stays."""
    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward  # the class's own appears again


def dtype_name(dtype: "torch.dtype") -> str:
    """A dtype in two or three letters and digits: bf16, fp32."""
    names = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
    name = str(dtype).removeprefix("torch.")
    return names.get(name, name)
