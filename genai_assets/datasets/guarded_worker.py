"""Guarded workers: processes in which bytes from outside are decoded, and which may die of it.

Belongs here: starting such processes cheaply, fencing them in, handing them bytes, and finding out which bytes killed
one. What is done with the bytes is a function that whoever starts the workers names; nothing is known of it here.

A worker loads all it needs and then gives up what it does not: it can open no file and no socket any more, write none,
leave no core dump, and use a bounded amount of memory; its environment holds no secrets. It takes bytes and gives bytes
back, never objects, so that a worker that was taken over cannot make its parent run code. An alarm ends it when one
item takes too long, even when nobody is left to end it; the end of its input ends it otherwise.

Where the operating system knows no such limits (``resource`` is missing: Windows) or ignores the one on memory (macOS),
workers still die alone and are still ended in time, but their memory is not bounded.
"""

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import IO, Self

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

Work = Callable[[bytes], bytes]
"""What a worker does with one item."""

_BATCH_ITEMS = 64
_BATCH_BYTES = 4 * 1024**2
_WAITING_BYTES = 32 * 1024**2
_LONGEST_ANSWER = 16 * 1024**2  # a worker that announces more has been taken over or is out of its mind
_RENEW_AFTER = 10_000  # items; what a decoder leaks does not add up for ever
_START_SECONDS = 120
_GRACE_SECONDS = 5  # after which the parent ends a worker that its own alarm should have ended
_LOOK_EVERY_SECONDS = 0.25
_NEVER = float("inf")

_READY = b"\0"
_DONE, _TOO_MUCH_MEMORY, _FAILED = range(3)
_ANSWER = struct.Struct("<BQ")

# All a decoder needs of its parent's surroundings; access keys and passwords lie there, too.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TZ")


class WorkerUnavailable(RuntimeError):
    """Guarded workers cannot be started at all; the message shows their last words."""


@dataclass(frozen=True)
class Limits:
    """What a worker may use for one item.

    Attributes:
        seconds: of wall-clock time.
        memory_bytes: above what it has once it is ready.
    """

    seconds: float = 20.0
    memory_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class Lost:
    """An item that gave no result.

    Attributes:
        kind: "too slow", "too much memory", "crashed" or "failed", fit for counting.
        reason: in words.
    """

    kind: str
    reason: str


@dataclass
class _Item:
    data: bytes
    answer: "Future[bytes | Lost]" = field(default_factory=Future)
    deaths: int = 0


