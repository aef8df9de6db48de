"""`genai models`: what the tables say, what `show` tells people to run, and when `check` says no."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from genai_assets.cli_models import models
from genai_assets.diffusion.base_model import EMBEDDED_FOLDER
from genai_assets.diffusion.catalogue import catalogue


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch) -> Path:
    """A folder with settings of our own, and a wide terminal."""
    for name in [name for name in os.environ if name.startswith("GENAI_") and name != "GENAI_TEST_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "240")
    (tmp_path / "genai.toml").write_text('home = "home"\ndevice = "cpu"\n')
    return tmp_path


def run(*arguments: str, status: int = 0) -> str:
    """Run a command; what it printed."""
    done = CliRunner().invoke(models, list(arguments))
    assert done.exit_code == status, done.output + repr(done.exception)
    return done.output


def test_list_has_a_line_for_every_model_and_marks_what_the_policy_refuses(working_folder):
    lines = run("list").splitlines()
    rows = {entry.name: next(line for line in lines if f" {entry.name} " in line) for entry in catalogue()}
    assert "(refused)" in rows["flux.1-dev"] and "(refused)" not in rows["flux.1-schnell"]
    assert "11.9 B" in rows["flux.1-dev"] and "19 M" in rows["embedded"]
    assert not (working_folder / "home").exists()


def test_show_tells_the_obligations_how_to_get_it_and_what_to_set():
    told = run("show", "black-forest-labs/FLUX.1-dev")
    assert "Non-commercial" in told and "By your settings it is refused" in told
    assert "hf auth login" in told and "hf download black-forest-labs/FLUX.1-dev --local-dir models/flux.1-dev" in told
    assert 'base_model = "models/flux.1-dev"' in told
    assert "hf auth login" not in run("show", "qwen-image")


def test_show_says_which_facts_are_not_confirmed():
    assert "denoiser parameters" in run("show", "ssd-1b").partition("not confirmed")[2]
    assert "not confirmed" not in run("show", "embedded")


def test_a_name_that_is_not_known_is_told_with_those_that_are():
    done = CliRunner().invoke(models, ["show", "no-such-model"])
    assert isinstance(done.exception, ValueError)
    assert "no-such-model" in str(done.exception) and "stable-diffusion-xl" in str(done.exception)


def test_check_looks_at_the_model_of_the_settings():
    told = run("check")
    assert "embedded can be trained here" in told and "apache-2.0" in told


def test_check_ends_with_two_when_something_rules_the_training_out():
    told = run("check", "flux.1-dev", status=2)
    assert "flux.1-dev cannot be trained here as the settings are: licence" in told
    assert "fine_tune.allowed_base_licences" in told


def test_check_of_a_folder_reads_the_folder_and_follows_the_settings(working_folder):
    shutil.copytree(EMBEDDED_FOLDER, working_folder / "mine")
    assert "mine can be trained here" in run("check", "mine")
    (working_folder / "mine" / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    assert "GPL-3.0-only is not allowed" in run("check", "mine", status=2)
    (working_folder / "mine" / "README.md").unlink()
    assert "not known" in run("check", "mine")
    with (working_folder / "genai.toml").open("a") as file:
        file.write("[fine_tune]\nresolution = 72\nbatch_size = 100000\n")
    told = run("check", "mine", status=2)
    assert "memory" in told.splitlines()[-1] and "micro_batch_size" in told


def test_check_of_a_folder_that_is_not_there_says_so():
    assert "nowhere" in run("check", "nowhere", status=2)
