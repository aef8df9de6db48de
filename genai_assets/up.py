"""Everything a person looks at, started together: Dagster with its daemon, the image service, MLflow, the reports.

Belongs here: starting these programs as processes, waiting until they answer, and ending all of them whatever happens.
None of their libraries is imported. What they show and do belongs to ``defs``, ``serving``, ``registry`` and ``pages``.

The service follows the champion pointer: when another model becomes champion, the service is stopped and started again
with it (for some seconds nothing listens; a swap that drops no request is the service's own, later, affair). Without a
champion there is no service yet; it is started when there is one.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil

from genai_assets import durable, pages
from genai_assets.child_process import environment_of, start_module
from genai_assets.loopback import LOOPBACK, reachable
from genai_assets.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from genai_assets.registry.champion import Champion

DAGSTER_PORT = 3000
MLFLOW_PORT = 5050  # MLflow's own 5000 is taken by AirPlay on macOS
START_SECONDS = 240.0  # a busy laptop: Dagster alone imports for most of a minute then
STOP_SECONDS = 12.0
CHAMPION_SECONDS = 3.0
LOCK = "up.lock"
DAGSTER, SERVICE, MLFLOW, REPORTS = "Dagster", "Service", "MLflow", "Reports"

_ROOT = Path(__file__).parents[1]
_TICK = 0.25

_PORTS_TRIED = 100


class AlreadyUp(RuntimeError):
    """The programs run already in this home; two Dagster daemons on one home would start every run twice."""


@dataclass(frozen=True)
class Program:
    """A program to start.

    Attributes:
        name: for people; in small letters the name of its log file.
        module: what ``python -m`` is to run.
        arguments: handed to it; no shell is involved.
        url: where people open it.
        ready_path: answers with 200 once the program can be used.
        health_path: answers with 503 when it never will be; empty when it has no such place.
        environment: all variables of the process.
        folder: its working folder.
    """

    name: str
    module: str
    arguments: Sequence[str]
    url: str
    ready_path: str
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    health_path: str = ""


class Child:
    """A started program, and all that it starts in its turn.

    Args:
        program: what to start.
        log_path: gets everything it prints; appended to.
    """

    def __init__(self, program: Program, log_path: Path):
        self.program = program
        self.log_path = log_path
        self.started = time.monotonic()
        with log_path.open("ab") as output:
            self.process = start_module(
                program.module,
                program.arguments,
                folder=program.folder,
                environment=program.environment,
                output=output,
            )

    @property
    def has_ended(self) -> bool:
        """Whether the program itself, not only something it started, is gone."""
        return self.process.poll() is not None

    def answers(self, http: httpx.Client) -> bool:
        """Whether it says over HTTP that it is ready."""
        return self._status(http, self.program.ready_path) == 200

    def has_failed(self, http: httpx.Client) -> bool:
        """Whether it ended, or says that it will never be ready."""
        return self.has_ended or (
            bool(self.program.health_path) and self._status(http, self.program.health_path) == 503
        )

    def _status(self, http: httpx.Client, path: str) -> int:
        try:
            return http.get(self.program.url + path).status_code
        except httpx.TransportError:  # not listening yet
            return 0

    def family(self) -> set[psutil.Process]:
        """Every process of it that lives: itself, what it started, and what lost its parent but is in its session."""
        found = set(_session(self.process.pid))
        if not self.has_ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                leader = psutil.Process(self.process.pid)
                found |= {leader, *leader.children(recursive=True)}
        return {process for process in found if _lives(process)}

    def log_tail(self, lines: int = 25) -> str:
        """The end of its log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


def run_up(settings: Settings, console: "Console") -> int:
    """Start Dagster, the service, MLflow and the reports, and keep them until Ctrl-C, SIGTERM or SIGHUP.

    A second signal while they are being stopped kills them at once.

    Returns:
        0 when it was asked to stop, 1 when one of them ended by itself or did not answer in time.

    Raises:
        AlreadyUp: they run in this home already.
        OSError: the home cannot be written.
        ValueError: no port is free.
    """
    with _only_one(settings.paths.home / LOCK), _asked_to_stop() as asked:
        return _Supervisor(settings, console, asked).run()