class GuardedWorkers:
    """A few workers that take items from one queue. A context manager; the workers start with the first item.

    A worker that dies takes one item with it: the one it was at. That one is tried once more, alone in a new worker
    (the first may have been killed by something else); the others of its batch go on as if nothing had happened.
    """

    def __init__(self, prepare: Callable[[], Work], *, limits: Limits | None = None, workers: int | None = None):
        """Name the work.

        Args:
            prepare: called in each worker before it is fenced in; loads all that the work needs and returns it. A
                function of a module, or a ``functools.partial`` of one.
            limits: of each worker.
            workers: how many; as many as there are cores when not given.

        Raises:
            ValueError: ``prepare`` cannot be named to another process.
        """
        if getattr(getattr(prepare, "func", prepare), "__module__", "__main__") == "__main__":
            raise ValueError("a guarded worker can only import functions of modules, not of the main program")
        self._order = pickle.dumps((prepare, limits or Limits()))
        self._limits = limits or Limits()
        self.count = workers or _cores()
        self._waiting: deque[_Item] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._workers: set[_Worker] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, data: bytes) -> "Future[bytes | Lost]":
        """Hand in one item; blocks while many bytes wait, so that whoever reads them from a disk cannot run ahead.

        Returns:
            The result to come: what the work returned, or why there is nothing. It raises
            :class:`WorkerUnavailable` when no worker can be started.
        """
        item = _Item(data)
        with self._changed:
            while self._waiting and self._waiting_bytes + len(data) > _WAITING_BYTES:
                self._changed.wait()
            if self._closing.is_set():
                raise _closed()
            self._waiting.append(item)
            self._waiting_bytes += len(data)
            if len(self._threads) < self.count:
                self._start_thread(self._serve)
                if len(self._threads) == 1:
                    threading.Thread(target=self._watch, name="guarded-worker-watch", daemon=True).start()
            self._changed.notify_all()
        return item.answer

    def close(self) -> None:
        """End all workers at once; items nobody has begun are cancelled."""
        with self._changed:
            self._closing.set()
            while self._waiting:
                self._waiting.popleft().answer.cancel()
            for worker in self._workers:
                worker.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _start_thread(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="guarded-worker", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _take(self) -> list[_Item]:
        """A batch from the queue, leaving the others their share; empty when the workers are closed."""
        with self._changed:
            while not self._waiting and not self._closing.is_set():
                self._changed.wait()
            share = max(1, min(_BATCH_ITEMS, len(self._waiting) // self.count))
            batch: list[_Item] = []
            size = 0
            while self._waiting and len(batch) < share and (not batch or size < _BATCH_BYTES):
                batch.append(self._waiting.popleft())
                size += len(batch[-1].data)
            self._waiting_bytes -= size
            self._changed.notify_all()
        return batch

    def _serve(self) -> None:
        """One thread a worker: hand over batches, set results, replace the worker when it died."""
        worker: _Worker | None = None
        while batch := self._take():
            items = deque(item for item in batch if item.answer.set_running_or_notify_cancel())
            while items:
                try:
                    worker = worker or self._start_worker()
                    worker = self._work_through(worker, items)
                except BaseException as error:
                    while items:
                        items.popleft().answer.set_exception(error)
                    if worker:
                        self._end(worker)
                        worker = None
            if worker and worker.served >= _RENEW_AFTER:
                self._end(worker)
                worker = None
        if worker:
            self._end(worker)

    def _work_through(self, worker: "_Worker", items: deque[_Item]) -> "_Worker | None":
        """Have a worker answer items, in order; None when it died of the first that is left."""
        while items:
            # Once a worker has died, the one suspected of it goes alone.
            sent = 1 if items[0].deaths else len(items)
            try:
                worker.send([items[at].data for at in range(sent)], self._limits.seconds)
                for _ in range(sent):
                    answer = worker.receive(self._limits)
                    items.popleft().answer.set_result(answer)
                worker.deadline = _NEVER
            except _Died:
                lost = self._end(worker)
                if self._closing.is_set():
                    while items:
                        items.popleft().answer.set_exception(_closed())
                    return None
                items[0].deaths += 1
                if items[0].deaths > 1 or lost.kind != "crashed":
                    items.popleft().answer.set_result(lost)
                return None
        return worker

    def _start_worker(self) -> "_Worker":
        worker = _Worker(self._order)
        with self._changed:
            self._workers.add(worker)
            if self._closing.is_set():
                worker.kill()
        try:
            worker.wait_until_ready()
        except _Died:
            self._end(worker)
            raise WorkerUnavailable(f"a guarded worker does not start: {worker.last_words}") from None
        return worker

    def _end(self, worker: "_Worker") -> Lost:
        with self._changed:
            self._workers.discard(worker)
        return worker.end(self._limits)

    def _watch(self) -> None:
        """End workers that are overdue. Their own alarm should have done so; a worker taken over has none."""
        while not self._closing.wait(_LOOK_EVERY_SECONDS):
            with self._changed:
                for worker in self._workers:
                    if time.monotonic() > worker.deadline:
                        worker.overdue = True
                        worker.kill()


def _closed() -> RuntimeError:
    return RuntimeError("these workers have been closed")


class _Died(Exception):
    """A worker's pipe is closed, or speaks nonsense."""


class _Worker:
    """One process, from its parent's side."""

    def __init__(self, order: bytes):
        self.served = 0
        self.overdue = False
        self.mad = False
        self.deadline = time.monotonic() + _START_SECONDS
        # By -c and the parent's own path: the parent's main program, which may be large, is never imported.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=kept | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._to, self._from, self._complaints = self._process.stdin, self._process.stdout, self._process.stderr
        self._order = order
        self.last_words = ""

    def wait_until_ready(self) -> None:
        self._write(struct.pack("<Q", len(self._order)) + self._order)
        if self._read(1) != _READY:
            raise _Died
        self.deadline = _NEVER

    def send(self, batch: Sequence[bytes], seconds: float) -> None:
        self.deadline = time.monotonic() + seconds + _GRACE_SECONDS
        self._write(struct.pack(f"<I{len(batch)}Q", len(batch), *map(len, batch)))
        for data in batch:
            self._write(data)

    def receive(self, limits: Limits) -> bytes | Lost:
        status, length = _ANSWER.unpack(self._read(_ANSWER.size))
        if length > _LONGEST_ANSWER:
            self.mad = True
            raise _Died
        answer = self._read(length)
        self.deadline = time.monotonic() + limits.seconds + _GRACE_SECONDS
        self.served += 1
        if status == _TOO_MUCH_MEMORY:
            return _too_much_memory(limits)
        if status == _FAILED:
            return Lost("failed", answer.decode(errors="replace"))
        return answer

    def kill(self) -> None:
        self._process.kill()

    def end(self, limits: Limits) -> Lost:
        """Make sure that it is gone; what that means for the item it was at."""
        # A process that died by itself is left a moment to say of what.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if self._process.poll() is not None else 0.5)
        self._process.kill()
        status = self._process.wait()
        with self._to, self._from, self._complaints as complaints:
            self.last_words = complaints.read().decode(errors="replace").strip()[-2000:]
        if self.overdue or status == -getattr(signal, "SIGALRM", 0):
            return Lost("too slow", f"it took longer than {limits.seconds:g} s")
        if self.mad:
            return Lost("crashed", "the decoder answered nonsense")
        if status >= 0:
            return Lost("crashed", f"the decoder ended by itself (status {status})")
        name = signal.Signals(-status).name
        return Lost("crashed", f"the decoder crashed (signal {-status}, {name})")

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self._to.write(left) or 0 :]
        except (BrokenPipeError, ValueError):
            raise _Died from None

    def _read(self, length: int) -> bytes:
        try:
            return _read_exactly(self._from, length)
        except (EOFError, ValueError):
            raise _Died from None


def serve() -> None:
    """The worker's whole life: prepare, give up what is not needed, answer until the input ends."""
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's to handle
    # The pipes move away from the standard places, for libraries in C write complaints there.
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    target = os.fdopen(os.dup(1), "wb", buffering=0)
    prepare, limits = pickle.loads(_read_exactly(source, struct.unpack("<Q", _read_exactly(source, 8))[0]))
    work = prepare()
    _fence(limits)
    target.write(_READY)
    while True:
        try:
            (count,) = struct.unpack("<I", _read_exactly(source, 4))
            lengths = struct.unpack(f"<{count}Q", _read_exactly(source, 8 * count))
            # All of it before any answer: were both sides writing, both would wait for ever.
            batch = [_read_exactly(source, length) for length in lengths]
        except EOFError:
            return
        for at in range(count):
            data, batch[at] = batch[at], b""
            status, answer = _answered(work, data, limits)
            message = memoryview(_ANSWER.pack(status, len(answer)) + answer)
            while message:
                message = message[target.write(message) :]


def _answered(work: Work, data: bytes, limits: Limits) -> tuple[int, bytes]:
    _set_alarm(limits.seconds)
    try:
        return _DONE, work(data)
    except MemoryError:
        return _TOO_MUCH_MEMORY, b""
    except BaseException as error:  # a panic of a Rust library is no Exception
        return _FAILED, f"{type(error).__name__}: {error}".encode()[:2000]
    finally:
        _set_alarm(0)


def _set_alarm(seconds: float) -> None:
    """Nothing handles the alarm, so it ends the process, in whatever library it hangs."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _fence(limits: Limits) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    most = _address_space() + limits.memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    # No descriptor is left to be had: no file, no socket.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _address_space() -> int:
    """Bytes this process has mapped by now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1024**3


def _too_much_memory(limits: Limits) -> Lost:
    return Lost("too much memory", f"it needed more than {limits.memory_bytes / 1024**2:,.0f} MiB of memory")


def _read_exactly(file: IO[bytes], length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = file.read(min(length, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
