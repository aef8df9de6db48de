"""The interface of a source: cheap listing first, bytes and descriptions of what is asked for later.

Belongs here: what ingestion knows of every source, and nothing of any one. A source never judges pictures, keeps none
and remembers nothing: what is new, changed or gone is found by ingestion, which compares two listings.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict


class SourceUnreadable(OSError):
    """A source as a whole cannot be read; the message names what is wrong and how to mend it.

    Never taken for "there is nothing": ingestion stops, and what was known of the source stays as it is.
    """


@dataclass(frozen=True)
class Listed:
    """One picture as a listing has it, before a byte of it is read.

    Attributes:
        key: names it within its source for as long as it is there (a path, a row's key, a URL).
        state: another value means that picture or description changed (size and time of change, an ETag, a digest).
        concept: what it shows, when the listing tells; by it small trials choose the same concepts in every source.
        variant: whether it is a variation of its concept.
    """

    key: str
    state: str
    concept: str = ""
    variant: bool = False


@dataclass(frozen=True)
class Description:
    """What a source says of a picture; the fields of :class:`~genai_assets.datasets.records.Record`.

    Attributes:
        added_at: when the source first had it, if the source tells; with its time zone. Else it is new when it is first
            ingested.
    """

    caption: str
    concept: str
    style: str
    licence: str
    category: str = ""
    keywords: tuple[str, ...] = ()
    variant: bool = False
    synthetic: bool = False
    opt_out: str = ""
    provenance: dict[str, str] = field(default_factory=dict)
    added_at: datetime | None = None


@dataclass(frozen=True)
class Fetched:
    """One picture that was asked for: its bytes and description, or why there are none.

    Attributes:
        key: as it was listed.
        data: the file's bytes as they came, good or bad; empty when ``refusal`` says why.
        description: None when ``refusal`` says why.
        refusal: why this picture was not taken, fit for a table people read ("leads out of the folder by a link"); the
            others go on.
        passing: with a ``refusal``: another try may go better though nothing changed (a server that did not answer, a
            file that may not be read just now). It is asked for again at the next ingestion, and a picture that was
            there before stays meanwhile.
    """

    key: str
    data: bytes = b""
    description: Description | None = None
    refusal: str = ""
    passing: bool = False


class DatasetSource(Protocol):
    """Something that pictures with captions come from.

    Attributes:
        name: names the source in records, for example ``icons:noto``; no two sources of one graph share it.
        licence: SPDX identifier of its pictures; single records may state another.
    """

    name: str
    licence: str

    def list(self) -> Iterable[Listed]:
        """Everything that is there now, each key once; cheap: nothing is decoded, no picture is read.

        Raises:
            SourceUnreadable: it cannot be listed.
        """
        ...

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """The pictures with these keys, in any order, each once, a bounded number of them in memory.

        What went wrong with one picture is its ``refusal``. A key that has gone since the listing is left out.

        Raises:
            SourceUnreadable: nothing more can be read at all.
        """
        ...


@dataclass(frozen=True)
class Surroundings:
    """What a source may know of the graph it is part of.

    Attributes:
        style: of pictures that state none: the house style.
        licence: SPDX identifier of pictures that state none.
        cache: a folder of the source's own for downloads, made on demand; safe to delete.
        offline: never use the network.
        max_file_bytes: a larger file is refused before it is read.
    """

    style: str
    licence: str
    cache: Path
    offline: bool = False
    max_file_bytes: int = 256 * 1024**2


class SourceOptions(BaseModel):
    """Options of a kind of source, as ``[[dataset.sources]]`` states them; a kind adds its own.

    Attributes:
        name: of the source; the kind and the place when not given.
        style, licence: of its pictures that state none; the graph's when not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    style: str | None = None
    licence: str | None = None


class SourceKind(Protocol):
    """What an entry point of the group ``genai_assets.sources`` names: a class that opens sources of one kind.

    Attributes:
        Options: its options; an unknown one is an error that names it.
    """

    Options: ClassVar[type[SourceOptions]]

    @classmethod
    def open(cls, options: Any, surroundings: Surroundings) -> DatasetSource:
        """A source by its options. Reads nothing yet.

        Raises:
            ValueError: options that do not go together.
        """
        ...
