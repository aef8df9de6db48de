"""Several processes, or several parts of a batch, train the model that one process trains on the whole batch.

Most runs here are forks that join one gloo group: importing torch anew takes longer than all of the training. That the
stock command, ``accelerate launch``, does the same, and how a killed process ends its run, is shown by slow tests.

How close is close? Sums over a batch are taken in another order, so gradients differ by rounding: 1e-7 of a number in
float32; 2^-9 where large products, and so the gradients of weights, are rounded to bf16. Adam divides a gradient by its
size, so that even the small ones, which have lost the most, move weights. Measured is the length of the difference of
all weights over the length of the way that training moved them. After 6 steps up to 4e-5 was seen in float32, up to
0.015 with bf16 products; four times as much is let pass. Gradients of half the size would give 0.01 or more.
"""

import contextlib
import os
import shutil
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from genai_assets.diffusion import training
from genai_assets.diffusion.base_model import load_pipeline
from genai_assets.diffusion.checkpoints import CheckpointFolder
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.own_process import TrainingProcessDied, run_in_own_process
from genai_assets.diffusion.training import StepReport, train
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets_tests.diffusion.conftest import fresh

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]
STEPS = 6
CLOSE = {"fp32": 2e-4, "bf16": 0.06}
# Adam forgets how large a gradient is, but for the steps where it is clipped: here some are, and some are not.
CLIP = {"full": 5.0, "lora": 0.7}


def make_config(method: str = "full", **changes: Any) -> TrainingConfig:
    plan = {"steps": STEPS, "batch_size": 6, "learning_rate": 1e-3, "warmup_steps": 2, "gradient_clip": CLIP[method]}
    plan |= {"method": method, "checkpoint_every": 2, "validate_every": 3}
    return TrainingConfig.model_validate(plan | changes)


def weights_after(family: Family, cache: TrainingCache, config: TrainingConfig, **more: Any) -> Weights:
    """The denoiser's weights after a run, and the last loss with them."""
    result = train(
        family,
        cache,
        config,
        training_rows=cache.select("train"),
        validation_rows=cache.select("validation"),
        device=CPU,
        **more,
    )
    weights = {name: value.contiguous() for name, value in result.denoiser.state_dict().items()}
    return weights | {"loss": torch.tensor(result.final_loss, dtype=torch.float64)}