class _Asked:
    """How often it was asked to stop."""

    def __init__(self) -> None:
        self.times = 0


class _Supervisor:
    """The programs of one `genai up`."""

    def __init__(self, settings: Settings, console: "Console", asked: _Asked):
        self.console = console
        self.asked = asked
        self.children: dict[str, Child] = {}
        self.champion: Champion | None = None
        self.champion_trouble = ""
        self.ports = _choose_ports(
            {
                DAGSTER: (LOOPBACK, DAGSTER_PORT),
                SERVICE: (settings.serving.host, settings.serving.port),
                MLFLOW: (LOOPBACK, MLFLOW_PORT),
                REPORTS: (LOOPBACK, settings.pages.port),
            },
            console,
        )
        # The children shall know where the service and the reports really listen: Dagster's links lead there.
        serving = settings.serving.model_copy(update={"port": self.ports[SERVICE]})
        linked = settings.pages.model_copy(update={"port": self.ports[REPORTS]})
        self.settings = settings.model_copy(update={"serving": serving, "pages": linked})

    def run(self) -> int:
        paths = self.settings.paths
        for folder in (paths.logs, paths.dagster, paths.mlflow, paths.bentoml):
            folder.mkdir(parents=True, exist_ok=True)
        copy_instance_settings(self.settings)
        _end_abandoned_runs(self.settings)
        with httpx.Client(timeout=2.0, trust_env=False) as http:
            try:
                for program in (
                    dagster(self.settings, self.ports[DAGSTER]),
                    mlflow(self.settings, self.ports[MLFLOW]),
                    reports(self.settings),
                ):
                    self._start(program)
                self._follow_champion()
                if self._wait_until_ready(http, self.children.values()):
                    self._show()
                    self._watch(http)
            finally:
                self._say(f"Stopping {', '.join(self.children)} …")
                self._stop(list(self.children.values()))
        self._say("All stopped.")
        return 0 if self.asked.times else 1

    def _start(self, program: Program) -> None:
        log_path = self.settings.paths.logs / f"{program.name.lower()}.log"
        if program.name not in self.children:
            log_path.unlink(missing_ok=True)  # a log of one `genai up`, restarts of the service included
        self.children[program.name] = Child(program, log_path)
        self._say(f"Starting {program.name} …  (log: {log_path})")

    def _wait_until_ready(self, http: httpx.Client, children: Iterable[Child]) -> bool:
        """Wait until children answer; False when that will not be, which is told unless it was asked for."""
        waiting = list(children)
        while waiting and not self.asked.times:
            for child in list(waiting):
                took = time.monotonic() - child.started
                if child.answers(http):
                    waiting.remove(child)
                    self._say(f"{child.program.name} answers after {took:.0f} s.")
                elif child.has_failed(http):
                    return self._give_up(child)
                elif took > START_SECONDS:
                    return self._give_up(child, f"did not answer in {START_SECONDS:.0f} s")
            time.sleep(_TICK)
        return not self.asked.times

    def _watch(self, http: httpx.Client) -> None:
        """Look after the children until one dies or we are asked to stop."""
        looked = time.monotonic()
        while not self.asked.times:
            if dead := next((child for child in self.children.values() if child.has_ended), None):
                self._give_up(dead)
                return
            if time.monotonic() - looked > CHAMPION_SECONDS:
                if self._follow_champion():
                    if not self._wait_until_ready(http, [self.children[SERVICE]]):
                        return
                    self._show()
                looked = time.monotonic()
            time.sleep(_TICK)

    def _follow_champion(self) -> bool:
        """Let the service serve today's champion; True when it was started (anew)."""
        from sqlalchemy.exc import SQLAlchemyError

        from genai_assets import stages
        from genai_assets.registry.champion import ChampionPointer

        try:
            with ChampionPointer(self.settings.database_url) as pointer:
                found = pointer.current()
        except SQLAlchemyError as error:  # that is not "no champion": what is served stays
            self._tell_trouble(f"The champion pointer cannot be read: {error}")
            return False
        if found is None:
            self._tell_trouble(
                "No champion yet, so there is nothing to serve: run `genai demo`. The service then starts."
            )
            return False
        if not found.model_path.is_dir():
            self._tell_trouble(
                f"The champion {found.model_version} has lost its folder {found.model_path}: train again."
            )
            return False
        self.champion_trouble = ""
        if self.champion and self.champion.revision == found.revision:
            return False
        if old := self.children.get(SERVICE):
            self._say(f"New champion {found.model_version}: the service starts again with it.")
            self._stop([old])
        self.champion = found
        self._start(service(self.settings, found.model_path, self.ports[SERVICE], stages.few_step_student(found)))
        return True

    def _say(self, text: str, style: str = "") -> None:
        """Print a line as it is: brackets are no markup, and a path is not broken."""
        from rich.text import Text

        self.console.print(Text(text, style=style), soft_wrap=True)

    def _tell_trouble(self, text: str) -> None:
        if text != self.champion_trouble:  # once, not every few seconds
            self._say(text, "yellow")
            self.champion_trouble = text

    def _show(self) -> None:
        from rich.panel import Panel
        from rich.table import Table

        meaning = {
            DAGSTER: "the graph: assets, checks, runs, sensors",
            SERVICE: f"type a prompt, rate pictures (model {self.champion.model_version})" if self.champion else "",
            MLFLOW: "trainings and their figures",
            REPORTS: "what the links in the graph lead to: reports, Data Docs",
        }
        table = Table.grid(padding=(0, 2))
        for name, what in meaning.items():
            child = self.children.get(name)
            url = child.program.url if child else f"http://{LOOPBACK}:{self.ports[SERVICE]}"
            table.add_row(name, url, what if child else "not started: there is no champion yet")
        self.console.print(Panel(table, title="genai up", subtitle="Ctrl-C stops all", expand=False))

    def _give_up(self, child: Child, why: str = "") -> bool:
        """Say which child failed and show the end of its log; False, for the caller to hand on."""
        from rich.text import Text

        code = child.process.poll()
        why = why or ("cannot start" if code is None else f"ended by itself with code {code}")
        self._say(f"{child.program.name} {why}. The end of {child.log_path}:", "red")
        self.console.print(Text.from_ansi(child.log_tail()))
        return False

    def _stop(self, children: list[Child]) -> None:
        patience = max(1, self.asked.times)  # one signal started this, or none did: another one is impatience
        stop(children, hurry=lambda: self.asked.times > patience)


