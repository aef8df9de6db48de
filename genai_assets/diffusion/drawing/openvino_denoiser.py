"""A denoiser converted for OpenVINO: bf16 where the CPU has it, static shapes, and its code kept on disk.

Belongs here: all that knows OpenVINO. When it repays itself to convert is decided in ``backends``.

A denoiser is traced with the very arguments of a call. Tensors become inputs; numbers, flags and None become part of
the traced code. Sines and cosines are cut out of it, with all that they are computed from, and computed in fp32: a
timestep embedding takes the sine of angles of up to a thousand, of which bf16 keeps no fraction (with it, pictures at
high noise levels would lose 16 dB against fp32).
"""

import contextlib
import functools
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets import durable

if TYPE_CHECKING:
    import openvino
    from torch import Tensor

logger = logging.getLogger(__name__)

FEWEST_THREADS = 2
"""With one, OpenVINO 2026.4 divides by zero when it fuses a gated feed-forward layer, and takes the process with it."""

_FORMAT = 1
"""Of the files, and of how a denoiser is traced: another number makes every file of before be passed over."""

_MOST_BYTES = 3 << 30
"""Of a cache: beyond it, what was not used for longest is removed."""


class ConversionFailed(RuntimeError):
    """This denoiser, or this call of it, cannot be converted; the message says why."""