def in_processes(count: int, folder: Path, work: Callable[[int], Weights]) -> list[Weights]:
    """What ``work(rank)`` returns in each of so many forks, which form one gloo group as under a launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = set()
    for rank in range(count):
        with warnings.catch_warnings():
            # From Python 3.12 on; the child takes no lock that another thread may hold.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                join_group(rank, count, port)
                save_file(work(rank), folder / f"rank-{rank}.safetensors")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.add(child)
    try:
        while children:
            time.sleep(0.01)
            for child in list(children):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    children.remove(child)
                    assert os.waitstatus_to_exitcode(status) == 0
    finally:
        for child in children:  # would wait for the one that failed
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(count)]


def join_group(rank: int, count: int, port: int) -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)  # of this process before the fork
    GradientState._reset_state()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")


def way_between(one: Weights, other: Weights) -> float:
    """Length of the difference of all weights."""
    assert one.keys() == other.keys()
    names = one.keys() - {"loss"}
    return float(sum((one[name].double() - other[name].double()).square().sum() for name in names)) ** 0.5


def assert_close(one: Weights, other: Weights, base: Family, arithmetic: str = "bf16") -> None:
    moved = way_between(one, base.denoiser.state_dict() | {"loss": one["loss"]})
    assert way_between(one, other) < CLOSE[arithmetic] * moved
    assert other["loss"].item() == pytest.approx(one["loss"].item(), rel=CLOSE[arithmetic])


TWO, THREE, IN_PARTS = {"processes": 2}, {"processes": 3, "batch_size": 7}, {"micro_batch_size": 2}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("arithmetic", "changes"),
    [("fp32", TWO), ("fp32", THREE), ("fp32", IN_PARTS), ("fp32", TWO | IN_PARTS), ("bf16", TWO | IN_PARTS)],
    ids=["two", "three unequal ones", "one in parts", "two in parts", "two in parts, bf16"],
)
def test_parts_of_each_batch_train_the_model_that_the_whole_trains(
    tiny_family, cache, tmp_path, monkeypatch, method, arithmetic, changes
):
    """In float32 it is shown that the mathematics is the same; in bf16 it is as it runs."""
    if arithmetic == "fp32":
        monkeypatch.setattr(training, "mixed_precision", lambda device: contextlib.nullcontext())
    processes = changes.get("processes", 1)
    config = make_config(method, **{name: value for name, value in changes.items() if name != "processes"})
    whole = weights_after(fresh(tiny_family), cache, config.model_copy(update={"micro_batch_size": None}))
    many = in_processes(processes, tmp_path, lambda rank: weights_after(fresh(tiny_family), cache, config))
    assert_close(whole, many[0], tiny_family, arithmetic)
    for other in many[1:]:
        assert way_between(many[0], other) == 0, "all processes end with the very same weights"


def test_another_order_of_pictures_is_not_close(tiny_family, cache):
    """So that the tests before can fail."""
    one, other = (weights_after(fresh(tiny_family), cache, make_config(seed=seed)) for seed in (0, 1))
    with pytest.raises(AssertionError):
        assert_close(one, other, tiny_family)


def test_a_checkpoint_of_two_processes_is_gone_on_from_by_two_and_by_one(tiny_family, cache, tmp_path):
    config, run = make_config(), tmp_path / "run"

    def copy_after_four(report: StepReport) -> None:
        if report.step == 4:
            for name in ("two", "one"):
                shutil.copytree(run, tmp_path / name)

    def go_on(place: Path, **more: Any) -> Weights:
        return weights_after(fresh(tiny_family), cache, config, checkpoints=CheckpointFolder(place), **more)

    whole = in_processes(2, tmp_path, lambda rank: go_on(run, on_step=copy_after_four))
    assert sorted(path.name for path in run.iterdir()) == ["step-00000004", "step-00000006"], "one process writes"
    again = in_processes(2, tmp_path, lambda rank: go_on(tmp_path / "two"))
    for weights in again:
        assert way_between(whole[0], weights) == 0, "by as many processes, bit for bit"
    reports: list[StepReport] = []
    assert_close(whole[0], go_on(tmp_path / "one", on_step=reports.append), tiny_family)
    assert [report.step for report in reports] == [5, 6]


def test_a_checkpoint_of_one_process_is_gone_on_from_by_two(tiny_family, cache, tmp_path):
    config = make_config()
    whole = weights_after(fresh(tiny_family), cache, config)
    stops = iter([False, False, False, True])
    checkpoints = CheckpointFolder(tmp_path / "run")
    weights_after(fresh(tiny_family), cache, config, checkpoints=checkpoints, stop=lambda: next(stops))
    two = in_processes(
        2, tmp_path, lambda rank: weights_after(fresh(tiny_family), cache, config, checkpoints=checkpoints)
    )
    assert_close(whole, two[0], tiny_family)


@pytest.mark.timeout(100)
def test_a_process_that_comes_late_does_not_take_the_first_checkpoint_for_an_earlier_run(
    tiny_family, cache, tmp_path, monkeypatch
):
    config = make_config(validate_every=0)
    look = CheckpointFolder.newest_valid

    def look_late(checkpoints: CheckpointFolder) -> Any:
        time.sleep(1.5 * int(os.environ["RANK"]))
        return look(checkpoints)

    monkeypatch.setattr(CheckpointFolder, "newest_valid", look_late)
    checkpoints = CheckpointFolder(tmp_path / "run")
    two = in_processes(
        2, tmp_path, lambda rank: weights_after(fresh(tiny_family), cache, config, checkpoints=checkpoints)
    )
    assert way_between(*two) == 0


def test_more_processes_than_pictures_in_a_batch_are_a_clear_error(tiny_family, cache, tmp_path, capfd):
    config = make_config(batch_size=1)
    with pytest.raises(AssertionError):
        in_processes(2, tmp_path, lambda rank: weights_after(fresh(tiny_family), cache, config))
    assert "a batch of 1 cannot be shared by 2 processes: raise batch_size" in capfd.readouterr().err


# The stock command


def train_tiny(
    on_step: Callable[[StepReport], None], *, base: Path, cache: Path, folder: Path, dies_after: int | None = None
) -> dict[str, Any]:
    """What each launched process does; the second one dies after so many steps, if it is to."""
    torch.set_num_threads(1)
    rank, steps = int(os.environ["RANK"]), iter(range(1, STEPS + 1))
    (folder / f"process-{rank}").write_text(str(os.getpid()))

    def die() -> bool:
        if next(steps) == dies_after and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    weights = weights_after(
        family_of(load_pipeline(base)),
        TrainingCache.open(cache),
        make_config(),
        checkpoints=CheckpointFolder(folder / "run"),
        on_step=on_step,
        stop=die,
    )
    save_file(weights, folder / f"launched-{rank}.safetensors")
    return {"rank": rank, "processes": int(os.environ["WORLD_SIZE"])}


@pytest.mark.slow
def test_accelerate_launch_trains_what_forks_train_and_goes_on_after_one_was_killed(
    tiny_base, tiny_family, cache_folder, cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = {"base": tiny_base, "cache": cache_folder, "folder": tmp_path}
    reports: list[StepReport] = []
    with pytest.raises(TrainingProcessDied, match=r"training process 2 of 2 ended with exit code -9 .* goes on from"):
        run_in_own_process(train_tiny, on_step=reports.append, processes=2, **given, dies_after=5)
    assert reports and reports[-1].step in (4, 5)
    for rank in (0, 1):
        assert not psutil.pid_exists(int((tmp_path / f"process-{rank}").read_text()))
    left = CheckpointFolder(tmp_path / "run").newest_valid()
    assert left is not None and left[0] == 4

    reports.clear()
    result = run_in_own_process(train_tiny, on_step=reports.append, processes=2, **given)
    assert result == {"rank": 0, "processes": 2}
    assert [report.step for report in reports] == [5, 6]
    forks = in_processes(2, tmp_path, lambda rank: weights_after(fresh(tiny_family), cache, make_config()))
    for rank in (0, 1):
        launched = load_file(tmp_path / f"launched-{rank}.safetensors")
        assert way_between(forks[rank], launched) == 0
