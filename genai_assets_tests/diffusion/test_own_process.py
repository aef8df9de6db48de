"""Work in a process of its own: reports come back in order, and every end is a result or a clear error.

No torch at the top: the child processes import this module.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from genai_assets.diffusion.own_process import TrainingProcessDied, run_in_own_process


class TwoPartError(RuntimeError):
    """An error that pickle can write but not read: its arguments are not its message."""

    def __init__(self, first: str, second: str):
        super().__init__(f"{first} and {second}")


def count(on_step, *, to: int) -> dict[str, int]:
    for number in range(to):
        on_step(number)
    return {"counted": to, "process": os.getpid()}


def fail(on_step) -> dict[str, int]:
    on_step("before")
    raise LookupError("no such colour", 7)


def fail_with_two_parts(on_step) -> dict[str, int]:
    raise TwoPartError("this", "that")


def answer_with_what_cannot_travel(on_step):
    return {"function": lambda: None}


def be_killed(on_step) -> dict[str, int]:
    on_step("before")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def be_killed_after_much(on_step) -> dict[str, int]:
    on_step("x" * 1_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def tell_until_nobody_listens(on_step, *, beat: str) -> dict[str, int]:
    while True:
        on_step(os.getpid())
        with open(beat, "a") as file:
            file.write(".")
        time.sleep(0.02)


def say_who_and_work_for_ever(on_step, *, folder: Path) -> dict[str, int]:
    say_who(folder)
    while True:
        time.sleep(0.02)  # and report nothing, so that nobody can be missed


def test_the_result_comes_back_from_another_process_and_reports_arrive_in_order():
    reports: list[int] = []
    result = run_in_own_process(count, on_step=reports.append, to=300)
    assert result["counted"] == 300
    assert result["process"] != os.getpid()
    assert reports == list(range(300))


def test_an_error_arrives_with_its_own_type_and_the_trace_as_a_note():
    reports: list[str] = []
    with pytest.raises(LookupError) as caught:
        run_in_own_process(fail, on_step=reports.append)
    assert caught.value.args == ("no such colour", 7)
    assert "in the training process" in caught.value.__notes__[0]
    assert "in fail" in caught.value.__notes__[0]
    assert reports == ["before"]


def test_an_error_that_cannot_travel_is_told_of_all_the_same():
    with pytest.raises(RuntimeError, match="TwoPartError: this and that") as caught:
        run_in_own_process(fail_with_two_parts, on_step=None)
    assert "in fail_with_two_parts" in caught.value.__notes__[0]


def test_a_result_that_cannot_travel_is_an_error_and_no_silence():
    with pytest.raises((AttributeError, TypeError), match=r"[Cc]an't (get|pickle)|cannot pickle|local object"):
        run_in_own_process(answer_with_what_cannot_travel, on_step=None)


@pytest.mark.parametrize("work", [be_killed, be_killed_after_much])
def test_a_killed_process_is_a_clear_error_and_its_reports_are_kept(work):
    reports: list[str] = []
    started = time.monotonic()
    with pytest.raises(TrainingProcessDied, match=r"exit code -9 .* goes on from its last checkpoint"):
        run_in_own_process(work, on_step=reports.append)
    assert len(reports) == 1
    assert time.monotonic() - started < 60


def test_when_the_caller_gives_up_the_process_ends_with_it(tmp_path):
    beat = tmp_path / "beat"

    def give_up(process: int) -> None:
        raise InterruptedError(process)

    with pytest.raises(InterruptedError) as caught:
        run_in_own_process(tell_until_nobody_listens, on_step=give_up, beat=str(beat))
    with pytest.raises(ProcessLookupError):
        os.kill(caught.value.args[0], 0)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_when_the_caller_is_killed_its_processes_end(tmp_path, processes):
    program = (
        "from pathlib import Path\n"
        "from genai_assets.diffusion.own_process import run_in_own_process\n"
        "from genai_assets_tests.diffusion.test_own_process import say_who_and_work_for_ever\n"
        "if __name__ == '__main__':\n"
        "    run_in_own_process("
        f"say_who_and_work_for_ever, on_step=None, processes={processes}, folder=Path({str(tmp_path)!r}))"
    )
    script = tmp_path / "caller.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as caller:
        wait_until(lambda: len(who_worked(tmp_path)) == processes)
        started = psutil.Process(caller.pid).children(recursive=True)
        assert {process.pid for process in started} >= set(who_worked(tmp_path))
        caller.kill()
    _, left = psutil.wait_procs(started, timeout=60)
    assert left == []


def test_no_process_at_all_is_a_clear_error():
    with pytest.raises(ValueError, match="at least one process, not 0"):
        run_in_own_process(count, on_step=None, processes=0, to=1)


# Several processes, by `accelerate launch`: a few seconds each


def say_who(folder: Path) -> int:
    """Leave this process' id, and give its number among the others."""
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"process-{rank}.partial").write_text(str(os.getpid()))
    (folder / f"process-{rank}.partial").rename(folder / f"process-{rank}")
    return rank


