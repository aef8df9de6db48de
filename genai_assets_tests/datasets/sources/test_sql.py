"""Databases: a real SQLite file, read through a connection that cannot write."""

import logging
import sqlite3

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from genai_assets.datasets.sources import sql
from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets.datasets.sources.sql import SqlSource, read_only_query
from genai_assets_tests.datasets.sources.pictures import captions, everything, listing, png, refusals, surroundings

QUERY = "SELECT id, image, caption, licence, updated_at FROM pictures"


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE pictures (id, image, caption, licence, updated_at)")
        rows = [(number, png(number), f"picture {number}", "MIT", "monday") for number in range(5)]
        connection.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()
    return path


def change(path, statement, *values):
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


def source(path, query=QUERY, **options):
    url = options.pop("url", f"sqlite:///{path}")
    return SqlSource.open(SqlSource.Options(url=url, query=query, **options), surroundings(path.parent))


def test_rows_of_a_query_are_pictures(database):
    found = everything(source(database))
    assert {key: fetched.data for key, fetched in found.items()} == {str(n): png(n) for n in range(5)}
    said = found["3"].description
    assert (said.caption, said.licence, said.style) == ("picture 3", "MIT", "house")
    assert said.provenance == {"database": "shop.db", "file": "3"}
    assert source(database).name == "sql:shop.db"


def test_a_query_may_be_anything_that_selects(database):
    query = """
        -- the cheap ones; only those
        WITH cheap AS (SELECT * FROM pictures WHERE id < 3)
        SELECT id AS "key", image AS photo, caption || ' of ;'':x' AS title FROM cheap ORDER BY id;
    """
    whole = source(database, query, key="key", picture="photo", columns={"caption": "title"})
    assert captions(whole) == {str(n): f"picture {n} of ;':x" for n in range(3)}


def test_a_column_may_hold_paths_below_a_folder(database, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cup.png").write_bytes(png(1))
    change(database, "UPDATE pictures SET image = 'cup.png' WHERE id = 1")
    change(database, "UPDATE pictures SET image = '../shop.db' WHERE id = 2")
    query = f"{QUERY} WHERE id IN (1, 2)"
    found = everything(source(database, query, root=tmp_path / "photos"))
    assert found["1"].data == png(1)
    assert "leads out of the folder" in found["2"].refusal
    assert "set root" in refusals(source(database, query))["1"]


def test_without_a_state_column_every_change_is_seen(database):
    before = listing(source(database))
    assert listing(source(database)) == before
    change(database, "UPDATE pictures SET image = ? WHERE id = 1", png(9))
    change(database, "UPDATE pictures SET caption = 'another' WHERE id = 2")
    change(database, "DELETE FROM pictures WHERE id = 3")
    after = listing(source(database))
    assert {key for key in before if key in after and before[key] != after[key]} == {"1", "2"}
    assert before.keys() - after.keys() == {"3"}


def test_with_a_state_column_no_picture_is_read_to_list(database, monkeypatch):
    asked: list[str] = []
    whole = source(database, state="updated_at")
    real = sql._engine

    def listened(url):
        engine = real(url)
        sa.event.listen(engine, "before_cursor_execute", lambda c, cursor, statement, *_: asked.append(statement))
        return engine

    monkeypatch.setattr(sql, "_engine", listened)
    before = listing(whole)
    selected = [statement.partition("FROM")[0] for statement in asked if statement.startswith("SELECT pictures")]
    assert len(selected) == 1 and "caption" in selected[0] and "image" not in selected[0]
    change(database, "UPDATE pictures SET image = ?, updated_at = 'tuesday' WHERE id = 1", png(9))
    change(database, "UPDATE pictures SET image = ? WHERE id = 2", png(9))
    after = listing(whole)
    assert {key for key in before if before[key] != after[key]} == {"1"}
    assert everything(whole)["1"].data == png(9)


def test_a_row_that_has_gone_is_left_out_and_only_what_is_asked_for_is_fetched(database):
    assert [fetched.key for fetched in source(database).fetch(["4", "77"])] == ["4"]


def test_many_rows_are_fetched_in_parts(database):
    with sqlite3.connect(database) as connection:
        rows = [(number, b"%d" % number, f"{number}", "MIT", "") for number in range(5, 700)]
        connection.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()
    assert {fetched.key for fetched in source(database).fetch(["3", "699", "x"])} == {"3", "699"}
    found = everything(source(database))
    assert len(found) == 700
    assert all(
        found[key].data == key.encode() == found[key].description.caption.encode() for key in map(str, range(5, 700))
    )


def test_doubled_and_missing_keys_are_refused(database):
    change(database, "INSERT INTO pictures VALUES (1, ?, 'again', 'MIT', '')", png(8))
    change(database, "INSERT INTO pictures VALUES (NULL, ?, 'no key', 'MIT', '')", png(8))
    found = everything(source(database))
    assert found["1"].description.caption == "picture 1"
    assert "is that of a row before" in found["1 (again)"].refusal
    assert "'id', is empty" in found["row 7"].refusal


@pytest.mark.parametrize("value", [None, "", 7, 1.5])
def test_what_is_no_picture_is_refused(database, value):
    change(database, "UPDATE pictures SET image = ? WHERE id = 1", value)
    assert "column 'image'" in refusals(source(database))["1"]


# Only reading


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("DELETE FROM pictures", "begins with 'DELETE'"),
        ("", "must be a SELECT"),
        ("'text' SELECT 1", "must be a SELECT"),
        ("SELECT 1; DROP TABLE pictures", "one statement"),
        ("SELECT 1; ; SELECT 2", "one statement"),
        ("SELECT 1 /* ; */; -- fine \n SELECT 2", "one statement"),
        ("WITH gone AS (DELETE FROM pictures RETURNING *) SELECT * FROM gone", "the word DELETE"),
        ("SELECT * INTO other FROM pictures", "the word INTO"),
        ("SELECT * FROM pictures FOR UPDATE", "the word UPDATE"),
        ("PRAGMA query_only = OFF", "begins with 'PRAGMA'"),
    ],
)
def test_a_query_that_is_not_one_reading_statement_is_refused(database, query, complaint):
    with pytest.raises(ValueError, match=complaint):
        source(database, query)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 'a; DELETE' AS x;",
        'SELECT "update", `insert` FROM t -- ; drop\n ;',
        "/* drop */ select created_at, $$ ; delete $$ from [delete]",
        "SELECT a::text, 'it''s; x' FROM t",
    ],
)
def test_words_in_text_names_and_comments_are_no_statements(query):
    assert not read_only_query(query).rstrip().endswith(";")


