"""Archives as sources: zip and tar files, and shards of WebDataset, read where they lie.

Belongs here: what is inside an archive, which of its members are pictures, and which are refused for what their
headers say. Nothing is ever unpacked to the disk: a member's name only names it. What a row or sidecar says of a
picture is read by ``described``; whether a picture is any good is decided by validation.

A member of a zip has its checksum and size as state, from the central directory. A member of a plain tar, which has no
checksum of content, has its header's size and time and the archive's own. A compressed tar must be unpacked to be
listed at all, so its members have a checksum as well.
"""

import bz2
import codecs
import csv
import glob
import gzip
import io
import json
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field

from genai_assets.datasets import opt_out
from genai_assets.datasets.sources import described
from genai_assets.datasets.sources.picture_folder import METADATA, PICTURE_SUFFIXES, SIDECAR_SUFFIX, Captions
from genai_assets.datasets.sources.source import (
    Description,
    Fetched,
    Listed,
    SourceOptions,
    SourceUnreadable,
    Surroundings,
)

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
WEBDATASET_TEXTS = frozenset({".txt", ".json", ".cls"})

MAX_RATIO = 200
"""A member or stream that unpacks to more than so many times its size is taken for a bomb, once it is large."""
RATIO_COUNTS_FROM = 16 * 1024**2
"""Unpacked bytes from which the ratio counts: a plain white bitmap packs as well as a bomb, but is small."""
MAX_NAME_LENGTH = 1024
MAX_PART_LENGTH = 255
MAX_TEXT_BYTES = 1024**2
"""Of a sidecar."""
MAX_METADATA_BYTES = 256 * 1024**2

_CHUNK = 1 << 20
_REST = ("(the rest)", "(the rest of it)")  # a member may have a name like the first, but no two of one name are kept
_MAX_HEADER_BYTES = 1 << 20  # a tar header of gigabytes would be read into memory whole
_REGULAR_TYPES = frozenset({0, stat.S_IFREG, stat.S_IFDIR})
_ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_ZIP_LOCAL_HEADER = 30
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAGS = 0x1 | 0x40


class ArchiveOptions(SourceOptions):
    """Where the archives are and how they are read.

    Attributes:
        path: an archive, a folder of archives, or a pattern with ``*`` (``**`` for folders below).
        layout: ``folder`` (pictures with metadata files or sidecars), ``webdataset`` (members that share a name up to
            the first dot are one sample), or ``auto``: the latter when there are ``.json`` or ``.cls`` members beside
            pictures and no metadata file.
        captions: ``sidecars`` or ``file_names``, for pictures of which no metadata tells.
        columns: field of a description to the column of the metadata, or the key of the ``.json``, it is read from.
        max_unpacked_bytes: members beyond so many unpacked bytes an archive are refused.
    """

    path: str
    layout: Literal["auto", "folder", "webdataset"] = "auto"
    captions: Captions = "sidecars"
    columns: dict[str, str] = Field(default_factory=dict)
    max_unpacked_bytes: int = Field(default=256 * 1024**3, ge=1)


class Refused(Exception):
    """A member is not taken; the message is the reason."""


@dataclass(frozen=True)
class Member:
    """One member as an archive's headers have it.

    Attributes:
        name: as the archive says it, good or bad.
        size: unpacked bytes, as the header says.
        state: another value means another content.
        place: where its reader finds it: the index in a zip, the offset in a tar.
        refusal: why it is not taken for what the headers say.
        text: the content of a member that describes pictures; None of all others.
    """

    name: str
    size: int
    state: str
    place: int
    refusal: str = ""
    text: bytes | None = None


@dataclass
class _Contents:
    """All that one archive holds: members by their normalised name, and what is refused by its key."""

    members: dict[str, Member] = field(default_factory=dict)
    refused: dict[str, Member] = field(default_factory=dict)
    sidecars: set[str] = field(default_factory=set)
    damage: str = ""


@dataclass(frozen=True)
class _Picture:
    """One picture, or the refusal that stands for it."""

    key: str
    state: str
    member: Member | None = None
    description: Description | None = None
    refusal: str = ""


class _Reader(Protocol):
    """An open archive."""

    def members(self) -> Iterator[Member]:
        """Every member that is no folder, in the archive's order.

        Raises:
            Refused: damage; all that lay before it has been given.
            SourceUnreadable: nothing can be listed.
        """
        ...

    def read(self, members: Iterable[Member]) -> Iterator[tuple[Member, bytes | Refused]]:
        """The content of members, or why there is none."""
        ...

    def close(self) -> None: ...