def who_worked(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob("process-?")]


def wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


def meet(on_step, *, folder: Path, to: int) -> dict[str, Any]:
    """Each of two processes reports, and ends when both were there."""
    rank = say_who(folder)
    for number in range(to):
        on_step((rank, number))
    wait_until(lambda: len(who_worked(folder)) == 2)
    if rank == 1:
        time.sleep(1)  # nobody is ended before its work is done
        (folder / "late").touch()
    return {"rank": rank, "processes": os.environ["WORLD_SIZE"], "telemetry off": os.environ["DO_NOT_TRACK"]}


def fail_in_the_second(on_step, *, folder: Path) -> dict[str, Any]:
    rank = say_who(folder)
    wait_until(lambda: len(who_worked(folder)) == 2)
    if rank == 1:
        raise LookupError("no such colour", 7)
    wait_until(lambda: False)
    return {}


def be_killed_in_the_second(on_step, *, folder: Path) -> dict[str, Any]:
    """The first one complains that the other is gone, as gloo does, which is not the news."""
    rank = say_who(folder)
    wait_until(lambda: len(who_worked(folder)) == 2)
    on_step("before")
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise ConnectionError("Connection closed by peer")


def report_for_ever(on_step, *, folder: Path) -> dict[str, Any]:
    say_who(folder)
    wait_until(lambda: len(who_worked(folder)) == 2)
    while True:
        on_step("still here")
        time.sleep(0.02)


@pytest.fixture
def nothing_is_left(tmp_path):
    """After the test, none of the two processes that were there is alive, nor their launcher."""
    yield
    assert len(who_worked(tmp_path)) == 2
    assert not [number for number in who_worked(tmp_path) if psutil.pid_exists(number)]
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert not [command for command in commands if "accelerate.commands.launch" in command]


@pytest.mark.usefixtures("nothing_is_left")
def test_of_several_processes_the_main_one_gives_reports_and_result(tmp_path):
    reports: list[tuple[int, int]] = []
    result = run_in_own_process(meet, on_step=reports.append, processes=2, folder=tmp_path, to=100)
    assert result == {"rank": 0, "processes": "2", "telemetry off": "1"}
    assert reports == [(0, number) for number in range(100)]
    assert (tmp_path / "late").exists()


@pytest.mark.usefixtures("nothing_is_left")
def test_when_one_of_several_is_killed_all_end_and_the_error_says_which(tmp_path):
    reports: list[str] = []
    with pytest.raises(TrainingProcessDied, match=r"process 2 of 2 ended with exit code -9 .* its last checkpoint"):
        run_in_own_process(be_killed_in_the_second, on_step=reports.append, processes=2, folder=tmp_path)
    assert reports in ([], ["before"])


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_an_error_of_any_of_several_ends_all_and_arrives_with_its_own_type(tmp_path):
    with pytest.raises(LookupError) as caught:
        run_in_own_process(fail_in_the_second, on_step=None, processes=2, folder=tmp_path)
    assert caught.value.args == ("no such colour", 7)
    assert "in fail_in_the_second" in caught.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_when_the_caller_gives_up_all_of_several_end(tmp_path):
    def give_up(report: str) -> None:
        raise InterruptedError(report)

    with pytest.raises(InterruptedError, match="still here"):
        run_in_own_process(report_for_ever, on_step=give_up, processes=2, folder=tmp_path)


def test_work_that_cannot_be_carried_to_several_processes_is_a_clear_error_before_any_starts(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local object"):
        run_in_own_process(lambda on_step: {}, on_step=None, processes=2)
