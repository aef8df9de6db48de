"""Work in a process of its own: reports come back in order, and every end is a result or a clear error.

No torch at the top: the child processes import this module.
"""

import os
import signal
import time

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
