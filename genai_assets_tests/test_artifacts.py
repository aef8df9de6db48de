"""Artifacts are complete or absent, built once, and tell when they were changed."""

import contextlib
import json
import multiprocessing
import os
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from genai_assets import artifacts
from genai_assets.artifacts import Artifact, ArtifactStore

INPUTS = {"data": "abc", "settings": {"size": 3}}


def write(text: str = "content"):
    def make(out: Path) -> dict[str, object]:
        (out / "sub").mkdir()
        (out / "sub" / "file.txt").write_text(text)
        (out / "other.txt").write_text("other")
        return {"letters": len(text)}

    return make


def refuse(out: Path) -> dict[str, object]:
    raise AssertionError("it is there already")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_an_artifact_is_built_once_and_then_reused(store):
    first = store.build("splits", INPUTS, write())
    again = store.build("splits", dict(reversed(INPUTS.items())), refuse)
    assert (first.reused, again.reused) == (False, True)
    assert (again.path, again.data_version) == (first.path, first.data_version)
    assert again.summary == first.summary == {"letters": 7}
    assert again.inputs == first.inputs == INPUTS
    assert first.path == store.root / "splits" / first.fingerprint
    assert first.file("sub/file.txt").read_text() == "content"


def test_other_inputs_are_another_artifact_and_equal_content_is_the_same_data_version(store):
    one = store.build("splits", INPUTS, write())
    other = store.build("splits", INPUTS | {"data": "def"}, write())
    changed = store.build("splits", INPUTS | {"data": "ghi"}, write("else"))
    assert len({one.fingerprint, other.fingerprint, changed.fingerprint}) == 3
    assert one.data_version == other.data_version != changed.data_version


def test_an_artifact_is_found_by_its_inputs(store):
    assert store.find("splits", INPUTS) is None
    made = store.build("splits", INPUTS, write())
    found = store.find("splits", INPUTS)
    assert found is not None and found.path == made.path and found.reused
    assert store.find("other", INPUTS) is None


def test_a_stage_that_fails_leaves_nothing(store):
    def fail_halfway(out: Path) -> dict[str, object]:
        (out / "half.txt").write_text("half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.build("splits", INPUTS, fail_halfway)
    assert names(store.root / "splits") == []
    assert store.find("splits", INPUTS) is None and store.newest("splits") is None


def test_what_a_killed_process_left_is_no_artifact(store):
    made = store.build("splits", INPUTS, write())
    shutil.copytree(made.path, store.root / "splits" / ".0123.abc.partial")
    shutil.rmtree(made.path)
    assert store.newest("splits") is None


def _make_and_be_killed(root: Path, ready: Any) -> None:
    def never_end(out: Path) -> dict[str, object]:
        (out / "half.txt").write_text("half")
        ready.set()
        time.sleep(600)
        return {}

    ArtifactStore(root).build("splits", {"other": 1}, never_end)


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_worked_on_stays(store, monkeypatch):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_make_and_be_killed, args=(store.root, ready))
    process.start()
    try:
        assert ready.wait(60)
        monkeypatch.setattr(artifacts, "_SECONDS_UNTIL_ABANDONED", 0)
        made = store.build("splits", INPUTS, write())
        assert len(names(store.root / "splits")) == 3, "the other is alive, and at work; it has its turn"
    finally:
        process.kill()
        process.join()
    store.build("splits", INPUTS, write(), fresh=True)
    assert names(store.root / "splits") == [made.fingerprint]


def test_a_full_disk_leaves_nothing(store, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(os, "fsync", fail)
        store.build("splits", INPUTS, write())
    assert names(store.root / "splits") == []


def test_a_summary_or_inputs_that_are_no_json_leave_nothing(store):
    with pytest.raises(TypeError):
        store.build("splits", INPUTS, lambda out: {"path": out})
    assert names(store.root / "splits") == []
    with pytest.raises(TypeError):
        store.build("splits", {"path": store.root}, write())


def test_a_fresh_artifact_takes_the_place_of_the_old_one(store):
    store.build("drift", INPUTS, write("old"))
    fresh = store.build("drift", INPUTS, write("new one"), fresh=True)
    assert fresh.file("sub/file.txt").read_text() == "new one"
    assert not fresh.reused and fresh.summary == {"letters": 7}
    assert names(store.root / "drift") == [fresh.fingerprint], "nothing of the old one stays"


def test_a_fresh_artifact_that_fails_leaves_the_old_one(store):
    old = store.build("drift", INPUTS, write("old"))
    with pytest.raises(AssertionError):
        store.build("drift", INPUTS, refuse, fresh=True)
    assert store.build("drift", INPUTS, refuse).data_version == old.data_version


def test_an_artifact_that_lost_a_file_or_its_receipt_is_made_anew(store):
    for hurt in (
        lambda path: (path / "other.txt").unlink(),
        lambda path: (path / "artifact.json").unlink(),
        lambda path: (path / "artifact.json").write_text('{"kind": '),
        lambda path: (path / "artifact.json").write_bytes(b"\xff\xfe"),
    ):
        hurt(store.build("splits", INPUTS, write()).path)
        assert store.find("splits", INPUTS) is None
        made = store.build("splits", INPUTS, write())
        assert not made.reused
        made.verify()
        assert names(store.root / "splits") == [made.fingerprint]


def test_the_newest_is_the_one_finished_last_and_whole(store):
    assert store.newest("splits") is None
    made: list[Artifact] = []
    for number in range(3):
        made.append(store.build("splits", {"number": number}, write()))
        os.utime(made[-1].path / "artifact.json", (number, number))

    def newest() -> str | None:
        found = store.newest("splits")
        return found.fingerprint if found else None

    assert newest() == made[2].fingerprint
    os.utime(made[0].path / "artifact.json", (9, 9))
    assert newest() == made[0].fingerprint
    (made[0].path / "other.txt").unlink()
    assert newest() == made[2].fingerprint


def change(path: Path) -> None:
    (path / "sub" / "file.txt").write_text("changed")


def add(path: Path) -> None:
    (path / "sub" / "added.txt").write_text("more")


def remove(path: Path) -> None:
    (path / "sub" / "file.txt").unlink()


@pytest.mark.parametrize(("meddle", "named"), [(change, "file.txt"), (add, "added.txt"), (remove, "file.txt")])
def test_verifying_names_the_file_that_was_changed(store, meddle, named):
    made = store.build("splits", INPUTS, write())
    made.verify()
    meddle(made.path)
    with pytest.raises(ValueError, match=f"was changed after it was finished .sub/{named}.; remove the folder"):
        made.verify()


def test_a_file_the_artifact_does_not_have_is_a_clear_error(store):
    made = store.build("splits", INPUTS, write())
    with pytest.raises(FileNotFoundError, match=r"splits/[0-9a-f]{16} has no file 'absent\.txt'"):
        made.file("absent.txt")


def test_others_may_read_what_a_stage_wrote_privately(store):
    def make(out: Path) -> dict[str, object]:
        (out / "sub").mkdir(mode=0o700)
        (out / "sub" / "weights").touch(mode=0o600)
        return {}

    made = store.build("model", INPUTS, make)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (made.path, *made.path.rglob("*"))}
    assert modes == {made.fingerprint: 0o755, "sub": 0o755, "weights": 0o644, "artifact.json": 0o644}


