"""`genai up`: everything starts, follows the champion, and nothing is left when it ends, however it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from genai_assets import up
from genai_assets.registry.champion import ChampionPointer, ModelVersion
from genai_assets.serving.request_log import RequestEntry, RequestLog
from genai_assets.settings import DatasetSettings, PagesSettings, ServingSettings, Settings

pytest_plugins = ["genai_assets_tests.serving.tiny_service"]

# A program with a child, both of which take no notice of being asked to end.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" not in sys.argv:
    subprocess.Popen([sys.executable, "-m", "stubborn", "child"])
    print("a line for the log", flush=True)
time.sleep(600)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def start(tmp_path: Path, code: str) -> up.Child:
    (tmp_path / "stubborn.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    program = up.Program("Stubborn", "stubborn", [], "http://127.0.0.1:9", "/", environment, tmp_path)
    return up.Child(program, tmp_path / "stubborn.log")


def wait_for(what: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


def test_the_next_free_port_is_taken_when_the_wanted_one_is_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = taken.getsockname()[1]
        found = up.free_port("127.0.0.1", wanted)
        assert found > wanted
        assert up.free_port("127.0.0.1", wanted, taken=[found]) > found


def test_a_host_of_another_machine_is_told_with_the_settings_to_mend():
    with pytest.raises(ValueError, match=r"192\.0\.2\.1.*serving\.host"):
        up.free_port("192.0.2.1", 3111)


def test_the_programs_read_the_same_settings_from_an_absolute_home_and_phone_nobody(settings, monkeypatch):
    monkeypatch.setenv("GENAI_SERVING__PORT", "1")  # what this process read must not leak past the settings given
    settings = settings.model_copy(
        update={"dataset": DatasetSettings(limit=7), "serving": ServingSettings(port=4000, database_url=None)}
    )
    program = up.service(settings, settings.home / "model", 4000)
    told = {name: value for name, value in program.environment.items() if name.startswith("GENAI_")}
    with monkeypatch.context() as patched:
        patched.delenv("GENAI_SERVING__PORT")
        for name, value in told.items():
            patched.setenv(name, value)
        assert Settings() == settings
    assert Path(told["GENAI_HOME"]).is_absolute()
    for switch in ("DAGSTER_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK"):
        assert switch in program.environment


def test_the_service_logs_into_the_file_that_a_relative_url_means_here_and_not_below_its_own_folder(
    settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    serving = ServingSettings(database_url="sqlite:///requests.sqlite")
    program = up.service(settings.model_copy(update={"serving": serving}), tmp_path / "model", 4000)
    for name, value in program.environment.items():
        monkeypatch.setenv(name, value)
    program.folder.mkdir(parents=True)
    monkeypatch.chdir(program.folder)
    with RequestLog(Settings().database_url) as log:
        log.record_request(RequestEntry(prompt="a fox", n=1, size="64x64", seed=1, model_version="m", status=200))
    monkeypatch.chdir(tmp_path)
    with RequestLog(serving.database_url or "") as log:
        assert list(log.requests()["prompt"]) == ["a fox"]
    assert (tmp_path / "requests.sqlite").is_file()


def test_the_reports_are_served_where_every_other_program_is_told_they_are(settings):
    settings = settings.model_copy(update={"pages": PagesSettings(port=4113)})
    assert up.reports(settings).url == "http://127.0.0.1:4113"
    for program in (up.reports(settings), up.dagster(settings, 3000)):
        assert json.loads(program.environment["GENAI_PAGES"]) == {"port": 4113}


def test_the_reports_take_the_next_free_port_and_dagster_links_that(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = taken.getsockname()[1]
        settings = settings.model_copy(update={"pages": PagesSettings(port=wanted)})
        supervisor = up._Supervisor(settings, Console(quiet=True), up._Asked())
    chosen = supervisor.ports[up.REPORTS]
    assert chosen > wanted
    assert supervisor.settings.pages.port == chosen


def test_dagster_and_mlflow_listen_on_loopback_even_when_the_service_does_not(settings):
    settings = settings.model_copy(update={"serving": ServingSettings(host="0.0.0.0")})
    assert "127.0.0.1" in up.dagster(settings, 3000).arguments
    assert "127.0.0.1" in up.mlflow(settings, 5050).arguments
    service = up.service(settings, settings.home, 3111)
    assert "0.0.0.0" in service.arguments
    assert service.url == "http://127.0.0.1:3111"


def test_a_program_that_will_not_end_is_killed_with_all_it_started(tmp_path):
    child = start(tmp_path, STUBBORN)
    wait_for(lambda: len(child.family()) == 2)
    family = child.family()
    up.stop([child], hurry=lambda: False, seconds=0.5)
    assert not any(up._lives(process) for process in family)
    assert child.log_tail() == "a line for the log"


def test_a_program_whose_supervisor_is_killed_ends_too(tmp_path):
    child = start(tmp_path, "import time; time.sleep(600)")
    wait_for(lambda: child.family())
    assert child.process.stdin
    child.process.stdin.close()  # as the system does when we are killed
    assert child.process.wait(10) == -signal.SIGTERM


def test_a_program_that_is_deaf_to_the_polite_signal_is_ended_all_the_same(tmp_path):
    """A server that was just starting had lost it, and lived on without its supervisor."""
    child = start(tmp_path, STUBBORN)
    wait_for(lambda: len(child.family()) > 1)
    family = child.family()
    assert child.process.stdin
    child.process.stdin.close()
    assert child.process.wait(30) == -signal.SIGKILL
    assert not psutil.wait_procs(family, timeout=10)[1], "and what it had started, too"


def test_one_home_is_brought_up_once(settings):
    lock = settings.home / up.LOCK
    with up._only_one(lock), pytest.raises(up.AlreadyUp, match=rf"process {os.getpid()}"), up._only_one(lock):
        pass
    with up._only_one(settings.home / up.LOCK):
        pass


class Up:
    """A running `genai up` of a home."""

    def __init__(self, home: Path, folder: Path):
        self.output = folder / "up.txt"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GENAI_")}
        environment |= {"GENAI_HOME": str(home), "GENAI_SAMPLING__STEPS": "2", "GENAI_DEVICE": "cpu", "COLUMNS": "120"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "genai_assets", "up"],
                cwd=folder,
                env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def told(self) -> str:
        return self.output.read_text()

    def wait_until_told(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.told.count(text) >= times or self.process.poll() is not None, seconds=250)
        assert self.told.count(text) >= times, self.told

    def address(self, name: str) -> str:
        line = [line for line in self.told.splitlines() if f" {name} " in line and "http://" in line][-1]
        return next(word for word in line.split() if word.startswith("http://"))

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def running(settings, tmp_path, model_folder) -> Iterator[Up]:
    with ChampionPointer(settings.database_url) as pointer:
        pointer.promote(ModelVersion("tiny-0123456789abcdef", model_folder), expected_revision=0, reason="first")
    running = Up(settings.home, tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_four_answer_the_service_follows_the_champion_and_nothing_is_left(
    settings, running, tmp_path, model_folder
):
    running.wait_until_told("Ctrl-C stops all")
    paths = {"Dagster": "/server_info", "Service": "/v1/model", "MLflow": "/health", "Reports": "/ready"}
    for name, path in paths.items():
        assert httpx.get(running.address(name) + path, trust_env=False).status_code == 200
    assert (settings.paths.dagster / "dagster.yaml").is_file()

    challenger = shutil.copytree(model_folder, tmp_path / "challenger")
    facts = json.loads((challenger / "model.json").read_text()) | {"model_version": "tiny-challenger"}
    (challenger / "model.json").write_text(json.dumps(facts))
    with ChampionPointer(settings.database_url) as pointer:
        pointer.promote(ModelVersion("tiny-challenger", challenger), expected_revision=1, reason="better")
    running.wait_until_told("Ctrl-C stops all", times=2)
    said = httpx.get(running.address("Service") + "/v1/model", trust_env=False).json()
    assert said["model_version"] == "tiny-challenger"

    family = running.family()
    assert len(family) >= 5
    started = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0
    assert time.monotonic() - started < 15
    assert not any(up._lives(process) for process in family)
    assert running.told.rstrip().endswith("All stopped.")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_when_one_dies_its_log_is_shown_and_the_others_are_stopped(running):
    running.wait_until_told("Starting Service")
    wait_for(lambda: len(running.family()) >= 3)
    [mlflow] = [process for process in running.family() if "mlflow" in process.cmdline()]
    family = running.family()
    mlflow.kill()
    assert running.process.wait(60) == 1
    assert "MLflow ended by itself with code -9" in running.told
    assert "mlflow.log" in running.told
    assert not any(up._lives(process) for process in family)
