"""Training in processes of its own: its memory goes back to the system, and a crash does not take the caller along.

Belongs here: starting a process, carrying step reports back, and turning its end into a result or an error. How several
are started together is ``launched``.
"""

import contextlib
import gc
import multiprocessing
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

from genai_assets.diffusion.devices import keep_freed_memory

SECONDS_TO_END = 10.0

Message = tuple[str, Any]
"""``("step", report)``, ``("result", what the work returned)`` or ``("error", what it raised)``."""


class TrainingProcessDied(RuntimeError):
    """A training process ended without a result, for example killed for want of memory."""

    @classmethod
    def with_code(cls, which: str, code: int | None) -> "TrainingProcessDied":
        """What to tell of a process that ended with an exit code (minus a signal's number) and nothing else."""
        return cls(
            f"{which} ended with exit code {'unknown' if code is None else code} and no result; was it killed, or out "
            "of memory? Run it again: it goes on from its last checkpoint"
        )


def run_in_own_process(
    work: Callable[..., dict[str, Any]],
    *,
    on_step: Callable[[Any], None] | None,
    processes: int = 1,
    **arguments: Any,
) -> dict[str, Any]:
    """Call ``work(on_step=..., **arguments)`` in a new Python process, or in several, and return what it returns.

    Several are started on this machine by ``accelerate launch``, and each calls ``work``: the main one (rank 0) gives
    reports and result, and when any of them fails or dies, all are ended. No process outlives this call, and none
    outlives the caller, however it ends.

    Args:
        work: a function of a module; it and all arguments are pickled.
        on_step: called here with every report the work gives there.
        processes: how many: GPUs to use, or parts that a CPU's cores are shared in.
        **arguments: handed on.

    Raises:
        TrainingProcessDied: a process was killed; what it had checkpointed is kept, so trying again goes on.
        ValueError: ``processes`` is below 1.
        Exception: whatever ``work`` raised, as it was, with the trace of the other process as a note.
    """
    _give_back_gpu_memory()
    if processes < 1:
        raise ValueError(f"training takes at least one process, not {processes}")
    if processes > 1:
        from genai_assets.diffusion.launched import launched

        started = launched(work, arguments, processes)
    else:
        started = _spawned(work, arguments)
    with started as messages:
        for kind, value in messages:
            if kind == "error":
                raise value
            if kind == "result":
                return value
            if on_step:
                on_step(value)
    raise AssertionError("messages end with a result or an error")


def _give_back_gpu_memory() -> None:
    """What torch keeps on a GPU for later use by this process is for the new one now."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _spawned(work: Callable[..., Any], arguments: dict[str, Any]) -> Iterator[Iterator[Message]]:
    """Messages of one new process; it is gone after the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends with the child

    def messages() -> Iterator[Message]:
        while True:
            wait([ours, process.sentinel])
            message = take(ours) if ours.poll() else None
            if message is None:
                process.join()
                raise TrainingProcessDied.with_code("training", process.exitcode)
            if message[0] != "step":
                process.join(SECONDS_TO_END)
            yield message

    try:
        yield messages()
    finally:
        ours.close()
        if process.is_alive():
            process.terminate()
            process.join(SECONDS_TO_END)
            process.kill()
            process.join()


def _child(messages: Any, work: Callable[..., Any], arguments: dict[str, Any]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work_and_tell(messages, work, arguments)


def _end_with_parent() -> None:
    """End this process with the one that started it, whatever its other threads do."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def take(connection: Any) -> Message | None:
    """The next message; None when the process at the other end has ended."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return None


def work_and_tell(messages: Any, work: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    """In the training process: call ``work`` and send its reports, then its result or error, to the caller.

    Returns:
        bool: False when the caller is gone.
    """
    keep_freed_memory()
    try:
        result = work(on_step=lambda report: messages.send(("step", report)), **arguments)
        messages.send(("result", result))
    except (BrokenPipeError, ConnectionResetError):
        return False  # nobody wants the result
    except BaseException as error:
        error.add_note("in the training process:\n" + traceback.format_exc())
        messages.send(("error", _portable(error)))
    return True


def _portable(error: BaseException) -> BaseException:
    """The error, or a ``RuntimeError`` that tells of it when it cannot be carried to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception as reason:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        for note in [*error.__notes__, f"(the error itself could not be carried over: {reason})"]:
            told.add_note(note)
        return told
    return error
