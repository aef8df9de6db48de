"""A run that was killed, wherever, ends as the run that was not: the same bits, in everything that it keeps.

A run is a fork that is killed by SIGKILL: no interpreter is started anew and torch is not imported again, so a kill
costs little and there can be many. What is compared is SHA-256 over the weights, their average, the optimizer's moments
and the best weights so far, as the last checkpoint has them.
"""

import hashlib
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.compilation import Compiling, can_compile
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.own_process import TrainingProcessDied, run_in_own_process
from genai_assets.diffusion.training import StepReport, train
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets_tests.diffusion.conftest import fresh

STEPS = 30
SAMPLE = (1, 3, 16, 30)


def make_config(method: str = "full", **changes: Any) -> TrainingConfig:
    """Checkpoints, validations and the best of them at different steps, so that kills fall between all of them."""
    plan = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 5, "decay_share": 0.3}
    plan |= {"method": method, "checkpoint_every": 3, "validate_every": 4, "keep": "best"}
    return TrainingConfig.model_validate(plan | changes)


def train_in(
    folder: Path, family: Family, cache: TrainingCache, config: TrainingConfig, **more: Any
) -> dict[str, torch.Tensor]:
    result = train(
        family,
        cache,
        config,
        training_rows=cache.select("train"),
        validation_rows=cache.select("validation"),
        device=torch.device("cpu"),
        checkpoints=CheckpointFolder(folder),
        **more,
    )
    return result.denoiser.state_dict()


