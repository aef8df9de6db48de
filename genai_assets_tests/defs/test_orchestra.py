"""What a job's console tells, and what becomes of runs that were killed."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from rich.console import Console

from genai_assets.defs.abandoned_runs import PROCESS_TAG, end_abandoned_runs, own_process
from genai_assets.defs.orchestra import _Teller
from genai_assets.settings import Settings
from genai_assets.up import copy_instance_settings


@pytest.mark.parametrize("said", ["read [/data/x]", "read /data/[icons]/a.png", "[bold]"])
def test_brackets_in_what_an_asset_says_are_no_markup(said: str):
    written = io.StringIO()
    record = logging.LogRecord("story", logging.INFO, "", 0, said, None, None)
    record.dagster_meta = {"step_key": "raw_data", "orig_message": said}
    _Teller(Console(file=written, width=200)).handle(record)
    assert written.getvalue().split(maxsplit=1) == ["raw_data", f"{said}\n"]


IN_A_POOL = """
import os, sys, dagster as dg
from pathlib import Path
from genai_assets.defs.abandoned_runs import PROCESS_TAG, own_process

@dg.asset(pool="gpu")
def trained() -> None:
    print("at work", flush=True)
    sys.stdin.read()

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    dg.materialize([trained], instance=instance, tags={PROCESS_TAG: own_process()})
"""


@dg.asset(pool="gpu")
def trained() -> None:
    """In the same pool."""


def test_the_place_of_a_killed_training_is_free_again_and_that_of_a_living_one_is_not(tmp_path: Path):
    home = copy_instance_settings(Settings(home=tmp_path / "home"))
    child = subprocess.Popen(
        [sys.executable, "-c", IN_A_POOL, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin and child.stdout
    try:
        assert child.stdout.readline() == "at work\n"
        with dg.DagsterInstance.from_config(str(home)) as instance:
            assert end_abandoned_runs(instance) == [], "it is alive"
            child.kill()
            child.wait()
            [killed] = end_abandoned_runs(instance)
            run = instance.get_run_by_id(killed)
            assert run is not None and run.status == dg.DagsterRunStatus.FAILURE
            assert dg.materialize([trained], instance=instance).success, "it does not wait"
            assert end_abandoned_runs(instance) == []
    finally:
        child.kill()
        child.stdin.close()
        child.stdout.close()
        child.wait()


@pytest.mark.parametrize("tags", [{}, {PROCESS_TAG: "another-host 1 1.00"}])
def test_a_run_of_which_nothing_can_be_known_is_left_alone(tags: dict[str, str]):
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_run(dg.DagsterRun("trained", status=dg.DagsterRunStatus.STARTED, tags=tags))
        assert end_abandoned_runs(instance) == []


def test_a_number_that_another_process_has_by_now_is_a_process_that_is_gone():
    host, number, _ = own_process().rsplit(" ", 2)
    with dg.DagsterInstance.ephemeral() as instance:
        tags = {PROCESS_TAG: f"{host} {number} 1.00"}
        run = instance.add_run(dg.DagsterRun("trained", status=dg.DagsterRunStatus.STARTED, tags=tags))
        assert end_abandoned_runs(instance) == [run.run_id]
