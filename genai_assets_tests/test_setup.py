"""The set-up script: pip's settings reach uv, an unchanged environment is left alone, errors say what to do."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from genai_assets import doctor

SCRIPT = Path(__file__).parent.parent / "tools" / "setup.py"


@pytest.fixture(scope="module")
def setup():
    spec = importlib.util.spec_from_file_location("tools_setup", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pips_settings_are_handed_on_to_uv(setup):
    listing = (
        ":env:.find-links='wheels more-wheels'\n"
        "global.cert='/certificates.pem'\n"
        "global.extra-index-url='\\nfirst\\nsecond'\n"
        "global.find-links='overruled'\n"
        "install.constraint='caps.txt'\n"
        "download.find-links='not for install'\n"
    )
    settings = setup.uv_settings(setup.parse_pip_config(listing), {})
    assert settings == {
        "UV_FIND_LINKS": "wheels,more-wheels",
        "SSL_CERT_FILE": "/certificates.pem",
        "UV_INDEX": "first second",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_CONSTRAINT": "caps.txt",
    }


def test_a_setting_made_for_uv_wins_over_pips(setup):
    assert setup.uv_settings({"find-links": "pips"}, {"UV_FIND_LINKS": "own"}) == {}


def a_project(root: Path) -> Path:
    (root / "tools").mkdir()
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "genai").write_text("")
    for name in ("pyproject.toml", "constraints.txt", "tools/setup.py"):
        (root / name).write_text(name)
    return root


def test_an_environment_is_up_to_date_until_a_file_it_was_made_from_changes(setup, tmp_path):
    root = a_project(tmp_path)
    assert not setup.is_set_up(root)
    setup._stamp(root).write_text(setup._fingerprint(root))
    assert setup.is_set_up(root)
    (root / "constraints.txt").write_text("torch==9")
    assert not setup.is_set_up(root)


def test_a_wrong_python_a_full_disk_and_no_network_are_said_plainly(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 1, "final", 0))
    with pytest.raises(setup.SetupFailed, match=r"3\.11 or 3\.12 is needed"):
        setup.set_up(tmp_path)
    monkeypatch.undo()

    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: setup.shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    with pytest.raises(setup.SetupFailed, match=r"1\.0 GB are free"):
        setup.set_up(tmp_path)
    monkeypatch.undo()

    said = "error: Failed to fetch: `wheel`\n  Caused by: dns error: failed to lookup address information"
    with pytest.raises(setup.SetupFailed, match="package index cannot be reached"):
        setup._must_run([sys.executable, "-c", f"import sys; sys.exit({said!r})"], {})
    assert not list(tmp_path.iterdir())


def test_the_doctor_looks_for_the_weights_that_set_up_installs(setup):
    assert setup.WEIGHT_PACKAGES == doctor.WEIGHT_PACKAGES


def test_the_script_runs_without_any_package():
    done = subprocess.run([sys.executable, "-I", "-S", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