def stop(children: Sequence[Child], *, hurry: Callable[[], bool], seconds: float = STOP_SECONDS) -> None:
    """End children and all they started: asked first, made to after some seconds or when there is a hurry."""
    deadline = time.monotonic() + seconds
    told: set[psutil.Process] = set()
    while living := {process for child in children for process in child.family()} | set(filter(_lives, told)):
        late = time.monotonic() > deadline or hurry()
        for process in living if late else living - told:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if late else process.terminate()
        told |= living
        time.sleep(_TICK / 2)
    for child in children:
        child.process.wait()
        if child.process.stdin:
            child.process.stdin.close()


def dagster(settings: Settings, port: int) -> Program:
    """Dagster's web server and daemon, in one command."""
    workspace = _ROOT / "workspace.yaml"
    place = ["-w", str(workspace)] if workspace.is_file() else ["-m", "genai_assets.definitions"]
    arguments = ["dev", *place, "-h", LOOPBACK, "-p", str(port)]
    environment = _environment(settings, DAGSTER_HOME=str(settings.paths.dagster))
    # In the folder we were called from, as relative paths in the settings are meant from there.
    return Program(DAGSTER, "dagster", arguments, f"http://{LOOPBACK}:{port}", "/server_info", environment, Path.cwd())


def _end_abandoned_runs(settings: Settings) -> None:
    """Before Dagster starts: what a killed run still holds would be waited for. What goes wrong is on the terminal."""
    environment = _environment(settings, DAGSTER_HOME=str(settings.paths.dagster))
    subprocess.run([sys.executable, "-m", "genai_assets.defs.abandoned_runs"], env=environment, check=False)


