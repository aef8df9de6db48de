"""From a model folder to a Bento, and from a Bento to a running service.

Belongs here: building the Bento (the artifact), starting the service as a process of its own, trying it, stopping it.
BentoML is started as a process, never imported by the caller: it reads its home folder once, at import.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_assets import durable, privacy
from genai_assets.child_process import environment_of, start_module
from genai_assets.loopback import reachable
from genai_assets.serving.generator import read_facts
from genai_assets.settings import Settings, sqlite_url

SERVICE = "genai_assets.serving.service:ImageGenerationService"
BENTO_NAME = "image_generation_service"
MODEL_NAME = "genai_champion"
FEW_STEPS_NAME = "genai_few_steps"
MODEL_FOLDER_VARIABLE = "GENAI_SERVE_MODEL"
FEW_STEPS_FOLDER_VARIABLE = "GENAI_SERVE_FEW_STEPS"
START_SECONDS = 180.0
STOP_SECONDS = 15.0

_PACKAGE = Path(__file__).parents[1]
_NOT_PACKED = ("__pycache__", "embedded_base", ".*")


class PackagingError(RuntimeError):
    """The Bento could not be built; the message has BentoML's own words."""


class ServiceFailed(RuntimeError):
    """The service did not start, or did not draw what it should; the message ends with the tail of its log."""


@dataclass(frozen=True)
class BentoInfo:
    """A finished Bento.

    Attributes:
        tag: ``image_generation_service:VERSION`` in the Bento store of the home folder.
        path: the Bento's folder.
        size: bytes on disk of the Bento and its model.
        model_version: the model in it.
        reused: true when it was there already.
    """

    tag: str
    path: Path
    size: int
    model_version: str
    reused: bool = False


@dataclass(frozen=True)
class SmokeResult:
    """What came of trying a service.

    Attributes:
        latency_ms: of one generation over HTTP, seen from outside, milliseconds.
        sha256: of the PNG.
        width, height: pixels.
        model_version: the model that says it drew.
        png: the picture.
    """

    latency_ms: float
    sha256: str
    width: int
    height: int
    model_version: str
    png: bytes


def build_bento(model_folder: Path, model_version: str, settings: Settings, few_steps: Path | None = None) -> BentoInfo:
    """Pack a model, its few-step student if given, and the code that serves them; built twice, it is built once.

    The Bento's version is made of the model's version and a digest of the code and of the student's version, so the
    same inputs give the same tag. Bento and models appear whole in the stores of ``settings.paths.bentoml``, or not at
    all. No package index is asked.

    Raises:
        ValueError: the folder is no model folder, or another model of this version is in the store already.
        PackagingError: BentoML refused.
    """
    facts = read_facts(model_folder)
    if facts.model_version != model_version:
        raise ValueError(f"{model_folder} holds model {facts.model_version!r}, not {model_version!r}")
    home = settings.paths.bentoml
    home.mkdir(parents=True, exist_ok=True)
    packed = [_Packed.of(MODEL_NAME, model_folder, home)]
    if few_steps is not None:
        packed.append(_Packed.of(FEW_STEPS_NAME, few_steps, home))
    workplace = Path(tempfile.mkdtemp(dir=home, prefix=".building."))
    try:
        context = workplace / "context"
        _stage(context)
        code = durable.digest_tree(context)
        students = [model.tag for model in packed[1:]]
        code_version = durable.digest_json({"code": code, "students": students} if students else code)[:8]
        version = f"{_tag_text(model_version)}-{code_version}"
        bento_home = home / "bentos" / BENTO_NAME / version
        for model in packed:
            if model.home.is_dir() and _stored_digest(model.home) != model.digest:
                raise ValueError(
                    f"{model.home} holds another model of version {model.version!r}; "
                    "remove it, or give this one its own"
                )
        reused = bento_home.is_dir() and all(model.home.is_dir() for model in packed)
        if not reused:
            request = {
                "models": [
                    {"folder": str(model.folder.absolute()), "tag": model.tag, "digest": model.digest}
                    for model in packed
                ],
                "bento_version": version,
                "labels": {"model_version": _tag_text(model_version), "code_version": code_version},
            }
            _run_build(context, workplace, request)
            for model in packed:
                _publish(workplace / "home" / model.home.relative_to(home), model.home)
            _publish(workplace / "home" / "bentos" / BENTO_NAME / version, bento_home)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    size = _size(bento_home) + sum(_size(model.home) for model in packed)
    return BentoInfo(f"{BENTO_NAME}:{version}", bento_home, size, model_version, reused)


