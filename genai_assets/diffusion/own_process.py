"""Training in a process of its own: its memory goes back to the system, and a crash does not take the caller along.

Belongs here: starting the process, carrying step reports back, and turning its end into a result or an error.
"""

import pickle
import traceback
from collections.abc import Callable
from typing import Any

_SECONDS_TO_END = 10.0


class TrainingProcessDied(RuntimeError):
    """The training process ended without a result, for example killed for want of memory."""


def run_in_own_process(
    work: Callable[..., dict[str, Any]], *, on_step: Callable[[Any], None] | None, **arguments: Any
) -> dict[str, Any]:
    """Call ``work(on_step=..., **arguments)`` in a new Python process and return what it returns.

    The process ends with the caller: a report that nobody takes any more ends the work.

    Args:
        work: a function of a module; it and all arguments are pickled.
        on_step: called here with every report the work gives there.
        **arguments: handed on.

    Raises:
        TrainingProcessDied: the process was killed; what it had checkpointed is kept, so trying again goes on.
        Exception: whatever ``work`` raised, as it was, with the trace of the other process as a note.
    """
    import multiprocessing
    from multiprocessing.connection import wait

    context = multiprocessing.get_context("spawn")
    messages, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, work, arguments), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends with the child
    try:
        while True:
            wait([messages, process.sentinel])
            kind, value = _take(messages)
            if kind == "step":
                if on_step:
                    on_step(value)
            elif kind == "result":
                process.join(_SECONDS_TO_END)
                return value
            elif kind == "error":
                process.join(_SECONDS_TO_END)
                raise value
            else:
                process.join()
                raise TrainingProcessDied(
                    f"training ended with exit code {process.exitcode} and no result; was it killed, or out of memory? "
                    "Run it again: it goes on from its last checkpoint"
                )
    finally:
        messages.close()
        if process.is_alive():
            process.terminate()
            process.join(_SECONDS_TO_END)
            process.kill()
            process.join()


def _take(messages: Any) -> tuple[str, Any]:
    """The next message; ("end", None) when there is none: then the process has ended."""
    try:
        return messages.recv() if messages.poll() else ("end", None)
    except EOFError:
        return "end", None


def _child(messages: Any, work: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> None:
    try:
        result = work(on_step=lambda report: messages.send(("step", report)), **arguments)
        messages.send(("result", result))
    except BrokenPipeError:
        return  # the caller is gone, and nobody wants the result
    except BaseException as error:
        error.add_note("in the training process:\n" + traceback.format_exc())
        messages.send(("error", _portable(error)))


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
