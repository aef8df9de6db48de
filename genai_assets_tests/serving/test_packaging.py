"""From a model folder to a Bento that draws; what was acknowledged survives a killed service."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.serving import packaging
from genai_assets.serving.client import ServiceClient, ServiceError
from genai_assets.serving.packaging import (
    BentoInfo,
    ServiceFailed,
    SmokeResult,
    build_bento,
    running_service,
    smoke_test,
)
from genai_assets.serving.request_log import RequestLog
from genai_assets_tests.serving.tiny_service import STUDENT, VERSION, make_settings

ROOT = Path(__file__).parents[2]

pytest_plugins = ["genai_assets_tests.serving.tiny_service"]


def service_processes(url: str) -> list[psutil.Process]:
    port = url.rpartition(":")[2]
    leaders = [child for child in psutil.Process().children() if port in child.cmdline()]
    return [process for leader in leaders for process in (leader, *leader.children(recursive=True))]


def test_a_bento_is_built_once_and_draws(model_folder: Path, tmp_path: Path):
    settings = make_settings(tmp_path)
    bento = build_bento(model_folder, VERSION, settings)
    again = build_bento(model_folder, VERSION, settings)
    assert again.reused and not bento.reused and (again.tag, again.path) == (bento.tag, bento.path)
    assert bento.tag.startswith(f"image_generation_service:{VERSION}-") and bento.size > 1_000_000
    packed = {path.relative_to(bento.path / "src").as_posix() for path in (bento.path / "src").rglob("*.*")}
    assert "genai_assets/serving/service.py" in packed and "genai_assets/ui/page.html" in packed
    assert not [name for name in packed if "tests" in name or "embedded_base" in name or name.endswith(".pyc")]
    assert "torch==" in (bento.path / "env" / "python" / "requirements.txt").read_text()
    assert not list(settings.paths.bentoml.glob(".building.*"))

    tried = smoke_test(bento, settings, "a slice of pizza")
    assert (tried.width, tried.height, tried.model_version) == (64, 64, VERSION) and tried.latency_ms > 0
    with RequestLog(settings.database_url) as log:
        assert log.requests().empty  # nobody asked for it, so it is no traffic


def test_a_bento_brings_the_student_of_its_model(model_folder: Path, student_folder: Path, tmp_path: Path):
    settings = make_settings(tmp_path)
    alone, both = (build_bento(model_folder, VERSION, settings, student) for student in (None, student_folder))
    assert alone.tag != both.tag
    with running_service(both, settings) as url, ServiceClient(url) as client:
        assert client.generate("a slice of pizza", quality="low").model_version == STUDENT
        assert client.generate("a slice of pizza").model_version == VERSION


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch) -> Path:
    """A checkout whose code may be changed."""
    checkout = tmp_path / "checkout"
    shutil.copytree(packaging._PACKAGE, checkout / "genai_assets", ignore=shutil.ignore_patterns("embedded_base"))
    for name in ("bentofile.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout / name)
    monkeypatch.setattr(packaging, "_PACKAGE", checkout / "genai_assets")
    return checkout


@pytest.mark.parametrize("changed", ["genai_assets/serving/service.py", "genai_assets/ui/page.html", "constraints.txt"])
def test_the_service_is_packed_anew_when_what_goes_into_it_has_changed(
    model_folder: Path, own_code: Path, tmp_path: Path, monkeypatch, changed: str
):
    built: list[str] = []
    bento = tmp_path / "bento"

    def build(*_given: object) -> BentoInfo:
        built.append(packaging.code_version())
        bento.mkdir()
        return BentoInfo("service:1", bento, 1, VERSION)

    monkeypatch.setattr(packaging, "build_bento", build)
    monkeypatch.setattr(packaging, "smoke_test", lambda *_given: SmokeResult(1.0, "", 64, 64, VERSION, b"png"))
    settings, facts = make_settings(tmp_path), {"path": str(model_folder), "model_version": VERSION, "few_steps": None}
    champion = Artifact("champion_model", "f" * 16, "0" * 16, model_folder, facts)
    for times in (1, 1):
        stages.bento_service(settings, champion)
        assert len(built) == times
    text = (own_code / changed).read_text()
    (own_code / changed).write_text(
        text.replace("torch==", "torch==9.") if changed.endswith(".txt") else text + "\n#\n"
    )
    shutil.rmtree(own_code / "genai_assets" / "__pycache__", ignore_errors=True)  # compiled code is no change
    bento.rmdir()
    stages.bento_service(settings, champion)
    assert len(built) == len(set(built)) == 2
    bento.rmdir()  # lost
    stages.bento_service(settings, champion)
    assert len(built) == 3


def test_another_model_under_the_same_version_is_refused(model_folder: Path, tmp_path: Path):
    stored = tmp_path / "bentoml" / "models" / "genai_champion" / VERSION
    stored.mkdir(parents=True)
    (stored / "model.yaml").write_text("labels: {digest: another}\n")
    with pytest.raises(ValueError, match="holds another model of version"):
        build_bento(model_folder, VERSION, make_settings(tmp_path))
    with pytest.raises(ValueError, match="not 'v2'"):
        build_bento(model_folder, "v2", make_settings(tmp_path))


def test_what_was_acknowledged_is_there_after_kill_9(model_folder: Path, tmp_path: Path):
    settings = make_settings(tmp_path)
    with running_service(model_folder, settings) as url, ServiceClient(url) as client:
        processes = service_processes(url)
        assert len(processes) >= 2
        answer = client.generate("a lighthouse")
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)
        with pytest.raises(ServiceError, match="no answer"):
            client.generate("another")
    assert not service_processes(url)
    with RequestLog(settings.database_url) as log:
        assert list(log.requests()["id"]) == [answer.request_id]


@pytest.fixture
def ipv6() -> str:
    """The loopback address, where the machine has one."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"this machine speaks no IPv6: {error}")
    return "::1"