@dataclass(frozen=True)
class _Packed:
    """A model on its way into a Bento: its name and version there, and its place in the store of models."""

    name: str
    version: str
    folder: Path
    digest: str
    home: Path

    @classmethod
    def of(cls, name: str, folder: Path, home: Path) -> "_Packed":
        version = read_facts(folder).model_version
        digest = durable.digest_json(durable.digest_tree(folder))[:32]
        return cls(name, version, folder, digest, home / "models" / name / _tag_text(version))

    @property
    def tag(self) -> str:
        return f"{self.name}:{_tag_text(self.version)}"


@contextlib.contextmanager
def running_service(
    served: BentoInfo | Path,
    settings: Settings,
    *,
    few_steps: Path | None = None,
    port: int = 0,
    log_path: Path | None = None,
    timeout: float = START_SECONDS,
) -> Iterator[str]:
    """Run the service while the block runs; give its base URL once it is ready. It is always stopped.

    Args:
        served: a Bento, or a model folder to serve with the code at hand.
        settings: handed on whole; the service listens on ``settings.serving.host``.
        few_steps: with a model folder, the folder of its few-step student; a Bento brings its own.
        port: 0 for a free one.
        log_path: where the service's output goes; default ``service-PORT.log`` among the home's logs.
        timeout: seconds until it must be ready.

    Raises:
        ValueError: the folder is no model folder.
        ServiceFailed: it ended, said that its model cannot be loaded, or was not ready in time.
    """
    if isinstance(served, Path):
        read_facts(served)
    host = settings.serving.host
    port = port or _free_port(host)
    log_path = log_path or settings.paths.logs / f"service-{port}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    settings.paths.bentoml.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="genai-service-") as scratch, log_path.open("wb") as output:
        environment = environment_of(settings, BENTOML_HOME=str(settings.paths.bentoml))
        # BentoML keeps a folder of figures per home and clears it at start: two services would fight over it.
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(Path(scratch) / "prometheus")
        if isinstance(served, BentoInfo):
            target = served.tag
        else:
            target = SERVICE
            environment[MODEL_FOLDER_VARIABLE] = str(served.absolute())
            if few_steps is not None:
                environment[FEW_STEPS_FOLDER_VARIABLE] = str(few_steps.absolute())
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(_PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
            )
        arguments = ["serve", target, "--host", host, "--port", str(port)]
        process = start_module("bentoml", arguments, folder=Path(scratch), environment=environment, output=output)
        try:
            base_url = f"http://{reachable(host)}:{port}"
            _wait_until_ready(process, base_url, log_path, timeout)
            yield base_url
        finally:
            _stop(process)


def smoke_test(bento: BentoInfo | Path, settings: Settings, prompt: str, timeout: float = START_SECONDS) -> SmokeResult:
    """Start the service on a free port, draw one picture over HTTP, look at it, stop the service.

    Raises:
        ServiceFailed: it did not start, answered with an error, drew nothing, or serves another model.
    """
    from PIL import Image

    from genai_assets.serving.client import ServiceClient, ServiceError

    log_path = settings.paths.logs / "smoke-test.log"
    with (
        tempfile.TemporaryDirectory(prefix="genai-smoke-test-") as scratch,
        # A log of its own: nobody asked for this picture, so it must not count as traffic.
        running_service(bento, _logging_to(settings, Path(scratch)), log_path=log_path, timeout=timeout) as base_url,
        ServiceClient(base_url, timeout=timeout) as client,
    ):
        started = time.perf_counter()
        try:
            answer = client.generate(prompt, seed=0)
        except ServiceError as error:
            raise ServiceFailed(f"the service did not draw: {error}\n{_tail(log_path)}") from error
        latency_ms = (time.perf_counter() - started) * 1000
    expected = bento.model_version if isinstance(bento, BentoInfo) else read_facts(bento).model_version
    if answer.model_version != expected:
        raise ServiceFailed(f"the service serves model {answer.model_version!r}, not {expected!r}")
    [png] = answer.pictures
    try:
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
            width, height = picture.size
            extremes = picture.convert("RGB").getextrema()
    except OSError as error:
        raise ServiceFailed(f"the service's answer is no picture: {error}") from error
    if all(isinstance(extreme, tuple) and extreme[0] == extreme[1] for extreme in extremes):
        raise ServiceFailed(f"the service drew a picture of one flat colour for the prompt {prompt!r}")
    return SmokeResult(round(latency_ms, 1), durable.digest_bytes(png), width, height, answer.model_version, png)


def code_version() -> str:
    """Digest (16 hexadecimal digits) of all that goes into a Bento beside its models: code, page, packages' versions.

    Raises:
        PackagingError: this is no checkout of the project.
    """
    with tempfile.TemporaryDirectory(prefix="code-") as folder:
        _stage(Path(folder))
        return durable.digest_json(durable.digest_tree(Path(folder)))[:16]