class ArchiveSource:
    """Pictures in zip and tar files, with the captions that lie beside them.

    The key is the member's name, below the archive's when the option names a folder or a pattern. Refused with a
    reason, from the headers alone: names that lead out, absolute, overlong or undecodable names, links and devices,
    encrypted and doubled members, what is too large or packs too well. Hidden members, ``__MACOSX`` and what is no
    picture are passed over.
    """

    Options: ClassVar[type[SourceOptions]] = ArchiveOptions

    def __init__(self, options: ArchiveOptions, surroundings: Surroundings):
        """Nothing is read yet."""
        described.check_columns(options.columns, (), "")
        self.name = options.name or f"archive:{Path(options.path).name or options.path}"
        self.licence = options.licence or surroundings.licence
        self._style = options.style or surroundings.style
        self._options = options
        self._limits = _Limits(surroundings.max_file_bytes, options.max_unpacked_bytes)

    @classmethod
    def open(cls, options: Any, surroundings: Surroundings) -> Self:
        """A source by its options.

        Raises:
            ValueError: ``columns`` names a field that there is not.
        """
        return cls(options, surroundings)

    def list(self) -> Iterator[Listed]:
        """Every picture and every refusal; headers and texts are read, of compressed tars everything.

        Raises:
            SourceUnreadable: no archive, or one of which nothing can be listed.
        """
        for path, prefix in self._archives():
            for picture in self._pictures(path, prefix):
                concept = picture.description.concept if picture.description else ""
                yield Listed(picture.key, picture.state, concept)

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The pictures with these keys, archive by archive in the order they lie there, one in memory at a time.

        Raises:
            SourceUnreadable: as of :meth:`list`.
        """
        keys = frozenset(keys)
        for path, prefix in self._archives():
            if prefix and not any(key.startswith(prefix) for key in keys):
                continue
            wanted: dict[int, _Picture] = {}
            for picture in self._pictures(path, prefix):
                if picture.key not in keys:
                    continue
                if picture.member is None or picture.refusal:
                    yield Fetched(picture.key, refusal=picture.refusal)
                else:
                    wanted[picture.member.place] = picture
            if not wanted:
                continue
            reader = _open(path, self._limits)
            try:
                members = [picture.member for _, picture in sorted(wanted.items()) if picture.member]
                for member, data in reader.read(members):
                    picture = wanted[member.place]
                    if isinstance(data, Refused):
                        yield Fetched(picture.key, refusal=str(data))
                    else:
                        yield Fetched(picture.key, data, picture.description)
            finally:
                reader.close()

    def _archives(self) -> Sequence[tuple[Path, str]]:
        """Each archive with what its keys begin with."""
        path = Path(self._options.path).expanduser().absolute()
        if path.is_file():
            return [(path, "")]
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.is_file() and _kind(file)]
            base = path
        else:
            pattern = str(path)
            if not glob.has_magic(pattern):
                raise SourceUnreadable(f"there is no archive or folder {path}; set path to a {_known()} file")
            found = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
            base = Path(*_before_magic(path.parts))
        if not found:
            raise SourceUnreadable(f"no archive matches {path} (looked for {_known()})")
        return [(file, f"{file.relative_to(base).as_posix()}/") for file in sorted(found)]

    def _pictures(self, path: Path, prefix: str) -> Iterator[_Picture]:
        contents = self._contents(path)
        if self._layout(contents) == "webdataset":
            rows = _webdataset_rows(contents, self._options)
        else:
            rows = _folder_rows(contents, self._options, path)
        for name, row, refusal in rows:
            member = contents.members.get(name)
            picture = _Picture(prefix + name, member.state if member else refusal, member, refusal=refusal)
            yield picture if refusal or not member else self._described(picture, name, row, path, contents)
        for key, member in contents.refused.items():
            yield _Picture(prefix + key, member.state, refusal=member.refusal)
        if contents.damage:
            told = path.stat()
            key = next(key for key in _REST if key not in contents.refused)
            yield _Picture(prefix + key, f"{told.st_size}-{told.st_mtime_ns}", refusal=contents.damage)

    def _described(
        self, picture: _Picture, name: str, row: Mapping[str, Any], path: Path, contents: _Contents
    ) -> _Picture:
        try:
            description = described.describe(
                row,
                style=self._style,
                licence=self.licence,
                fallback=name,
                columns=self._options.columns,
                provenance={"archive": path.name, "file": name},
                signal=opt_out.signal_in_sidecars(name, contents.sidecars),
            )
        except described.BadDescription as error:
            return replace(picture, state=f"{picture.state} {error}", refusal=str(error))
        state = f"{picture.state}-{described.described_state(description)}"
        return replace(picture, state=state, description=description)

    def _layout(self, contents: _Contents) -> str:
        if self._options.layout != "auto":
            return self._options.layout
        names = contents.members
        if any(posixpath.basename(name) in METADATA for name in names):
            return "folder"
        pictures = {_sample(name)[0] for name in names if _sample(name)[1] in PICTURE_SUFFIXES}
        others = {_sample(name)[0] for name in names if _sample(name)[1] in (".json", ".cls")}
        return "webdataset" if pictures & others else "folder"

    def _contents(self, path: Path) -> _Contents:
        contents = _Contents()
        reader = _open(path, self._limits)
        try:
            for number, member in enumerate(reader.members(), start=1):
                _take(contents, member, number)
        except Refused as damage:
            if not contents.members and not contents.refused:
                raise SourceUnreadable(f"nothing in {path} can be read: {damage}; copy or pack it again") from None
            contents.damage = f"{damage}; what lies after it cannot be read: copy or pack the archive again"
        finally:
            reader.close()
        return contents


def refusal_of_name(name: str) -> str:
    """Why a member with this name is refused; "" when the name is harmless.

    Names are never used as paths here. They are refused all the same: whoever packed them meant no good, or the
    archive is damaged.
    """
    if any("\ud800" <= sign <= "\udfff" for sign in name):
        return "its name cannot be decoded; pack it again with UTF-8 names"
    if not name.strip() or any(ord(sign) < 32 or sign == "\x7f" for sign in name):
        return "its name is empty or holds control characters"
    plain = name.replace("\\", "/")
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain):
        return "its name is an absolute path"
    parts = plain.split("/")
    if ".." in parts:
        return "its name leads out of the archive"
    if len(name) > MAX_NAME_LENGTH or any(len(part.encode("utf-8", "replace")) > MAX_PART_LENGTH for part in parts):
        return f"its name is too long ({len(name)} characters)"
    return ""


@dataclass(frozen=True)
class _Limits:
    file_bytes: int
    unpacked_bytes: int

    def refusal(self, size: int) -> str:
        if size > self.file_bytes:
            return f"{size} bytes are more than the {self.file_bytes} that are allowed"
        return ""


def _take(contents: _Contents, member: Member, number: int) -> None:
    """Sort one member in."""
    refusal = member.refusal or refusal_of_name(member.name)
    name = posixpath.normpath(member.name.replace("\\", "/")) if not refusal else member.name
    if not refusal and (name in contents.members or name in contents.refused):
        refusal = "another member of the archive has the same name, and came first"
    if not refusal and opt_out.is_noai_sidecar(name):
        contents.sidecars.add(name)
    if not refusal:
        if not _is_hidden(name):
            contents.members[name] = member
        return
    if _is_text(name) and not refusal_of_name(member.name):
        contents.members.setdefault(name, replace(member, refusal=refusal))  # its picture says so
        return
    key = described.printable(name) or "(no name)"
    while key in contents.refused or key in contents.members:
        key = f"{key} (member {number})"
    contents.refused[key] = replace(member, refusal=refusal, state=f"{member.state} {refusal}")


def _folder_rows(contents: _Contents, options: ArchiveOptions, path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, row and refusal of each picture of an imagefolder."""
    rows: dict[str, dict[str, Any]] = {}
    again: list[tuple[str, str]] = []
    columns: set[str] = set()
    for name in [name for name in contents.members if posixpath.basename(name) in METADATA]:
        home = posixpath.dirname(name)
        where = f"{path}, {name}"
        for line, row in _metadata_rows(_text_of(contents.members[name], where), name, where):
            columns |= row.keys()
            file_name = row.pop("file_name", None)
            if not isinstance(file_name, str) or not file_name or refusal_of_name(file_name):
                raise SourceUnreadable(
                    f"{where}, line {line}: file_name {file_name!r} is not the name of a member; mend the line"
                )
            picture = posixpath.normpath(posixpath.join(home, file_name.replace("\\", "/")))
            if picture in rows:
                again.append((f"{picture} (again, {name} line {line})", f"{name}, line {line} names {picture} again"))
            else:
                rows[picture] = row
    if rows:
        captions = [options.columns["caption"]] if "caption" in options.columns else described.CAPTION_COLUMNS
        if not columns & set(captions):
            raise SourceUnreadable(
                f"{path}: the metadata has no column {' or '.join(map(repr, captions))}; "
                f"its columns are {described.listed(columns)}"
            )
    for picture, row in rows.items():
        if picture in contents.members:
            yield _captioned(picture, row, contents, options)
        elif picture not in contents.refused:
            yield picture, {}, "the metadata names it, but it is not in the archive"
    for name in contents.members:
        if _is_picture(name) and name not in rows:
            yield _captioned(name, {}, contents, options)
    for key, refusal in again:
        yield key, {}, refusal