class ConvertedDenoiser:
    """Code for each shape that a denoiser is called with, made at the first call or read from a cache.

    A file's name is a digest of the weights, the denoiser's config, the call's shapes and dtypes, the CPU, the threads
    and the versions of all that has a part in it: a file that is found is the right one. The weights must stay as they
    are as long as this object is used.

    Args:
        denoiser: a diffusers model on the CPU.
        cache: a folder; made when something is written.
    """

    def __init__(self, denoiser: Any, cache: Path | None = None):
        self._denoiser = denoiser
        self._cache = cache
        self._runners: dict[str, _Runner] = {}
        self._absent: set[str] = set()

    @property
    def precision(self) -> str:
        """What most of it is computed in: ``"bf16"`` or ``"fp32"``, as the CPU can."""
        return "bf16" if "BF16" in _capabilities() else "fp32"

    def runner(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, convert: bool
    ) -> "Callable[[Sequence[Any], Mapping[str, Any]], Any] | None":
        """What computes this call and all others of its shape.

        Args:
            args: of a call of the denoiser.
            kwargs: likewise.
            convert: make the code when there is none yet; that takes seconds.

        Returns:
            Callable: to be called with arguments of the same shapes; or None when there is no code and none was wanted.

        Raises:
            ConversionFailed: OpenVINO, or the tracing before it, cannot do it.
        """
        call = _Call.of(args, kwargs)
        if call.signature in self._runners:
            return self._runners[call.signature]
        if call.signature in self._absent and not convert:
            return None
        place = self._place(call)
        compiled = _read(place) if place else None
        if compiled is None:
            self._absent.add(call.signature)
            if not convert:
                return None
            compiled = self._convert(call)
            if place:
                _keep(compiled, place)
        self._runners[call.signature] = _Runner(compiled, self._configs())
        return self._runners[call.signature]

    def _place(self, call: "_Call") -> Path | None:
        if self._cache is None:
            return None
        key = durable.digest_json({"call": call.signature, "denoiser": self._identity, "machine": self._configs()})
        return self._cache / f"{key[:40]}.safetensors"

    @functools.cached_property
    def _identity(self) -> dict[str, str]:
        """What names the denoiser: its class, its config, and the very bytes of its weights."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in sorted(self._denoiser.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
        processors = getattr(self._denoiser, "attn_processors", {})
        return {
            "class": type(self._denoiser).__name__,
            "config": json.dumps(dict(self._denoiser.config), sort_keys=True, default=str),
            "attention": ", ".join(sorted({type(processor).__name__ for processor in processors.values()})),
            "weights": digest.hexdigest(),
        }

    def _configs(self) -> dict[str, Any]:
        """What the code is compiled for."""
        import diffusers
        import openvino
        import torch

        return {
            "format": _FORMAT,
            "versions": [openvino.__version__, torch.__version__, diffusers.__version__],
            "cpu": [_core().get_property("CPU", "FULL_DEVICE_NAME"), *_capabilities()],
            "threads": max(FEWEST_THREADS, torch.get_num_threads()),
            "precision": self.precision,
        }

    def _convert(self, call: "_Call") -> "_Compiled":
        import openvino
        import torch
        from torch.utils import _pytree as pytree

        traced = _traced_module(self._denoiser, call)
        try:
            # Not in inference mode: what is traced there cannot be taken apart.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                warnings.catch_warnings(),
                _eager_forward(self._denoiser),
                _root_logger_kept(),
            ):
                warnings.simplefilter("ignore")  # each look at a shape is one; shapes are static here
                inputs = tuple(_at_the_border(tensor).clone() for tensor in call.tensors)
                graph = torch.jit.trace(traced, inputs, check_trace=False, strict=False)
                model = openvino.convert_model(
                    graph, example_input=inputs, input=[list(tensor.shape) for tensor in inputs]
                )
            waves, rest = _cut_out_waves(model)
            configs = self._configs()
            blobs = [_compile(part, configs, precision) for part, precision in ((waves, "fp32"), (rest, None))]
            outputs = pytree.treespec_dumps(traced.output_tree)
        except Exception as error:  # whatever torch, diffusers or OpenVINO stumbles over
            first = next(iter(str(error).strip().splitlines()), "")
            raise ConversionFailed(
                f"{type(self._denoiser).__name__} cannot be converted for OpenVINO ({type(error).__name__}: {first})"
            ) from error
        return _Compiled(blobs[0], blobs[1], outputs, tuple(traced.output_dtypes))


@dataclass(frozen=True)
class _Call:
    """A call of the denoiser: its tensors, all of its arguments in a row, and how they hang together."""

    tensors: "tuple[Tensor, ...]"
    leaves: tuple[Any, ...]
    tree: Any
    signature: str

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "_Call":
        import torch
        from torch.utils import _pytree as pytree

        leaves, tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        told = []
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                told.append(f"{leaf.dtype}{list(leaf.shape)}")
            elif leaf is None or isinstance(leaf, bool | int | float | str):
                told.append(repr(leaf))
            else:
                raise ConversionFailed(f"the denoiser is called with a {type(leaf).__name__}, which cannot be traced")
        return cls(tensors, tuple(leaves), tree, f"{tree} {told}")


@dataclass(frozen=True)
class _Compiled:
    """Code of one shape: of its sines and cosines, of the rest, and how results are handed back."""

    waves: bytes
    rest: bytes
    output_tree: str
    output_dtypes: tuple[str, ...]

    @property
    def digest(self) -> str:
        digest = hashlib.sha256(self.waves)
        digest.update(self.rest)
        return digest.hexdigest()


class _Runner:
    """Compiled code that is ready to be called as the denoiser is."""

    def __init__(self, compiled: _Compiled, configs: Mapping[str, Any]):
        import torch
        from torch.utils import _pytree as pytree

        parts = ((compiled.waves, "fp32"), (compiled.rest, None))
        self._waves, self._rest = (
            _core().import_model(blob, "CPU", _properties(configs, precision)).create_infer_request()
            for blob, precision in parts
        )
        self._output_tree = pytree.treespec_loads(compiled.output_tree)
        self._output_dtypes = [getattr(torch, name) for name in compiled.output_dtypes]

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        import torch
        from torch.utils import _pytree as pytree

        leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
        inputs = [_at_the_border(leaf).contiguous().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]
        waves = self._waves.infer(inputs, share_inputs=True, share_outputs=True)
        found = self._rest.infer([*inputs, *waves.values()], share_inputs=True, share_outputs=True)
        # Copied: the next call writes to the same place, and some noise schedulers look back at past predictions.
        outputs = [
            torch.from_numpy(value).to(dtype, copy=True)
            for value, dtype in zip(found.values(), self._output_dtypes, strict=True)
        ]
        return pytree.tree_unflatten(outputs, self._output_tree)


def _at_the_border(tensor: "Tensor") -> "Tensor":
    """As it is handed to OpenVINO: NumPy has no bf16, and fp32 holds it exactly."""
    import torch

    return tensor.detach().float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.detach()


def _traced_module(denoiser: Any, call: _Call) -> Any:
    """A module of tensors alone, in and out; it learns the results' structure when it is called."""
    import torch
    from torch.utils import _pytree as pytree

    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.denoiser = denoiser
            self.output_tree: Any = None
            self.output_dtypes: list[str] = []

        def forward(self, *tensors: "Tensor") -> "tuple[Tensor, ...]":
            given = iter(tensors)
            leaves = [next(given).to(leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in call.leaves]
            args, kwargs = pytree.tree_unflatten(leaves, call.tree)
            outputs, self.output_tree = pytree.tree_flatten(self.denoiser(*args, **kwargs))
            self.output_dtypes = [str(output.dtype).removeprefix("torch.") for output in outputs]
            return tuple(output.float() for output in outputs)

    return Traced()


@contextlib.contextmanager
def _eager_forward(denoiser: Any) -> Iterator[None]:
    """The class's own ``forward`` for a while, when another stands in."""
    standing_in = denoiser.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if standing_in is not None:
            denoiser.forward = standing_in


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """The root logger as it was: OpenVINO's conversion silences it for the whole process, up to errors."""
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _cut_out_waves(model: "openvino.Model") -> "tuple[openvino.Model, openvino.Model]":
    """A model in two: what computes the sines and cosines, and the rest, which takes their values as further inputs."""
    import openvino
    from openvino import opset13

    values, inputs = [], []
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Sin", "Cos"):
            value = node.output(0)
            taken = opset13.parameter(list(value.get_shape()), value.get_element_type())
            for reader in list(value.get_target_inputs()):
                reader.replace_source_output(taken.output(0))
            values.append(opset13.result(value))
            inputs.append(taken)
    parameters = model.get_parameters()
    new_model: Any = openvino.Model  # its stubs do not fit its bindings
    return new_model(values, parameters, "waves"), new_model(model.get_results(), [*parameters, *inputs], "rest")


def _compile(model: "openvino.Model", configs: Mapping[str, Any], precision: str | None) -> bytes:
    return _core().compile_model(model, "CPU", _properties(configs, precision)).export_model().getvalue()


def _properties(configs: Mapping[str, Any], precision: str | None) -> dict[str, Any]:
    """OpenVINO's properties: one call at a time, with torch's number of threads."""
    return {
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[precision or configs["precision"]],
        "INFERENCE_NUM_THREADS": configs["threads"],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }


@functools.cache
def _core() -> "openvino.Core":
    import openvino

    return openvino.Core()


@functools.cache
def _capabilities() -> tuple[str, ...]:
    return tuple(sorted(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")))


def _keep(compiled: _Compiled, place: Path) -> None:
    """Write it to the cache; where that cannot be, the code serves this process alone, and the log says so once."""
    from safetensors import SafetensorError

    try:
        _write(compiled, place)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        _warn_unwritable(place.parent, reason or str(error))
        return
    _forget_oldest(place)


@functools.cache
def _warn_unwritable(folder: Path, error: str) -> None:
    logger.warning(
        "%s cannot be written (%s): denoisers are converted anew in each process until it can; make room there, or "
        "give this account the right to write",
        folder,
        error,
    )


def _write(compiled: _Compiled, place: Path) -> None:
    """All or nothing."""
    import numpy as np
    from safetensors.numpy import save_file

    parts = {"waves": np.frombuffer(compiled.waves, np.uint8), "rest": np.frombuffer(compiled.rest, np.uint8)}
    facts = {
        "digest": compiled.digest,
        "output_tree": compiled.output_tree,
        "output_dtypes": json.dumps(compiled.output_dtypes),
    }
    with durable.replacing(place) as temporary:
        save_file(parts, temporary, metadata=facts)


def _read(place: Path) -> _Compiled | None:
    """What was written, or None when there is nothing, it cannot be read, or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, framework="np") as file:
            facts = file.metadata()
            waves, rest = (file.get_tensor(name).tobytes() for name in ("waves", "rest"))
        compiled = _Compiled(waves, rest, facts["output_tree"], tuple(json.loads(facts["output_dtypes"])))
        if compiled.digest != facts["digest"]:
            raise ValueError("its digest is another")
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read (%s); the denoiser is converted anew", place, error)
        return None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is damaged (%s); the denoiser is converted anew", place, error)
        return None
    with contextlib.suppress(OSError):  # another account's file: when it was used is only for who tidies up
        place.touch()
    return compiled


def _forget_oldest(newest: Path) -> None:
    files = {}
    for path in newest.parent.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # another process removed it meanwhile
            files[path] = path.stat()
    too_many = sum(status.st_size for status in files.values()) - _MOST_BYTES
    for path in sorted(files, key=lambda path: files[path].st_mtime):
        if too_many <= 0:
            break
        if path != newest:
            with contextlib.suppress(OSError):  # another account's: what is next oldest goes
                path.unlink(missing_ok=True)
                too_many -= files[path].st_size
