"""Croissant: MLCommons' own library validates what is written and reads the records through it."""

import json
from pathlib import Path

import mlcroissant
import pytest

from genai_assets.datasets.croissant import COLUMNS
from genai_assets_tests.datasets.test_dataset_card import make, parts

__all__ = ["parts"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")  # rdflib's own


@pytest.fixture
def described(parts, tmp_path: Path) -> Path:
    make(parts, tmp_path / "card", governance={"creators": ["Team A"], "url": "https://example.org/set"})
    return tmp_path / "card" / "croissant.json"


def open_with_mlcroissant(path: Path) -> mlcroissant.Dataset:
    dataset = mlcroissant.Dataset(str(path))
    assert not dataset.metadata.ctx.issues.errors
    assert not dataset.metadata.ctx.issues.warnings
    return dataset


def test_mlcroissant_finds_no_error_and_no_warning_and_knows_the_dataset(described: Path) -> None:
    metadata = open_with_mlcroissant(described).metadata
    assert metadata.version == "1.0.0+v1"
    assert [creator.name for creator in metadata.creators or []] == ["Team A"]
    assert metadata.license and "https://creativecommons.org/licenses/by/4.0/" in metadata.license
    assert metadata.data_limitations and any("Faces are not detected" in limit for limit in metadata.data_limitations)
    assert metadata.data_collection and "3 pictures were left out for an opt-out" in metadata.data_collection


def test_mlcroissant_reads_every_record_with_every_field(described: Path, parts) -> None:
    manifest, splits = parts
    found = list(open_with_mlcroissant(described).records("records"))
    assert len(found) == len(manifest)
    assert set(found[0]) == {f"records/{column.name}" for column in COLUMNS}
    by_id = {row["records/id"].decode(): row for row in found}
    truth = manifest.merge(splits, on=["id", "caption"])
    for _, row in truth.iterrows():
        read = by_id[row["id"]]
        assert read["records/caption"].decode() == row["caption"]
        assert read["records/licence"].decode() == row["licence"]
        assert read["records/split"].decode() == row["split"]
        assert read["records/width"] == row["width"]
        assert bool(read["records/synthetic"]) is bool(row["synthetic"])
        assert [word.decode() for word in read["records/keywords"]] == list(row["keywords"])


def test_a_changed_table_is_noticed_by_its_digest(described: Path) -> None:
    table = described.with_name("manifest.parquet")
    table.write_bytes(table.read_bytes() + b"\0")
    with pytest.raises(mlcroissant.GenerationError) as caught:
        list(mlcroissant.Dataset(str(described)).records("records"))
    assert "hash" in str(caught.value.__cause__).lower()


def test_the_splits_are_named_in_croissants_terms(described: Path) -> None:
    rows = list(open_with_mlcroissant(described).records("splits"))
    kinds = {row["splits/name"]: row["splits/kind"] for row in rows}
    assert kinds == {"train": "cr:TrainingSplit", "test": "cr:TestSplit", "held_out": ""}


def test_what_is_not_known_is_left_out(parts, tmp_path: Path) -> None:
    make(parts, tmp_path / "card", governance={"language": None})
    said = json.loads((tmp_path / "card" / "croissant.json").read_text())
    assert not {"url", "creator", "inLanguage"} & said.keys()