def _captioned(
    name: str, row: dict[str, Any], contents: _Contents, options: ArchiveOptions
) -> tuple[str, dict[str, Any], str]:
    """The row of a picture; one that the metadata does not name has the caption that the options choose."""
    if row:
        return name, row, ""
    caption = options.columns.get("caption", described.CAPTION_COLUMNS[0])
    if options.captions == "file_names":
        return name, {caption: described.words_of_file_name(name)}, ""
    sidecar = contents.members.get(posixpath.splitext(name)[0] + SIDECAR_SUFFIX)
    try:
        return name, {caption: _decoded(sidecar)} if sidecar else {}, ""
    except Refused as refused:
        return name, {}, str(refused)


def _webdataset_rows(contents: _Contents, options: ArchiveOptions) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, row and refusal of each sample's picture."""
    samples: dict[str, dict[str, str]] = {}
    for name in contents.members:
        sample, suffix = _sample(name)
        samples.setdefault(sample, {})[suffix] = name
    caption = options.columns.get("caption", described.CAPTION_COLUMNS[0])
    for parts in samples.values():
        pictures = [name for suffix, name in parts.items() if suffix in PICTURE_SUFFIXES]
        for name in pictures[1:]:
            yield name, {}, f"its sample has another picture, {pictures[0]}, which is taken"
        if not pictures:
            for suffix, name in parts.items():
                if _is_picture(name):
                    yield name, {}, f"{suffix} is no picture's suffix, and one begins at the name's first dot here"
            continue
        name = pictures[0]
        texts = {suffix: contents.members[parts[suffix]] for suffix in WEBDATASET_TEXTS & parts.keys()}
        row: dict[str, Any] = {}
        try:
            if ".cls" in texts:
                row["category"] = _decoded(texts[".cls"]).strip()
            if ".json" in texts:
                row |= _json_of(texts[".json"])
            if ".txt" in texts:
                row[caption] = _decoded(texts[".txt"])
            if not row and options.captions == "file_names":
                row[caption] = described.words_of_file_name(name)
        except Refused as refused:
            yield name, {}, str(refused)
            continue
        yield name, row, ""


