"""Sources from files and databases through raw_data: the settings name them, the records come out."""

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genai_assets import stages
from genai_assets.settings import Settings
from genai_assets_tests.datasets.sources.pictures import png
from genai_assets_tests.datasets.sources.test_archive import write_tar, write_zip


@pytest.fixture
def home(tmp_path, monkeypatch):
    import sqlite3

    datasets.disable_progress_bars()
    write_zip(tmp_path / "a.zip", {"cup.png": png(1, 64), "cup.txt": "a cup", "../evil.png": png(2, 64)})
    write_tar(tmp_path / "00.tar", {"1.png": png(3, 64), "1.json": b'{"caption": "a pot", "licence": "CC0-1.0"}'})
    rows = {"image": [png(4, 64), png(5, 64)], "text": ["a jug", "a jug again"], "sku": [1, 1]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": png(6, 64), "path": None}], "text": ["a bowl"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "bowls"))
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE pictures (id, image, text)")
        connection.execute("INSERT INTO pictures VALUES (7, ?, 'a spoon')", (png(7, 64),))
    connection.close()
    (tmp_path / "genai.toml").write_text(
        """
        home = "home"
        [dataset]
        house_style = "acme"
        sources = [
            {kind = "archive", path = "a.zip"},
            {kind = "archive", path = "00.tar"},
            {kind = "table", path = "t.parquet", key = "sku"},
            {kind = "hugging-face", path = "bowls", style = "other"},
            {kind = "sql", url = "sqlite:///shop.db", query = "SELECT * FROM pictures"},
        ]
        """
    )
    monkeypatch.setenv("GENAI_CONFIG", str(tmp_path / "genai.toml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_kind_gives_records_once_and_what_changed_afterwards(home):
    first = stages.raw_data(Settings())
    manifest = pd.read_parquet(first.file("manifest.parquet"))
    assert {(row.source, row.caption, row.licence, row.style) for row in manifest.itertuples()} == {
        ("archive:a.zip", "a cup", "LicenseRef-own", "acme"),
        ("archive:00.tar", "a pot", "CC0-1.0", "acme"),
        ("table:t.parquet", "a jug", "LicenseRef-own", "acme"),
        ("hugging-face:bowls", "a bowl", "LicenseRef-own", "other"),
        ("sql:shop.db", "a spoon", "LicenseRef-own", "acme"),
    }
    refused = pd.read_parquet(first.file("refused.parquet"))
    assert set(zip(refused["source"], refused["key"], strict=True)) == {
        ("archive:a.zip", "../evil.png"),
        ("table:t.parquet", "1 (again)"),
    }
    assert stages.raw_data(Settings()).path == first.path

    write_zip(home / "a.zip", {"cup.png": png(1, 64), "cup.txt": "another cup"})
    changes = pd.read_parquet(stages.raw_data(Settings()).file("changes.parquet"))
    assert [(row.change, row.source, row.key) for row in changes.itertuples()] == [
        ("changed", "archive:a.zip", "cup.png")
    ]