def _stage(context: Path) -> None:
    """Fill a folder with exactly what goes into the Bento, so that nothing else of a checkout can slip in."""
    import yaml

    source = _PACKAGE.parent / "bentofile.yaml"
    if not source.is_file():
        raise PackagingError(f"{source} is missing; build the Bento from a checkout of the project")
    shutil.copytree(_PACKAGE, context / _PACKAGE.name, ignore=shutil.ignore_patterns(*_NOT_PACKED))
    options = yaml.safe_load(source.read_text())
    pins = _pins(_PACKAGE.parent / "constraints.txt")
    packages = options["python"]["packages"]
    options["python"]["packages"] = [f"{name}=={pins[name]}" if name in pins else name for name in packages]
    (context / "bentofile.yaml").write_text(yaml.safe_dump(options))


def _pins(constraints: Path) -> dict[str, str]:
    if not constraints.is_file():
        return {}
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", constraints.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned}


def _run_build(context: Path, workplace: Path, request: Mapping[str, Any]) -> None:
    scratch = workplace / "scratch"
    scratch.mkdir()
    # Built in a home of its own, on the same disk: what is finished is renamed into place. TMPDIR keeps BentoML's own
    # temporary folders on that disk too, so that hard links to the model's files survive.
    environment = {
        **os.environ,
        **privacy.TELEMETRY_OFF,
        "BENTOML_HOME": str(workplace / "home"),
        "TMPDIR": str(scratch),
    }
    environment.pop("PYTHONPATH", None)  # the staged code is what is built, and it is the code in the working folder
    done = subprocess.run(
        [sys.executable, "-m", "genai_assets.serving.packaging", json.dumps(request)],
        cwd=context,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PackagingError(f"BentoML could not build the Bento:\n{(done.stdout + done.stderr)[-4000:]}")


def _build_in_this_process(request: Mapping[str, Any]) -> None:
    """Run in the process that :func:`_run_build` starts, with a ``BENTOML_HOME`` of its own."""
    import bentoml
    import yaml

    for packed in request["models"]:
        with bentoml.models.create(packed["tag"], labels={"digest": packed["digest"]}) as model:
            shutil.copytree(packed["folder"], model.path, copy_function=durable.link_or_copy, dirs_exist_ok=True)
    options = yaml.safe_load(Path("bentofile.yaml").read_text())
    options["labels"] = {**options.get("labels", {}), **request["labels"]}
    bentoml.build(
        **options,
        models=[packed["tag"] for packed in request["models"]],
        version=request["bento_version"],
        build_ctx=".",
    )


def _stored_digest(model_home: Path) -> str | None:
    import yaml

    labels = yaml.safe_load((model_home / "model.yaml").read_text()).get("labels", {})
    return labels.get("digest")


def _publish(made: Path, place: Path) -> None:
    if place.is_dir():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    durable.sync_tree(made)
    os.rename(made, place)
    durable.sync_folder(place.parent)


def _tag_text(version: str) -> str:
    """A version as BentoML's tags allow it: lower case, digits, ``.-_``, short."""
    return re.sub(r"[^a-z0-9._-]+", "-", version.lower()).strip("._-")[:48]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _logging_to(settings: Settings, folder: Path) -> Settings:
    serving = settings.serving.model_copy(update={"database_url": sqlite_url(folder / "requests.sqlite")})
    return settings.model_copy(update={"serving": serving})


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen[bytes], base_url: str, log_path: Path, timeout: float) -> None:
    import httpx

    deadline = time.monotonic() + timeout
    with httpx.Client(base_url=base_url, timeout=5.0, trust_env=False) as http:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServiceFailed(f"the service ended with code {process.returncode}\n{_tail(log_path)}")
            with contextlib.suppress(httpx.TransportError):  # not listening yet
                if http.get("/readyz").status_code == 200:
                    return
                if http.get("/healthz").status_code == 503:
                    raise ServiceFailed(f"the service cannot load its model\n{_tail(log_path)}")
            time.sleep(0.2)
    raise ServiceFailed(f"the service was not ready after {timeout:g} s\n{_tail(log_path)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and all it started: asked first, then made to."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def _tail(log_path: Path, lines: int = 25) -> str:
    text = log_path.read_text(errors="replace").splitlines()[-lines:]
    return f"--- the end of {log_path}:\n" + "\n".join(text)


if __name__ == "__main__":
    _build_in_this_process(json.loads(sys.argv[1]))