def _metadata_rows(text: str, name: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row of a metadata file."""
    if name.endswith(".csv"):
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            if "file_name" not in (rows.fieldnames or ()):
                raise SourceUnreadable(
                    f"{where} has no column 'file_name'; its columns are {described.listed(rows.fieldnames or ())}"
                )
            for row in rows:
                yield rows.line_num, {column: value for column, value in row.items() if column is not None}
        except csv.Error as error:
            raise SourceUnreadable(f"{where}, line {rows.line_num} is not CSV: {error}; mend the line") from None
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceUnreadable(f"{where}, line {number} is not JSON: {error}; mend the line") from None
        if not isinstance(row, dict):
            raise SourceUnreadable(f"{where}, line {number} is not a JSON object with columns; mend the line")
        yield number, row


def _text_of(member: Member, where: str) -> str:
    try:
        return _decoded(member)
    except Refused as refused:
        raise SourceUnreadable(f"{where} cannot be read: {refused}") from None


def _decoded(member: Member) -> str:
    if member.refusal:
        raise Refused(f"its text {member.name} cannot be read: {member.refusal}")
    try:
        return codecs.decode(member.text or b"", "utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"its text {member.name} is not UTF-8: {error}; save it as UTF-8") from None


def _json_of(member: Member) -> dict[str, Any]:
    try:
        said = json.loads(_decoded(member))
    except (ValueError, RecursionError) as error:
        raise Refused(f"its text {member.name} is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise Refused(f"its text {member.name} is not a JSON object")
    return said


def _sample(name: str) -> tuple[str, str]:
    """Of WebDataset: what a sample's members share, and the rest, from the first dot of the file's name on."""
    home, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{home}/{stem}", (dot + suffix).casefold()


def _is_picture(name: str) -> bool:
    return posixpath.splitext(name)[1].casefold() in PICTURE_SUFFIXES


def _is_text(name: str) -> bool:
    return posixpath.splitext(name)[1].casefold() in WEBDATASET_TEXTS or posixpath.basename(name) in METADATA


def _text_limit(name: str) -> int:
    return MAX_METADATA_BYTES if posixpath.basename(name) in METADATA else MAX_TEXT_BYTES


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _kind(path: Path) -> str:
    """The archive suffix of a file's name; "" when it has none."""
    return next((suffix for suffix in ARCHIVE_SUFFIXES if path.name.casefold().endswith(suffix)), "")


def _known() -> str:
    return ", ".join(ARCHIVE_SUFFIXES)


def _before_magic(parts: tuple[str, ...]) -> tuple[str, ...]:
    kept = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        kept.append(part)
    return tuple(kept)


def _open(path: Path, limits: _Limits) -> _Reader:
    suffix = _kind(path)
    if not suffix:
        hint = "; Python reads no Zstandard: pack it again as .tar.gz" if path.suffix == ".zst" else ""
        raise SourceUnreadable(f"{path} is no archive that can be read (known are {_known()}){hint}")
    try:
        return _Zip(path, limits) if suffix == ".zip" else _Tar(path, suffix, limits)
    except SourceUnreadable:
        raise
    except OSError as error:
        raise SourceUnreadable(f"{path} cannot be read: {error.strerror or error}; see that it may be read") from None


class _Zip:
    """A zip file by its central directory."""

    def __init__(self, path: Path, limits: _Limits):
        self._limits = limits
        self._file = _LenientNames(path.open("rb"))
        try:
            self._zip = zipfile.ZipFile(self._file)  # type: ignore[arg-type]
        except Exception as error:  # a damaged directory makes zipfile raise nearly anything
            self._file.close()
            if isinstance(error, OSError) and error.errno:
                raise
            raise SourceUnreadable(
                f"{path} is damaged, cut off or no zip file: {error or type(error).__name__}; copy or pack it again"
            ) from None
        self._file.lenient = False
        self._infos = self._zip.infolist()

    def members(self) -> Iterator[Member]:
        overlapping = self._overlapping()
        total = 0
        for place, info in enumerate(self._infos):
            if info.orig_filename.endswith("/") and not info.file_size:
                if refusal := refusal_of_name(info.orig_filename):
                    yield Member(info.orig_filename, 0, "folder", place, refusal)
                continue
            refusal = self._refusal(info)
            if not refusal and place in overlapping:
                refusal = "it overlaps another member: the archive is damaged, or a bomb"
            if not refusal and total + info.file_size > self._limits.unpacked_bytes:
                refusal = f"the archive unpacks to more than the {self._limits.unpacked_bytes} bytes that are allowed"
            total += info.file_size if not refusal else 0
            member = Member(info.orig_filename, info.file_size, f"{info.CRC:08x}-{info.file_size}", place, refusal)
            if not refusal and _is_text(member.name):
                [(_, text)] = self.read([member], limit=_text_limit(member.name))
                yield (replace(member, refusal=str(text)) if isinstance(text, Refused) else replace(member, text=text))
            else:
                yield member

    def read(self, members: Iterable[Member], limit: int | None = None) -> Iterator[tuple[Member, bytes | Refused]]:
        for member in members:
            try:
                with self._zip.open(self._infos[member.place]) as file:
                    yield member, _read(file, member.size, self._limits.file_bytes if limit is None else limit)
            except Refused as refused:
                yield member, refused
            except Exception as error:  # as above
                yield member, Refused(f"damaged in the archive: {error or type(error).__name__}")

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def _refusal(self, info: zipfile.ZipInfo) -> str:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.orig_filename in self._file.undecodable:
            return "its name cannot be decoded; pack it again with UTF-8 names"
        if info.flag_bits & _ENCRYPTED_FLAGS:
            return "it is encrypted; pack it again without a password"
        if kind == stat.S_IFLNK:
            return "it is a link; pack the file itself"
        if kind not in _REGULAR_TYPES:
            return "it is a device or another special file"
        if info.compress_type not in _ZIP_METHODS:
            return f"it is compressed by method {info.compress_type}; pack it again by deflate"
        if refusal := self._limits.refusal(info.file_size):
            return refusal
        return _ratio_refusal(info.file_size, info.compress_size)

    def _overlapping(self) -> set[int]:
        """Members whose content reaches into the next one's header, as in bombs that share one packed core."""
        order = sorted(range(len(self._infos)), key=lambda place: self._infos[place].header_offset)
        ends = [*(self._infos[place].header_offset for place in order), self._zip.start_dir][1:]
        return {
            place
            for place, end in zip(order, ends, strict=True)
            if self._infos[place].header_offset + _ZIP_LOCAL_HEADER + self._infos[place].compress_size > end
        }


class _LenientNames(io.RawIOBase):
    """A zip file's bytes, in which names that claim to be UTF-8 and are not lose that claim.

    One such name would make ``zipfile`` refuse the archive whole; so it refuses that member alone.

    Attributes:
        lenient: while the central directory is read.
        undecodable: such names, as ``zipfile`` then gives them.
    """

    def __init__(self, file: IO[bytes]):
        self.lenient = True
        self.undecodable: set[str] = set()
        self._raw = file

    def read(self, size: int = -1, /) -> bytes:
        data = self._raw.read(size)
        return self._mended(data) if self.lenient and data[:4] == b"PK\x01\x02" else data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def _mended(self, directory: bytes) -> bytes:
        mended, start = bytearray(directory), 0
        while directory[start : start + 4] == b"PK\x01\x02" and start + 46 <= len(directory):
            flags, name, extra, comment = (
                int.from_bytes(directory[start + at : start + at + 2], "little") for at in (8, 28, 30, 32)
            )
            raw = directory[start + 46 : start + 46 + name]
            try:
                raw.decode("utf-8" if flags & _UTF8_FLAG else "cp437")
            except UnicodeDecodeError:
                mended[start + 8 : start + 10] = (flags & ~_UTF8_FLAG).to_bytes(2, "little")
                self.undecodable.add(raw.decode("cp437"))
            start += 46 + name + extra + comment
        return bytes(mended)


class _Tar:
    """A tar file by one pass over its headers."""

    def __init__(self, path: Path, suffix: str, limits: _Limits):
        self._limits = limits
        self._compressed = suffix != ".tar"
        self._raw = path.open("rb")
        told = path.stat()
        self._archive_state = f"{told.st_size}-{told.st_mtime_ns}"
        content: IO[bytes] = self._raw
        if suffix in (".tar.gz", ".tgz"):
            content = gzip.GzipFile(fileobj=self._raw)  # type: ignore[assignment]
        elif suffix in (".tar.bz2", ".tbz2"):
            content = bz2.BZ2File(self._raw)  # type: ignore[assignment]
        self._stream = _Stream(content, self._raw if self._compressed else None, limits)

    def members(self) -> Iterator[Member]:
        try:
            tar = tarfile.TarFile(fileobj=self._stream, mode="r")  # type: ignore[arg-type]
            yield from self._each(tar)
        except (Refused, SourceUnreadable):
            raise
        except Exception as error:  # damaged headers make tarfile raise nearly anything
            raise Refused(f"damaged or cut off at byte {self._stream.tell()} of the archive: {error}") from None

    def read(self, members: Iterable[Member]) -> Iterator[tuple[Member, bytes | Refused]]:
        for member in members:
            try:
                self._stream.seek(member.place)
                data = _read(self._stream, member.size, self._limits.file_bytes)
                yield member, data
            except Refused as refused:
                yield member, refused
            except Exception as error:  # as above
                yield member, Refused(f"damaged in the archive: {error or type(error).__name__}")

    def close(self) -> None:
        self._stream.close()
        self._raw.close()

    def _each(self, tar: tarfile.TarFile) -> Iterator[Member]:
        total, end = 0, -1
        while info := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # it would keep a million of them
            if tar.offset <= end:
                raise Refused(f"damaged at byte {info.offset} of the archive: a header that leads back")
            end = tar.offset
            refusal = self._refusal(info)
            if info.isdir():
                if refusal_of_name(info.name):
                    yield Member(info.name, 0, "folder", info.offset_data, refusal_of_name(info.name))
                continue
            if not refusal and total + info.size > self._limits.unpacked_bytes:
                refusal = f"the archive unpacks to more than the {self._limits.unpacked_bytes} bytes that are allowed"
            total += info.size if not refusal else 0
            yield self._member(info, refusal)
        self._stream.seek(tar.offset)
        mark = self._stream.read(tarfile.BLOCKSIZE)
        if not mark:
            raise Refused(f"cut off at byte {tar.offset} of the archive, where its end mark should be")
        if mark.strip(b"\0"):
            raise Refused(f"damaged at byte {tar.offset} of the archive, where a header should be")
        while self._compressed and self._stream.read(_CHUNK):
            pass  # the checksum of the whole comes last

    def _member(self, info: tarfile.TarInfo, refusal: str) -> Member:
        state = f"{info.size}-{info.mtime}-{self._archive_state}"
        member = Member(info.name, info.size, state, info.offset_data, refusal)
        if refusal:
            return replace(member, state=f"{info.size}-{info.mtime}")
        if _is_text(info.name):
            try:
                text = _read(self._stream, info.size, _text_limit(info.name))
            except Refused as refused:
                if info.size > _text_limit(info.name):
                    return replace(member, refusal=str(refused))
                raise Refused(f"damaged or cut off in {described.printable(info.name)}: {refused}") from None
            return replace(member, text=text, state=f"{zlib.crc32(text):08x}-{info.size}")
        if self._compressed:
            return replace(member, state=f"{self._checksum(info):08x}-{info.size}")
        return member

    def _checksum(self, info: tarfile.TarInfo) -> int:
        checksum, left = 0, info.size
        while left:
            chunk = self._stream.read(min(left, _CHUNK))
            if not chunk:
                raise Refused(f"cut off in {described.printable(info.name)}")
            checksum = zlib.crc32(chunk, checksum)
            left -= len(chunk)
        return checksum

    def _refusal(self, info: tarfile.TarInfo) -> str:
        if info.issym() or info.islnk():
            return "it is a link; pack the file itself"
        if not info.isreg() and not info.isdir():
            return "it is a device or another special file"
        if info.size < 0:
            return "its header has a negative size"
        if info.issparse():
            return "it is a sparse file; pack it again without --sparse"
        return self._limits.refusal(info.size)


class _Stream:
    """A tar's content, read forward in bounded steps; a stream that unpacks far too well is a bomb."""

    def __init__(self, content: IO[bytes], packed: IO[bytes] | None, limits: _Limits):
        self._content = content
        self._packed = packed
        self._limits = limits

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise Refused(f"damaged at byte {self.tell()} of the archive: a header of {size} bytes")
        data = self._content.read(size)
        if self._packed is not None:
            self._check()
        return data

    def seek(self, offset: int) -> int:
        if self._packed is None:
            return self._content.seek(offset)
        while (left := offset - self._content.tell()) > 0:
            if not self.read(min(left, _CHUNK)):
                break
        return self._content.tell()

    def tell(self) -> int:
        return self._content.tell()

    def close(self) -> None:
        self._content.close()

    def _check(self) -> None:
        assert self._packed is not None
        unpacked = self._content.tell()
        # Headers and padding come on top of what the members hold.
        if unpacked > 2 * self._limits.unpacked_bytes:
            raise Refused(f"it unpacks to more than the {self._limits.unpacked_bytes} bytes that are allowed")
        if refusal := _ratio_refusal(unpacked, self._packed.tell()):
            raise Refused(refusal)


def _ratio_refusal(unpacked: int, packed: int) -> str:
    if unpacked > RATIO_COUNTS_FROM and unpacked > MAX_RATIO * max(packed, 1):
        return f"it unpacks to {unpacked // max(packed, 1)} times its size: taken for a bomb"
    return ""


def _read(file: Any, size: int, limit: int) -> bytes:
    """All of a member, chunk by chunk, so that a header that lies costs no memory.

    Raises:
        Refused: more than ``limit`` bytes, or fewer than the header says.
    """
    if size > limit:
        raise Refused(f"{size} bytes are more than the {limit} that are allowed")
    chunks, left = [], size
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise Refused(f"cut off: {size - left} of {size} bytes are there")
        chunks.append(chunk)
        left -= len(chunk)
    if isinstance(file, zipfile.ZipExtFile) and file.read(1):
        raise Refused(f"more than the {size} bytes its header says")
    return b"".join(chunks)