def mlflow(settings: Settings, port: int) -> Program:
    """MLflow's page and API on the tracking database of the home."""
    arguments = ["server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", settings.paths.mlflow_url]
    arguments += ["--artifacts-destination", str(settings.paths.mlflow / "artifacts")]
    # Nobody asks it to run jobs, and that would cost two more processes.
    environment = _environment(settings, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    return Program(
        MLFLOW, "mlflow", arguments, f"http://{LOOPBACK}:{port}", "/health", environment, settings.paths.mlflow
    )


def reports(settings: Settings) -> Program:
    """The pages of the home, at the port of the settings: links in Dagster's metadata lead there."""
    url = f"http://{LOOPBACK}:{settings.pages.port}"
    return Program(REPORTS, "genai_assets.pages", [], url, pages.READY, _environment(settings), settings.home)


def service(settings: Settings, model_folder: Path, port: int, few_steps: Path | None = None) -> Program:
    """The image service with one model, and that model's few-step student if it has one."""
    from genai_assets.serving import packaging

    host = settings.serving.host
    arguments = ["serve", packaging.SERVICE, "--host", host, "--port", str(port)]
    served = {packaging.MODEL_FOLDER_VARIABLE: str(model_folder.absolute())}
    if few_steps is not None:
        served[packaging.FEW_STEPS_FOLDER_VARIABLE] = str(few_steps.absolute())
    environment = _environment(
        settings,
        **served,
        BENTOML_HOME=str(settings.paths.bentoml),
        # BentoML clears this folder at start: another service of the home (a smoke test) must have its own.
        PROMETHEUS_MULTIPROC_DIR=str(settings.paths.bentoml / "prometheus-up"),
    )
    url = f"http://{reachable(host)}:{port}"
    return Program(SERVICE, "bentoml", arguments, url, "/readyz", environment, settings.paths.bentoml, "/healthz")


def free_port(host: str, wanted: int, taken: Sequence[int] = ()) -> int:
    """The wanted port, or the next one that nobody listens on.

    Raises:
        ValueError: none of the next hundred is free, or the host is none of this machine.
    """
    reason: object = "all are taken"
    for port in range(wanted, min(wanted + _PORTS_TRIED, 65536)):
        if port in taken:
            continue
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                # As servers do: connections of a server that just ended do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            reason = error.strerror or error
        else:
            return port
    raise ValueError(
        f"no port from {wanted} on can be listened on at {host}: {reason}; set serving.host or serving.port"
    )


def _choose_ports(wanted: Mapping[str, tuple[str, int]], console: "Console") -> dict[str, int]:
    chosen: dict[str, int] = {}
    for name, (host, port) in wanted.items():
        chosen[name] = free_port(host, port, list(chosen.values()))
        if chosen[name] != port:
            console.print(f"Port {port} is taken: {name} gets {chosen[name]}.", style="yellow", highlight=False)
    return chosen


def _environment(settings: Settings, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment_of(settings, PYTHONPATH=path, **more)


def copy_instance_settings(settings: Settings) -> Path:
    """Put the project's ``dagster.yaml`` into the Dagster home, where alone Dagster reads it; returns the home."""
    source, home = _ROOT / "dagster.yaml", settings.paths.dagster
    target = home / source.name
    home.mkdir(parents=True, exist_ok=True)
    if source.is_file() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
        durable.write_bytes(target, source.read_bytes())
    return home


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the home's lock, which the system gives back however we end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise AlreadyUp(
                f"`genai up` runs already in {path.parent} (process {lock.read() or 'unknown'}); "
                "stop it first, or set GENAI_HOME to another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[_Asked]:
    """Count the signals that ask us to stop, instead of dying of them."""
    asked = _Asked()

    def count(*_: object) -> None:
        asked.times += 1

    before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _session(leader: int) -> Iterator[psutil.Process]:
    """Every process of a session."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                yield process


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