def test_a_service_on_an_ipv6_address_is_tried_at_that_address(model_folder: Path, tmp_path: Path, ipv6: str):
    assert smoke_test(model_folder, make_settings(tmp_path, host=ipv6), "a lighthouse").model_version == VERSION


def test_a_folder_that_is_no_model_is_not_even_started(tmp_path: Path):
    with (
        pytest.raises(ValueError, match=r"cannot be served: .*model\.json"),
        running_service(tmp_path, make_settings(tmp_path)),
    ):
        pass


def test_a_service_that_ends_at_once_shows_the_end_of_its_log(model_folder: Path, tmp_path: Path):
    settings = make_settings(tmp_path, host="no.such.host.invalid")
    with (
        pytest.raises(ServiceFailed, match=r"ended with code(.|\n)*Invalid host IP address"),
        running_service(model_folder, settings, port=1024),
    ):
        pass


def serving(starter: psutil.Process) -> list[psutil.Process]:
    """The processes of the service below the one that starts it."""
    found = []
    for process in starter.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("bentoml" in word or "genai_assets.serving" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_a_service_ends_with_the_process_that_started_it(model_folder: Path, tmp_path: Path):
    script = (
        "from pathlib import Path\n"
        "from genai_assets.serving.packaging import running_service\n"
        "from genai_assets_tests.serving.tiny_service import make_settings\n"
        f"with running_service(Path({str(model_folder)!r}), make_settings(Path({str(tmp_path)!r}))): pass\n"
    )
    starter = psutil.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.monotonic() + 60
    # Its imports start programs, too, which end at once.
    while not (left := serving(starter)) and time.monotonic() < deadline:
        time.sleep(0.1)
    starter.kill()
    starter.wait(10)
    gone, alive = psutil.wait_procs(left, timeout=30)
    assert gone and not alive


@pytest.mark.slow
def test_a_service_that_cannot_load_its_model_says_so_with_the_end_of_its_log(model_folder: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(model_folder / "model.json", broken)
    (broken / "model_index.json").write_text(json.dumps({"_class_name": "PRXPixelPipeline"}))
    with (
        pytest.raises(ServiceFailed, match=r"cannot load its model(.|\n)*Error"),
        running_service(broken, make_settings(tmp_path)),
    ):
        pass
