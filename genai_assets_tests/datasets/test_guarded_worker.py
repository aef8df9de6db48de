"""Guarded workers: one that dies takes one item with it; none reaches out, outlives its parent or hangs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from genai_assets.datasets import guarded_worker
from genai_assets.datasets.guarded_worker import GuardedWorkers, Limits, Lost, WorkerUnavailable
from genai_assets_tests.datasets import misbehaviour

ROOT = Path(__file__).parents[2]
MIB = 1024**2


@pytest.fixture(scope="module")
def workers() -> Iterator[GuardedWorkers]:
    limits = Limits(seconds=1.0, memory_bytes=200 * MIB)
    with GuardedWorkers(misbehaviour.prepare, limits=limits, workers=2) as found:
        yield found


def answers(workers: GuardedWorkers, *items: bytes) -> list[bytes | Lost]:
    return [answer.result(timeout=60) for answer in [workers.submit(item) for item in items]]


def test_every_item_is_answered_with_its_own_answer(workers):
    items = [f"item {number}".encode() * (number % 50) for number in range(2000)]
    assert answers(workers, *items) == items


@pytest.mark.parametrize(
    ("deed", "kind", "reason"),
    [
        (b"crash", "crashed", "the decoder crashed (signal 11, SIGSEGV)"),
        (b"kill", "crashed", "the decoder crashed (signal 9, SIGKILL)"),
        (b"end", "crashed", "the decoder ended by itself (status 3)"),
        (b"hang", "too slow", "it took longer than 1 s"),
        (b"eat 2000000000", "too much memory", "it needed more than 200 MiB of memory"),
        (b"raise", "failed", "ValueError: a decoder's own complaint"),
    ],
)
def test_a_worker_that_dies_takes_one_item_with_it(workers, deed, kind, reason):
    items = [b"%d" % number for number in range(40)]
    items[17] = deed
    found = answers(workers, *items)
    assert found.pop(17) == Lost(kind, reason)
    items.pop(17)
    assert found == items


def test_several_deadly_items_in_a_row_are_told_apart(workers):
    found = answers(workers, b"crash", b"end", b"good", b"crash", b"crash")
    assert [answer if isinstance(answer, bytes) else answer.kind for answer in found] == [
        "crashed", "crashed", b"good", "crashed", "crashed",
    ]  # fmt: skip


def test_memory_within_the_limit_is_given(workers):
    assert answers(workers, b"eat 100000000") == [b"100000000"]


def test_a_worker_killed_from_outside_costs_no_item():
    with GuardedWorkers(misbehaviour.prepare, workers=1) as workers:
        (process,) = answers(workers, b"process")
        os.kill(int(process), signal.SIGKILL)
        assert answers(workers, b"first", b"second") == [b"first", b"second"]
        assert answers(workers, b"process") != [process]


def test_a_worker_that_blocks_its_own_alarm_is_ended_by_its_parent(monkeypatch):
    monkeypatch.setattr(guarded_worker, "_GRACE_SECONDS", 0.5)
    with GuardedWorkers(misbehaviour.prepare, limits=Limits(seconds=0.5), workers=1) as workers:
        assert answers(workers, b"deaf", b"good") == [Lost("too slow", "it took longer than 0.5 s"), b"good"]


def test_a_worker_that_has_nothing_to_do_is_not_taken_for_one_that_hangs(monkeypatch):
    monkeypatch.setattr(guarded_worker, "_GRACE_SECONDS", 0.1)
    with GuardedWorkers(misbehaviour.prepare, limits=Limits(seconds=0.2), workers=1) as workers:
        before = answers(workers, b"process")
        time.sleep(1.0)
        assert answers(workers, b"process") == before


@pytest.mark.parametrize("deed", [b"open", b"connect"])
def test_a_worker_can_open_neither_files_nor_sockets(workers, deed):
    (found,) = answers(workers, deed)
    assert isinstance(found, Lost)
    assert "Too many open files" in found.reason


def test_what_libraries_print_does_not_mix_with_answers(workers, capfd):
    assert answers(workers, b"chatter", b"good") == [b"quiet", b"good"]
    assert capfd.readouterr() == ("", "")


def test_a_worker_sees_no_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with GuardedWorkers(misbehaviour.prepare, workers=1) as workers:
        (found,) = answers(workers, b"environment")
    assert "PATH" in found.decode()
    assert "AWS_SECRET_ACCESS_KEY" not in found.decode()


def test_an_answer_that_is_longer_than_any_can_be_is_a_crash(workers):
    # What a worker that was taken over might try: to make its parent hold more than it can.
    assert answers(workers, bytes(17 * MIB)) == [Lost("crashed", "the decoder answered nonsense")]


def test_a_worker_is_renewed_before_leaks_add_up(monkeypatch):
    monkeypatch.setattr(guarded_worker, "_RENEW_AFTER", 10)
    with GuardedWorkers(misbehaviour.prepare, workers=1) as workers:
        processes = {answer for _ in range(25) for answer in answers(workers, b"process")}
    assert len(processes) == 3


def test_workers_that_cannot_start_say_why():
    with GuardedWorkers(misbehaviour.prepare_nothing, workers=1) as workers:
        for _ in range(2):
            with pytest.raises(WorkerUnavailable, match="there is no decoder on this machine"):
                answers(workers, b"good")


def test_the_main_program_is_no_place_for_work():
    def work():
        return bytes

    work.__module__ = "__main__"
    for prepare in (work, partial(work)):
        with pytest.raises(ValueError, match="main program"):
            GuardedWorkers(prepare)


def test_closing_ends_what_has_begun_and_cancels_what_has_not():
    workers = GuardedWorkers(misbehaviour.prepare, workers=1)
    (process,) = answers(workers, b"process")
    hanging = [workers.submit(b"hang") for _ in range(3)]
    workers.close()
    assert all(answer.done() for answer in hanging)
    assert gone(int(process))
    with pytest.raises(RuntimeError, match="closed"):
        workers.submit(b"late")


def test_no_worker_outlives_a_parent_that_was_killed():
    code = (
        "import time; from genai_assets.datasets.guarded_worker import GuardedWorkers, Limits\n"
        "from genai_assets_tests.datasets import misbehaviour\n"
        "workers = GuardedWorkers(misbehaviour.prepare, limits=Limits(seconds=2), workers=2)\n"
        "print(*(workers.submit(b'process').result().decode() for _ in range(1)), flush=True)\n"
        "workers.submit(b'hang'); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout
        process = int(parent.stdout.readline())
        time.sleep(0.3)  # so that the worker hangs when its parent dies
        parent.kill()
    assert gone(process)


def gone(process: int) -> bool:
    """Whether a process ends within a few seconds; a zombie that nobody has asked after has ended."""
    for _ in range(100):
        try:
            with open(f"/proc/{process}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False