@contextlib.contextmanager
def no_turns(place: Path, name: str):
    yield False


def build_at_once(root: Path, name: str, fresh: bool, start, answers) -> None:
    def make(out: Path) -> dict[str, object]:
        start.wait(30)  # all are past looking whether it is there
        return write(name)(out)

    artifacts.in_turn = no_turns
    try:
        made = ArtifactStore(root).build("splits", INPUTS, make, fresh=fresh)
        made.verify() if not fresh else None
        answers.put((made.data_version, str(made.path), None))
    except BaseException as error:
        answers.put((None, None, repr(error)))


def build_slowly(root: Path, started, go_on) -> None:
    def make(out: Path) -> dict[str, object]:
        started.set()
        go_on.wait(30)
        return write("slow")(out)

    ArtifactStore(root).build("model", INPUTS, make)


def test_what_another_process_is_making_is_waited_for_and_taken(store, caplog):
    context = multiprocessing.get_context("spawn")
    started, go_on = context.Event(), context.Event()
    process = context.Process(target=build_slowly, args=(store.root, started, go_on))
    process.start()
    assert started.wait(30)
    threading.Timer(0.3, go_on.set).start()
    made = store.build("model", INPUTS, refuse)
    process.join()
    assert made.reused and made.summary == {"letters": 4}
    assert f"another process is making model/{made.fingerprint}: waiting for it" in caplog.text
    assert names(store.root / "model") == [made.fingerprint]


def test_when_the_other_process_is_killed_the_one_that_waits_makes_it(store):
    context = multiprocessing.get_context("spawn")
    started, go_on = context.Event(), context.Event()
    process = context.Process(target=build_slowly, args=(store.root, started, go_on))
    process.start()
    assert started.wait(30)
    threading.Timer(0.3, process.kill).start()
    assert store.build("model", INPUTS, write("own")).summary == {"letters": 3}
    process.join()


def build_alone(root: Path, at_work: Path, answers) -> None:
    """What is built fails; ``answers`` gets how many were at work at once."""

    def make(out: Path) -> dict[str, object]:
        with contextlib.ExitStack() as done:
            own = at_work / str(os.getpid())
            own.touch()
            done.callback(own.unlink)
            time.sleep(0.05)
            answers.put(len(list(at_work.iterdir())))
            raise ValueError("fails, so that the next one begins anew")

    for _ in range(4):
        with contextlib.suppress(ValueError):
            ArtifactStore(root).build("model", INPUTS, make)


def test_one_is_at_work_at_a_time_even_when_each_of_them_fails_and_others_come(store, tmp_path):
    at_work = tmp_path / "at_work"
    at_work.mkdir()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=build_alone, args=(store.root, at_work, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in range(12)] == [1] * 12
    for process in processes:
        process.join()
    assert names(store.root / "model") == []


@pytest.mark.parametrize("fresh", [False, True])
def test_processes_that_come_in_at_once_leave_one_complete_artifact(store, fresh):
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(3), context.Queue()
    arguments = [(store.root, f"content {number}", fresh, start, answers) for number in range(3)]
    processes = [context.Process(target=build_at_once, args=some) for some in arguments]
    for process in processes:
        process.start()
    said = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [error for _, _, error in said] == [None] * 3
    found = store.find("splits", INPUTS)
    assert found is not None
    found.verify()
    assert names(store.root / "splits") == [found.fingerprint]
    assert {path for _, path, _ in said} == {str(found.path)}
    if not fresh:
        assert {version for version, _, _ in said} == {found.data_version}, "the first to finish stays"


def test_one_that_was_built_meanwhile_is_kept_because_it_may_be_in_use(store, monkeypatch):
    monkeypatch.setattr(artifacts, "in_turn", no_turns)

    def make(out: Path) -> dict[str, object]:
        store.build("splits", INPUTS, write("first"))
        return write("second")(out)

    made = store.build("splits", INPUTS, make)
    assert made.file("sub/file.txt").read_text() == "first"
    assert json.loads((made.path / "artifact.json").read_text())["summary"] == {"letters": 5}
    assert names(store.root / "splits") == [made.fingerprint]
