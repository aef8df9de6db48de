"""Croissant: a dataset's description as JSON-LD, which search engines and loaders of datasets read.

Belongs here: the form of Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html) with its
vocabulary of responsible use (RAI 1.0). What is said of the dataset is ``dataset_card``'s to gather.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CROISSANT = "croissant.json"

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_SPLITS = {"train": "cr:TrainingSplit", "validation": "cr:ValidationSplit", "test": "cr:TestSplit"}


@dataclass(frozen=True)
class Column:
    """One column of the records' table: name, schema.org type, meaning, and whether it holds lists."""

    name: str
    kind: str
    meaning: str
    repeated: bool = False


COLUMNS: tuple[Column, ...] = (
    Column("id", "sc:Text", "SHA-256 of the picture's bytes."),
    Column("caption", "sc:Text", "What the picture shows."),
    Column("concept", "sc:Text", "What it shows whatever the style; no concept is in two splits."),
    Column("style", "sc:Text", "The look it is drawn in."),
    Column("category", "sc:Text", "Coarse class, empty when unknown."),
    Column("keywords", "sc:Text", "Further words.", repeated=True),
    Column("source", "sc:Text", "Where it came from."),
    Column("licence", "sc:Text", "SPDX identifier or expression."),
    Column("width", "sc:Integer", "Pixels."),
    Column("height", "sc:Integer", "Pixels."),
    Column("variant", "sc:Boolean", "A variation of its concept."),
    Column("synthetic", "sc:Boolean", "Drawn by a model."),
    Column("opt_out", "sc:Text", "The signal by which its maker reserves it from training, empty when there is none."),
    Column("provenance", "sc:Text", "JSON: what is needed to trace and credit it."),
    Column("split", "sc:Text", "train, validation, test, held_out (never trained on) or later (kept back)."),
)
"""What of a record is published, in the order of the table's columns."""


def croissant(
    *,
    name: str,
    description: str,
    version: str,
    table: str,
    sha256: str,
    size: int,
    splits: Sequence[str],
    licences: Sequence[str] = (),
    creators: Sequence[str] = (),
    url: str = "",
    language: str | None = None,
    keywords: Sequence[str] = (),
    published: str | None = None,
    citation: str = "",
    responsible_use: Mapping[str, str | Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The JSON-LD of a dataset whose records are one Parquet table with the columns of :data:`COLUMNS`.

    Args:
        name, description: of the dataset.
        version: digest of its content; goes behind the ``+`` of a semantic version, which Croissant asks for.
        table: the Parquet file's name beside ``croissant.json``.
        sha256, size: of that file; bytes.
        splits: names that occur in the column ``split``.
        licences: addresses, or SPDX identifiers that have none.
        creators: people or teams.
        url: where it can be found, if anywhere.
        language: of the captions, ISO 639-1.
        keywords: a few words to find it by.
        published: ISO date.
        citation: how to cite it.
        responsible_use: terms of Croissant RAI by name ("dataLimitations"), a sentence or several.
    """
    facts: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": description,
        "version": f"1.0.0+{version}",
        "url": url or None,
        "license": list(licences),
        "creator": [{"@type": "Organization", "name": creator} for creator in creators],
        "inLanguage": language,
        "keywords": list(keywords),
        "datePublished": published,
        "citeAs": citation or None,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": table,
                "name": table,
                "description": "One row a record; pictures are named by the digest of their bytes.",
                "contentUrl": table,
                "contentSize": f"{size} B",
                "encodingFormat": "application/x-parquet",
                "sha256": sha256,
            }
        ],
        "recordSet": [_splits(splits), _records(table)],
        **{
            f"rai:{term}": said if isinstance(said, str) else list(said)
            for term, said in (responsible_use or {}).items()
        },
    }
    return {term: said for term, said in facts.items() if said not in (None, [], "")}


def _records(table: str) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "records",
        "name": "records",
        "description": "What is known of each picture.",
        "key": [{"@id": "records/id"}, {"@id": "records/caption"}],
        "field": [_field(column, table) for column in COLUMNS],
    }


def _field(column: Column, table: str) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"records/{column.name}",
        "name": column.name,
        "description": column.meaning,
        "dataType": column.kind,
        "source": {"fileObject": {"@id": table}, "extract": {"column": column.name}},
    }
    if column.repeated:
        field["repeated"] = True
    if column.name == "split":
        field["dataType"] = ["sc:Text", "cr:Split"]
        field["references"] = {"field": {"@id": "splits/name"}}
    return field


def _splits(names: Sequence[str]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": "The splits, and which of Croissant's each is.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"splits/{name}",
                "name": name,
                "description": meaning,
                "dataType": "sc:Text",
            }
            for name, meaning in (("name", "As in the records."), ("kind", "Croissant's term, or empty."))
        ],
        "data": [{"splits/name": name, "splits/kind": _SPLITS.get(name, "")} for name in names],
    }
