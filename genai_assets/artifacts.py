"""Artifacts: folders that are complete or absent, named by what they were made from.

Every stage of the graph turns inputs into one folder of files. The folder's name is the fingerprint of the inputs, so
that asking twice for the same thing builds it once; its data version is the digest of its content, so that downstream
work is skipped when the content did not change. What the files mean belongs to the rooms.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genai_assets import durable
from genai_assets.turns import in_turn

RECEIPT = "artifact.json"
"""In a folder: it is a finished artifact, whose files do not change any more."""
_UNFINISHED, _RETIRED, _TURN = ".partial", ".retired", ".turn"
_SECONDS_UNTIL_ABANDONED = 60
"""Between being made and being marked as in use a folder or file is nobody's, for an instant."""


@dataclass(frozen=True)
class Artifact:
    """One finished folder.

    Attributes:
        kind: which stage made it, for example ``"splits"``.
        fingerprint: digest of the inputs it was made from (16 hexadecimal digits).
        data_version: digest of the files' content (16 hexadecimal digits).
        path: the folder.
        summary: figures the stage wants to be known by; plain JSON values.
        inputs: what it was made from, as given to :meth:`ArtifactStore.build`.
        reused: true when it was there already and nothing was worked on.
    """

    kind: str
    fingerprint: str
    data_version: str
    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    reused: bool = False

    def file(self, name: str) -> Path:
        """Path of one file of the artifact.

        Raises:
            FileNotFoundError: the artifact has no such file.
        """
        path = self.path / name
        if not path.exists():
            raise FileNotFoundError(f"artifact {self.kind}/{self.fingerprint} has no file {name!r}")
        return path

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file by its name, as written when the artifact was finished."""
        return _read_receipt(self.path)["digests"]

    def verify(self) -> None:
        """Compare every file with the digests written when the artifact was finished.

        Raises:
            ValueError: a file is missing, changed or was added; the message names it and the mend.
        """
        expected = self.digests
        found = {name: digest for name, digest in durable.digest_tree(self.path).items() if name != RECEIPT}
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if odd:
            raise ValueError(
                f"{self.path} was changed after it was finished ({', '.join(odd[:5])}); "
                "remove the folder and run the stage again"
            )


def data_version_of(folder: Path) -> str:
    """Data version of the finished artifact in a folder."""
    return _read_receipt(folder)["data_version"]


def _read_receipt(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECEIPT).read_text())


class ArtifactStore:
    """All artifacts below one root folder: ``ROOT/KIND/FINGERPRINT/``."""

    def __init__(self, root: Path):
        self.root = root

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """The finished artifact made from ``inputs``, or None."""
        return self._read(kind, _fingerprint(inputs), reused=True)

    def build(
        self, kind: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]], *, fresh: bool = False
    ) -> Artifact:
        """Return the artifact made from ``inputs``, making it only when it is not there.

        While another process makes the same, this one waits and takes what it made: a training is not done twice, and
        its checkpoints have one writer.

        Args:
            kind: which stage; a folder name.
            inputs: everything the result depends on, as plain JSON values (versions, settings, code version).
            make: fills an empty folder and returns the summary. When it raises, nothing is left behind.
            fresh: make it again even when it is there (a stage whose result depends on the clock).
        """
        fingerprint = _fingerprint(inputs)
        if not fresh and (found := self._read(kind, fingerprint, reused=True)):
            return found
        home = self.root / kind
        home.mkdir(parents=True, exist_ok=True)
        with in_turn(home / f".{fingerprint}{_TURN}", f"{kind}/{fingerprint}") as waited:
            if waited and not fresh and (found := self._read(kind, fingerprint, reused=True)):
                return found
            return self._make(kind, fingerprint, inputs, make, fresh=fresh)

    def _make(
        self,
        kind: str,
        fingerprint: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        *,
        fresh: bool,
    ) -> Artifact:
        home = self.root / kind
        _remove_abandoned(home)
        workplace = Path(tempfile.mkdtemp(dir=home, prefix=f".{fingerprint}.", suffix=_UNFINISHED))
        try:
            with _in_use(workplace):
                summary = dict(make(workplace))
                digests = durable.digest_tree(workplace)
                receipt = {
                    "kind": kind,
                    "fingerprint": fingerprint,
                    "data_version": durable.digest_json(digests)[:16],
                    "inputs": dict(inputs),
                    "summary": summary,
                    "digests": digests,
                }
                durable.write_json(workplace / RECEIPT, receipt)
                _open_to_readers(workplace)
                durable.sync_tree(workplace)
                return self._publish(kind, fingerprint, workplace, fresh=fresh)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)

    def all(self, kind: str) -> list[Artifact]:
        """Every finished artifact of a kind, by fingerprint; for looking at, not for lineage."""
        names = sorted(path.parent.name for path in (self.root / kind).glob(f"[!.]*/{RECEIPT}"))
        return [found for name in names if (found := self._read(kind, name, reused=True))]

    def newest(self, kind: str) -> Artifact | None:
        """The artifact of a kind that was finished last, or None; for looking at, not for lineage."""
        receipts = (self.root / kind).glob(f"*/{RECEIPT}")
        finished = [(path.stat().st_mtime_ns, path.parent.name) for path in receipts if path.parent.name[0] != "."]
        for _, fingerprint in sorted(finished, reverse=True):
            if found := self._read(kind, fingerprint, reused=True):
                return found
        return None

    def _publish(self, kind: str, fingerprint: str, workplace: Path, *, fresh: bool) -> Artifact:
        """Move a finished folder to its place, whatever other processes do there at the same time."""
        made = self._read(kind, workplace.name, reused=False)
        assert made is not None
        target = workplace.with_name(fingerprint)
        while True:
            try:
                os.rename(workplace, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                durable.sync_folder(target.parent)
                return replace(made, fingerprint=fingerprint, path=target)
            if not fresh and (others := self._read(kind, fingerprint, reused=False)):
                return others  # another process made the same meanwhile, and may be reading it by now
            # A folder cannot be replaced by rename: move the old one aside first, then try again.
            retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{fingerprint}.", suffix=_RETIRED))
            with contextlib.suppress(FileNotFoundError):  # another process has just done so
                os.rename(target, retired / fingerprint)
            shutil.rmtree(retired, ignore_errors=True)

    def _read(self, kind: str, fingerprint: str, *, reused: bool) -> Artifact | None:
        path = self.root / kind / fingerprint
        try:
            receipt = json.loads((path / RECEIPT).read_text())
        except FileNotFoundError:
            return None
        except ValueError:  # a damaged receipt vouches for nothing: the stage makes the artifact anew
            return None
        if any(not (path / name).exists() for name in receipt["digests"]):
            return None
        return Artifact(kind, fingerprint, receipt["data_version"], path, receipt["summary"], receipt["inputs"], reused)


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """While entered, a folder is marked as worked on. The mark is a lock, which goes when its process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(home: Path) -> None:
    """Remove what killed processes left unfinished; what is worked on stays."""
    for left in (*home.glob(f".*{_UNFINISHED}"), *home.glob(f".*{_RETIRED}"), *home.glob(f".*{_TURN}")):
        with contextlib.suppress(OSError):  # another process may be removing it, or own it: then it is not ours to mend
            if time.time() - left.stat().st_mtime < _SECONDS_UNTIL_ABANDONED:
                continue
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink() if left.suffix == _TURN else shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


def _open_to_readers(folder: Path) -> None:
    """Let other accounts read (the service may run as one): mkdtemp and safetensors make what they write private."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():  # what a link leads to is not ours
            path.chmod(0o755 if path.is_dir() else 0o644)


def _fingerprint(inputs: Mapping[str, Any]) -> str:
    return durable.digest_json(dict(inputs))[:16]