@pytest.mark.parametrize("statement", ["DELETE FROM pictures", "CREATE TABLE t (a)", "ATTACH 'x.db' AS x"])
def test_the_connection_itself_cannot_write(database, statement, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = database.read_bytes()
    with sql._Session(sql._parsed(f"sqlite:///{database}"), "SELECT 1") as session:
        if statement.startswith("ATTACH"):
            session._connection.exec_driver_sql(statement)
            statement = "CREATE TABLE x.t (a)"
        with pytest.raises(sa.exc.OperationalError, match=r"readonly|read-only|query_only|unable to open"):
            session._connection.exec_driver_sql(statement)
    assert database.read_bytes() == before


def test_each_dialect_that_knows_how_is_told_to_read_only():
    assert sql.READ_ONLY["postgresql"] == "SET TRANSACTION READ ONLY"
    assert {"sqlite", "mysql", "mariadb", "oracle"} < set(sql.READ_ONLY)


# Errors, and what they must not show


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(SourceUnreadable, match=r"shop\.db cannot be read: unable to open database file"):
        listing(source(tmp_path / "shop.db"))
    assert not list(tmp_path.iterdir())


def test_a_query_that_fails_names_what_is_wrong(database):
    with pytest.raises(SourceUnreadable, match="no such table: orders"):
        listing(source(database, "SELECT * FROM orders"))
    with pytest.raises(SourceUnreadable, match=r"no column 'sku', which key names; its columns are caption, id, image"):
        listing(source(database, key="sku"))
    with pytest.raises(ValueError, match="key must name the column"):
        source(database, key=None)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("no url at all", "must be one of SQLAlchemy"),
        ("oracel://scott:tiger@host/db", "knows no 'oracel'"),
        ("sqlite://", "must name the SQLite database's file"),
        ("sqlite:///:memory:", "must name the SQLite database's file"),
    ],
)
def test_a_url_that_cannot_be_used_is_named_without_its_secrets(database, url, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        source(database, url=url)
    assert "tiger" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named(database):
    with pytest.raises(SourceUnreadable, match="needs the driver psycopg2, which is not installed") as caught:
        listing(source(database, url="postgresql+psycopg2://reader:s3cr%23t@127.0.0.1:1/shop?sslpassword=hunter2"))
    assert "s3cr" not in str(caught.value) and "hunter2" not in str(caught.value)


def test_the_url_or_its_password_may_come_from_the_environment(database, monkeypatch):
    monkeypatch.setenv("SHOP_URL", f"sqlite:///{database}")
    monkeypatch.setenv("SHOP_PASSWORD", "s3cr#t/x")
    assert len(listing(source(database, url="$SHOP_URL"))) == 5
    assert sql._parsed("postgresql+psycopg2://reader:$SHOP_PASSWORD@db/shop").password == "s3cr#t/x"
    with pytest.raises(ValueError, match="variable NO_SUCH, which is not set"):
        source(database, url="$NO_SUCH")


class FailingDriver(Exception):
    pass


def test_passwords_are_in_no_name_error_or_log(database, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    url = f"sqlite://reader:s3cr%23t%2Fx@/{database}?password=hunter2"
    monkeypatch.setattr(sql, "_parsed", sa.make_url)
    whole = source(database, url=url)

    def failing(_):
        raise FailingDriver("no way for reader with s3cr#t/x or s3cr%23t%2Fx or hunter2")

    monkeypatch.setattr(sa.engine.Engine, "connect", failing)
    with pytest.raises(SourceUnreadable) as caught:
        listing(whole)
    said = f"{caught.value} {caught.value.__cause__} {whole.name} {caplog.text} {whole._url!r}"
    assert "no way for reader with *** or *** or ***" in said
    assert caught.value.__suppress_context__
    for secret in ("s3cr", "hunter2"):
        assert secret not in str(caught.value) + whole.name + caplog.text
    options = SqlSource.Options(url=url, query=QUERY)
    assert "s3cr" not in repr(options) + options.model_dump_json()
    with pytest.raises(ValidationError) as wrong:
        SqlSource.Options(url=url)
    assert "s3cr" not in str(wrong.value)