def in_a_fork(work: Callable[[], object]) -> int:
    """Exit code of a fork that does the work: 0, or minus the signal that killed it."""
    with warnings.catch_warnings():
        # From Python 3.12 on; the child takes no lock that another thread may hold.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(step: int) -> Callable[[StepReport], None]:
    return lambda report: die() if report.step == step else None


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what the newest checkpoint keeps, by kind."""
    found = CheckpointFolder(folder).newest_valid()
    assert found is not None
    step, tensors, facts = found
    hashes = {"weights": hashlib.sha256(), "average": hashlib.sha256(), "optimizer": hashlib.sha256()}
    for name in sorted(tensors):
        kind = hashes.setdefault(name.split(".")[0], hashlib.sha256())
        kind.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        kind.update(tensors[name].numpy().tobytes())
    figures = {name: facts[name] for name in facts if name != "seconds"}
    return {"step": str(step), "figures": str(figures)} | {name: kind.hexdigest() for name, kind in hashes.items()}


@pytest.fixture(scope="module")
def base_family(tiny_pipeline: Any) -> Family:
    return family_of(tiny_pipeline)


@pytest.fixture(scope="module")
def untouched(
    base_family: Family, cache: TrainingCache, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """What runs leave that nothing interrupted, by method."""
    left = {}
    for method in ("full", "lora"):
        folder = tmp_path_factory.mktemp(f"untouched-{method}")
        train_in(folder, fresh(base_family), cache, make_config(method))
        left[method] = digests(folder)
        assert left[method].keys() == {"step", "figures", "weights", "average", "optimizer", "best"}
    return left


def test_what_is_compared_tells_runs_apart(base_family, cache, untouched, tmp_path):
    """So that the tests below can fail: one more step, or another seed, is another end."""
    train_in(tmp_path, fresh(base_family), cache, make_config(seed=1))
    other = digests(tmp_path)
    assert other["step"] == untouched["full"]["step"]
    assert all(other[kind] != untouched["full"][kind] for kind in ("weights", "average", "optimizer", "best"))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "steps", [SAMPLE, pytest.param(range(1, STEPS + 1), marks=pytest.mark.slow)], ids=["some steps", "every step"]
)
def test_a_run_killed_after_a_step_ends_as_if_it_had_not_been(base_family, cache, untouched, tmp_path, method, steps):
    config = make_config(method)
    for step in steps:
        folder = tmp_path / str(step)
        run = partial(train_in, folder, fresh(base_family), cache, config)
        assert in_a_fork(partial(run, on_step=die_after(step))) == -signal.SIGKILL
        assert in_a_fork(run) == 0
        assert digests(folder) == untouched[method], f"killed after step {step}"


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_killed_at_every_step_that_it_reaches_ends_as_if_it_had_not_been(
    base_family, cache, untouched, tmp_path, method
):
    """One run, killed thirty times: it never gets further than one step."""
    run = partial(train_in, tmp_path, fresh(base_family), cache, make_config(method, checkpoint_every=1))
    for step in range(1, STEPS + 1):
        assert in_a_fork(partial(run, on_step=die_after(step))) == -signal.SIGKILL, f"step {step} was not reached"
        found = CheckpointFolder(tmp_path).newest_valid()
        assert found is not None and found[0] == step
    assert in_a_fork(run) == 0
    ours, theirs = digests(tmp_path), untouched[method]
    differing = [name for name in ours if ours[name] != theirs[name]]
    assert differing == ["figures"], "only the config, which says how often checkpoints are written"


def die_at_operation(number: int, once: Path, log: Path) -> None:
    """Be killed before the Nth thing done to files once ``once`` exists; or in the middle of writing the state."""
    names: list[str] = []

    def tell(name: str) -> None:
        if once.exists():
            names.append(name)
            if len(names) == number:
                log.write_text(name)
                die()

    def watch(module: Any, name: str, also: Callable[..., None] = lambda *_: None) -> None:
        real = getattr(module, name)

        def call(*given: Any, **more: Any) -> Any:
            tell(name)
            result = real(*given, **more)
            also(*given)
            return result

        setattr(module, name, call)

    def write_half(_: object, file: Path) -> None:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        tell("half a file")
        file.write_bytes(whole)

    for name in ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir"):
        watch(os, name)
    watch(safetensors.torch, "save_file", write_half)


def test_a_run_killed_anywhere_in_writing_a_checkpoint_ends_as_if_it_had_not_been(base_family, cache, tmp_path):
    """Before each thing that is done to files while the checkpoint of step 6 is written and that of step 2 dropped."""
    run = partial(train_in, family=fresh(base_family), cache=cache, config=make_config(steps=8, checkpoint_every=2))
    before, whole, log = tmp_path / "before", tmp_path / "whole", tmp_path / "log"
    assert in_a_fork(partial(run, before, on_step=die_after(5))) == -signal.SIGKILL
    run(whole, family=fresh(base_family))

    def run_and_die(folder: Path, number: int) -> None:
        die_at_operation(number, folder / "step-00000004", log)
        run(folder, on_step=lambda report: os._exit(0) if report.step == 7 else None)

    died: list[str] = []
    while True:
        folder = tmp_path / f"killed-{len(died)}"
        shutil.copytree(before, folder)
        end = in_a_fork(partial(run_and_die, folder, len(died) + 1))
        if end == 0:
            break
        assert end == -signal.SIGKILL
        died.append(log.read_text())
        assert in_a_fork(partial(run, folder)) == 0
        assert digests(folder) == digests(whole), f"killed before {died}"
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000006", "step-00000008"]
    assert {"mkdir", "save_file", "half a file", "replace", "fsync", "rename", "unlink", "rmdir"} == set(died)


# Compiled


def train_compiled(
    on_step: Callable[[StepReport], None],
    *,
    base: Path,
    cache: Path,
    folder: Path,
    code: Path,
    what: Compiling,
    dies_after: int | None = None,
) -> dict[str, Any]:
    torch.set_num_threads(1)
    reports: list[float] = []

    def report(step: StepReport) -> None:
        reports.append(step.loss)
        if step.step == dies_after:
            die()

    family, config = family_of(load_pipeline(base)), make_config(steps=6, checkpoint_every=2, batch_size=4)
    learner = Learner(family, config, torch.device("cpu"), compiled=what, compiled_code=code)
    train_in(folder, family, TrainingCache.open(cache), config, on_step=report, learner=learner)
    return {"losses": reports}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_compile(), reason="this machine has no C++ compiler or no headers of Python")
@pytest.mark.parametrize("what", ["blocks", "whole"])
def test_a_compiled_run_killed_after_a_step_ends_as_if_it_had_not_been(
    what, tiny_base, cache_folder, tmp_path, monkeypatch
):
    """Three processes: one does it all, one is killed after step 3, and one goes on from step 2."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))  # for the second and third to start at once
    work = partial(
        run_in_own_process,
        train_compiled,
        on_step=None,
        base=tiny_base,
        cache=cache_folder,
        code=tmp_path / "code",
        what=what,
    )
    whole = work(folder=tmp_path / "whole")
    with pytest.raises(TrainingProcessDied, match="exit code -9"):
        work(folder=tmp_path / "killed", dies_after=3)
    again = work(folder=tmp_path / "killed")
    assert any((tmp_path / "code").rglob("*.so")), "it was compiled"
    assert again["losses"] == whole["losses"][2:]
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
