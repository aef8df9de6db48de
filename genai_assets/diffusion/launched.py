"""Several training processes under ``accelerate launch``: both ends of the line between them and the caller.

Belongs here: the command that starts them, what each runs first (``python -m genai_assets.diffusion.launched FILE``),
and that none is left behind. What they train, and how they share a batch, is ``training``.

Each process calls us on a socket in a private folder and says who it is; it ends at once when we hang up, and we hang
up whenever we end, in whatever way. The launcher ends the same way, by its standard input.
"""

import contextlib
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from genai_assets import child_process, privacy
from genai_assets.diffusion.own_process import SECONDS_TO_END, Message, TrainingProcessDied, take, work_and_tell

_SOCKET, _WORK = "caller", "work.pickle"
# How long the news that a process was killed may take, once another one has complained that it lost touch with it.
_SECONDS_FOR_NEWS = 1.0
_GLANCE = 0.25
_TAIL = 100_000


class _Who(NamedTuple):
    """The first word of a process."""

    rank: int
    process: int


# The caller's end


@contextlib.contextmanager
def launched(work: Callable[..., Any], arguments: dict[str, Any], processes: int) -> Iterator[Iterator[Message]]:
    """Call ``work(on_step=..., **arguments)`` in several processes, and give the main one's messages.

    After the block all processes are gone.

    Args:
        work: a function of a module; it and all arguments are pickled.
        arguments: handed on.
        processes: how many.

    Raises:
        TrainingProcessDied: from the messages, when any process ended that should not have.
    """
    folder = Path(tempfile.mkdtemp(prefix="genai-"))  # for nobody else's eyes
    try:
        (folder / _WORK).write_bytes(pickle.dumps((work, arguments)))
        launch = _Launch(folder, processes)
        try:
            yield launch.messages()
        finally:
            launch.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Launch:
    """The launcher, its processes, and what they say."""

    def __init__(self, folder: Path, processes: int):
        self.processes = processes
        self.calls: dict[Connection[Any, Any], _Who] = {}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / _SOCKET))
        self.listener.listen(processes)
        reader, writer = os.pipe()
        with open(writer, "wb") as output:
            self.launcher = child_process.start_module(
                "accelerate.commands.launch",
                [
                    "--multi_gpu",  # starts N processes without a GPU, too; "--cpu" would start one, whatever N is
                    f"--num_processes={processes}",
                    "--num_machines=1",
                    "--mixed_precision=no",  # the loop chooses its arithmetic
                    "--dynamo_backend=no",
                    "--main_process_port=0",  # any that is free
                    "--module",
                    "genai_assets.diffusion.launched",
                    str(folder / _WORK),
                ],
                folder=Path.cwd(),
                environment=_environment(processes),
                output=output,
            )
        self.printed = b""
        self.printing = threading.Thread(target=self._pass_on, args=(reader,), daemon=True)
        self.printing.start()

    def messages(self) -> Iterator[Message]:
        """Reports of the main process, then its result when all are done, or the first error of any."""
        failure, patience = None, 0.0
        results: dict[int, Message] = {}
        while True:
            ended = self.launcher.poll() is not None
            news = wait([self.listener, *self.calls], _GLANCE)
            for line in news:
                if line is self.listener:
                    self._answer()
                    continue
                assert isinstance(line, Connection)
                message = take(line)
                if message is None:
                    raise self._death(self.calls[line])
                if message[0] == "error":
                    failure, patience = failure or message, time.monotonic() + _SECONDS_FOR_NEWS
                elif message[0] == "result":
                    results[self.calls[line].rank] = message
                elif self.calls[line].rank == 0:
                    yield message
            if len(results) == self.processes:
                yield results[0]
            # Who lost touch with a killed process complains of the network: not the news that the caller needs.
            if failure and time.monotonic() > patience:
                yield failure
            if ended and not news:
                raise self._death(None)

    def end(self) -> None:
        """End every process, first by hanging up, then by signals, and come back when they are gone."""
        self.listener.close()
        self._hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.launcher.wait(SECONDS_TO_END)
        assert self.launcher.stdin
        self.launcher.stdin.close()  # ends its whole group
        try:
            self.launcher.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            os.killpg(self.launcher.pid, signal.SIGKILL)
            self.launcher.wait()
        for call, who in self.calls.items():
            if not _is_over(call):
                os.kill(who.process, signal.SIGKILL)
                _is_over(call)
            call.close()
        self.printing.join(SECONDS_TO_END)

    def _answer(self) -> None:
        call = Connection(self.listener.accept()[0].detach())
        first = take(call) if call.poll(SECONDS_TO_END) else None
        if first is None:
            call.close()
        else:
            self.calls[call] = _Who(*first[1])

    def _hang_up(self) -> None:
        for call in self.calls:
            with socket.socket(fileno=os.dup(call.fileno())) as line, contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_WR)  # only half, as their half shows when they are gone

    def _pass_on(self, reader: int) -> None:
        """What is printed, to where we print; the last of it is kept, as there the launcher tells who died, and how."""
        with open(reader, "rb", buffering=0) as printed:
            while text := printed.read(1 << 16):
                self.printed = (self.printed + text)[-_TAIL:]
                sys.stderr.write(text.decode(errors="replace"))

    def _death(self, who: _Who | None) -> TrainingProcessDied:
        """The error to raise when a process, or with None the launcher, is gone; asks the launcher for exit codes."""
        self._hang_up()  # what is left of them would only wait for the dead one
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.launcher.wait(SECONDS_TO_END)
            self.printing.join(SECONDS_TO_END)
        process = rf"{who.process}" if who else r"\d+"
        codes = re.findall(rf"exitcode\s*: (-?\d+) \(pid: {process}\)", self.printed.decode(errors="replace"))
        which = f"training process {who.rank + 1} of {self.processes}" if who else f"one of {self.processes} processes"
        # Its table ends with the first one that died.
        return TrainingProcessDied.with_code(which, int(codes[-1]) if codes else self.launcher.poll())


def _is_over(call: "Connection[Any, Any]") -> bool:
    """Whether the process at the other end is gone, after some time at most."""
    until = time.monotonic() + SECONDS_TO_END
    try:
        while call.poll(max(0.0, until - time.monotonic())):
            call.recv_bytes()
    except (EOFError, OSError):
        return True
    return False


def _environment(processes: int) -> dict[str, str]:
    """Ours, with a share of the cores for each process, and our import path: work is found there as it is here."""
    return {
        **privacy.TELEMETRY_OFF,
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONUNBUFFERED": "1",
    }


# The processes' end


def main(file: Path) -> None:
    """Do the work that ``file`` names, tell the caller of it, and end when the caller hangs up."""
    rank = int(os.environ["RANK"])
    try:
        caller = Client(str(file.with_name(_SOCKET)), family="AF_UNIX")
        caller.send(("process", (rank, os.getpid())))
    except OSError:
        return  # it has given up already
    end = threading.Thread(target=_end_with, args=(caller,), daemon=True)
    end.start()
    if work_and_tell(caller, _work, {"file": file, "main": rank == 0}):
        end.join()  # not before: the others may still need this one, and the launcher takes an end for a failure


def _end_with(caller: Any) -> None:
    """End this process when the caller hangs up, whatever its other threads do."""
    with contextlib.suppress(OSError):
        caller.poll(None)
    os._exit(0)


def _work(on_step: Callable[[Any], None], *, file: Path, main: bool) -> Any:
    work, arguments = pickle.loads(file.read_bytes())
    result = work(on_step=on_step if main else lambda report: None, **arguments)
    return result if main else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
