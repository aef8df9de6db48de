"""Tables of pictures: three formats, paths and embedded bytes, and every row that can be wrong."""

import base64
import csv
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets.datasets.sources.table import TableSource
from genai_assets_tests.datasets.sources.pictures import captions, everything, listing, png, refusals, surroundings

CUP, POT = png(1), png(2)


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path


def source(path, *, max_file_bytes=10_000_000, **options):
    options = TableSource.Options(path=str(path), **options)
    return TableSource.open(options, surroundings(path.parent, max_file_bytes=max_file_bytes))


TABLES = ["t.parquet", "t.csv", "t.tsv", "t.jsonl"]


@pytest.mark.parametrize("name", TABLES)
def test_paths_are_relative_to_the_table(tmp_path, name):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "cup.png").write_bytes(CUP)
    (tmp_path / "pot.png").write_bytes(POT)
    rows = [
        {"file_name": "shelf/cup.png", "text": "a red cup", "licence": "CC0-1.0", "keywords": "tea, red"},
        {"file_name": "pot.png", "text": "a pot", "licence": "", "keywords": ""},
    ]
    found = everything(source(write(tmp_path / name, rows)))
    assert {key: fetched.data for key, fetched in found.items()} == {"shelf/cup.png": CUP, "pot.png": POT}
    cup = found["shelf/cup.png"].description
    assert (cup.caption, cup.licence, cup.keywords, cup.style) == ("a red cup", "CC0-1.0", ("tea", "red"), "house")
    assert cup.provenance == {"table": name, "file": "shelf/cup.png"}
    assert found["pot.png"].description.licence == "LicenseRef-own"


def test_parquet_holds_bytes_in_a_column_of_its_own_or_beside_a_path(tmp_path):
    plain = write(tmp_path / "plain.parquet", [{"bytes": CUP, "caption": "a"}, {"bytes": POT, "caption": "b"}])
    found = everything(source(plain))
    assert {key: fetched.data for key, fetched in found.items()} == {"row 1": CUP, "row 2": POT}
    rows = [{"image": {"bytes": data, "path": name}, "text": name} for data, name in [(CUP, "c.png"), (POT, "p.png")]]
    rows += [{"image": {"bytes": None, "path": "beside.png"}, "text": "x"}, {"image": None, "text": "y"}]
    rows += [{"image": {"bytes": CUP, "path": "c.png"}, "text": "the same label again"}]
    (tmp_path / "beside.png").write_bytes(POT)
    found = everything(source(write(tmp_path / "struct.parquet", rows)))
    assert found["c.png"].data == CUP and found["p.png"].data == POT and found["beside.png"].data == POT
    assert "column 'image', is empty" in found["row 4"].refusal
    assert found["c.png (row 5)"].description.caption == "the same label again"


@pytest.mark.parametrize("name", TABLES)
def test_text_may_be_base64(tmp_path, name):
    encoded = base64.b64encode(png(1, 300)).decode()
    assert len(encoded) > 131_072, "longer than the csv module takes by default"
    url = "data:image/png;base64," + base64.b64encode(POT).decode()
    rows = [{"sku": "1", "image": encoded}, {"sku": "2", "image": url}, {"sku": "3", "image": "no base64!"}]
    found = everything(source(write(tmp_path / name, rows), key="sku", picture_is="base64"))
    assert (found["1"].data, found["2"].data) == (png(1, 300), POT)
    assert "not base64" in found["3"].refusal
    assert everything(source(tmp_path / name, key="sku"))["2"].data == POT
    small = everything(source(tmp_path / name, key="sku", picture_is="base64", max_file_bytes=1000))
    assert "more than the 1,000" in small["1"].refusal


def test_columns_can_have_other_names(tmp_path):
    rows = [{"photo": "cup.png", "sku": 7, "title": "a red cup", "class": 3, "rights": "MIT"}]
    (tmp_path / "cup.png").write_bytes(CUP)
    columns = {"caption": "title", "category": "class", "licence": "rights"}
    [(key, cup)] = everything(
        source(write(tmp_path / "t.parquet", rows), picture="photo", key="sku", columns=columns)
    ).items()
    said = cup.description
    assert (key, said.caption, said.category, said.licence, cup.data) == ("7", "a red cup", "3", "MIT", CUP)


def test_paths_may_be_relative_to_another_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "cup.png").write_bytes(CUP)
    path = write(tmp_path / "t.jsonl", [{"path": "cup.png"}, {"path": str(tmp_path / "elsewhere" / "cup.png")}])
    assert {fetched.data for fetched in everything(source(path, root=tmp_path / "elsewhere")).values()} == {CUP}


def test_shards_are_one_table(tmp_path):
    for number in range(3):
        write(tmp_path / f"part-{number}.parquet", [{"image": png(number)}, {"image": png(number + 10)}])
    found = everything(source(tmp_path / "part-*.parquet"))
    assert len(found) == 6
    assert found["part-2.parquet/row 2"].data == png(12)


# Hostile and odd rows


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.png", "leads out of the folder"),
        ("shelf/../../secret.png", "leads out of the folder"),
        ("/etc/hostname", "leads out of the folder"),
        (".", "leads out of the folder"),
        ("linked.png", "by a link"),
        ("folder", "not that of a file"),
        ("fifo", "not that of a file"),
        ("gone.png", "not there"),
        ("https://example.org/a.png", "a URL"),
        ("a\0b.png", "zero byte"),
        ("a" * 5000, "File name too long"),
        ("big.png", "more than the 1,000 that are allowed"),
    ],
)
def test_a_path_that_is_no_file_below_the_folder_is_refused(tmp_path, name, reason):
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(POT)
    (home / "linked.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(home / "fifo")
    (home / "big.png").write_bytes(b"x" * 1001)
    (home / "cup.png").write_bytes(b"small")
    path = write(home / "t.jsonl", [{"path": name}, {"path": "cup.png", "text": "a cup"}])
    found = everything(source(path, max_file_bytes=1000))
    assert found.pop("cup.png").data == b"small"
    [refused] = found.values()
    assert reason in refused.refusal


@pytest.mark.parametrize("name", TABLES)
def test_a_doubled_key_is_refused_the_second_time(tmp_path, name):
    (tmp_path / "cup.png").write_bytes(CUP)
    path = write(tmp_path / name, [{"path": "cup.png", "text": str(n), "sku": ""} for n in range(3)])
    found = everything(source(path))
    assert found["cup.png"].description.caption == "0"
    assert len(found) == 3
    assert all("is that of a row before" in found[key].refusal for key in found if key != "cup.png")
    if name != "t.jsonl":
        assert all("'sku', is empty" in reason for reason in refusals(source(path, key="sku")).values())


def test_lines_that_cannot_be_read_are_refused_one_by_one(tmp_path):
    (tmp_path / "cup.png").write_bytes(CUP)
    (tmp_path / "t.jsonl").write_text('{"path": "cup.png"}\n{broken\n[1]\n\n{"path": "cup.png", "text": 5, "id": 1}\n')
    reasons = refusals(source(tmp_path / "t.jsonl"))
    assert "line 2 is not JSON" in reasons["row 2"]
    assert "line 3 is not a JSON object" in reasons["row 3"]
    assert captions(source(tmp_path / "t.jsonl")) == {"cup.png": ""}
    (tmp_path / "t.csv").write_text("path,text\ncup.png,a\ncup.png,a,b\ncup.png\n")
    reasons = refusals(source(tmp_path / "t.csv"))
    assert "line 3 has more cells" in reasons["row 2"]
    assert "line 4 has fewer cells" in reasons["row 3"]
    (tmp_path / "t.jsonl").write_text(json.dumps({"path": "cup.png"}) + "\n" + "x" * 2_000_000 + "\n{}\n")
    assert "more than" in refusals(source(tmp_path / "t.jsonl", max_file_bytes=1000))["row 2"]


def test_a_row_that_says_something_odd_is_refused_with_its_reason(tmp_path):
    path = write(tmp_path / "t.parquet", [{"image": CUP, "text": 5}, {"image": POT, "text": 6}])
    assert refusals(source(path))["row 1"] == "text must be text, not 5"


# What changed


def test_the_state_of_a_named_picture_follows_its_file_and_its_row(tmp_path):
    (tmp_path / "cup.png").write_bytes(CUP)
    path = write(tmp_path / "t.csv", [{"path": "cup.png", "text": "a"}])
    states = [listing(source(path))["cup.png"].state]
    assert listing(source(path))["cup.png"].state == states[0]
    os.utime(path)
    assert listing(source(path))["cup.png"].state == states[0]
    states.append(listing(source(write(path, [{"path": "cup.png", "text": "b"}])))["cup.png"].state)
    (tmp_path / "cup.png").write_bytes(POT + b"longer")
    states.append(listing(source(path))["cup.png"].state)
    (tmp_path / "cup.png").unlink()
    states.append(listing(source(path))["cup.png"].state)
    assert len(set(states)) == 4


def test_the_state_of_an_embedded_picture_follows_its_content(tmp_path):
    def write_pictures(name, *pictures):
        rows = [{"id": str(n), "image": base64.b64encode(data).decode()} for n, data in enumerate(pictures)]
        return listing(source(write(tmp_path / name, rows), key="id", picture_is="base64"))

    for name in TABLES:
        before = write_pictures(name, CUP, POT)
        after = write_pictures(name, CUP, CUP)
        assert before["0"] == after["0"]
        assert before["1"].state != after["1"].state
    path = write(tmp_path / "b.parquet", [{"id": 1, "image": CUP}])
    before = listing(source(path, key="id"))
    assert listing(source(path, key="id")) == before
    assert listing(source(write(path, [{"id": 1, "image": POT + b"x"}]), key="id")) != before


def test_a_state_column_is_believed(tmp_path):
    def state(picture, at):
        return listing(source(write(tmp_path / "t.parquet", [{"image": picture, "at": at}]), state="at"))["row 1"].state

    assert state(CUP, "1") == state(POT, "1")
    assert state(CUP, "1") != state(CUP, "2")


def test_only_what_is_asked_for_is_fetched(tmp_path):
    path = write(tmp_path / "t.parquet", [{"image": png(number)} for number in range(9)])
    found = {fetched.key: fetched.data for fetched in source(path).fetch(["row 8", "row 1", "row 99"])}
    assert found == {"row 1": png(0), "row 8": png(7)}


def test_listing_a_parquet_file_reads_no_picture_and_fetching_holds_few(tmp_path):
    large = [os.urandom(1_000_000) for _ in range(8)]
    path = tmp_path / "t.parquet"
    with pq.ParquetWriter(path, pa.schema({"image": pa.binary(), "text": pa.string()})) as file:
        for _ in range(16):
            file.write_table(pa.table({"image": large, "text": ["a"] * 8}), row_group_size=8)

    del large
    pool = pa.default_memory_pool()
    pool.release_unused()
    before = pa.total_allocated_bytes()
    keys = list(listing(source(path)))
    assert len(keys) == 128
    tracemalloc.start()
    most = 0
    for fetched in source(path).fetch(keys):
        assert len(fetched.data) == 1_000_000
        most = max(most, pa.total_allocated_bytes() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 64_000_000, "of 128 MB"
    assert peak < 32_000_000


# The whole


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
def test_a_table_that_cannot_be_read_is_never_empty(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(SourceUnreadable, match="there is no table"):
        listing(source(path))
    with pytest.raises(SourceUnreadable, match="no table matches"):
        listing(source(tmp_path / "x*.csv"))
    path.write_bytes(b"\xff\xfe\x00 neither\n")
    with pytest.raises(SourceUnreadable, match=r"write it again|not UTF-8|no line with a JSON object"):
        listing(source(path))
    write(path, [{"title": "a", "path": "cup.png"}])
    for option, column in (("picture", "photo"), ("key", "sku"), ("state", "at")):
        with pytest.raises(SourceUnreadable, match=f"no column '{column}', which {option} names; its columns are path"):
            listing(source(path, **{option: column}))
    with pytest.raises(SourceUnreadable, match=r"no column 'label', which columns\.caption names"):
        listing(source(path, columns={"caption": "label"}))
    write(path, [{"title": "a"}])
    with pytest.raises(SourceUnreadable, match="set picture to the one with the pictures; its columns are title"):
        listing(source(path))


def test_a_parquet_file_that_is_cut_off_or_damaged_is_unreadable(tmp_path):
    path = write(tmp_path / "t.parquet", [{"image": png(n), "text": "x" * 50} for n in range(9)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(SourceUnreadable, match="cannot be read as Parquet"):
        listing(source(path))
    keys = [f"row {n}" for n in range(1, 10)]
    path.write_bytes(whole[:100] + b"\xff" * 2000 + whole[2100:])
    with pytest.raises(SourceUnreadable, match="cannot be read as Parquet"):
        list(source(path).fetch(keys))


def test_an_unknown_suffix_or_option_is_named(tmp_path):
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(SourceUnreadable, match=r"known are \.parquet"):
        listing(source(tmp_path / "t.xlsx"))
    with pytest.raises(ValueError, match="pitcure"):
        source(tmp_path / "t.csv", pitcure="image")
    with pytest.raises(ValueError, match="'captoin', which is no field"):
        source(tmp_path / "t.csv", columns={"captoin": "title"})


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=8),
    st.just("\ud800"),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.sampled_from(["bytes", "path"]), st.one_of(st.none(), st.integers(), st.text(max_size=5))),
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["image", "text", "id", "keywords", "noai"]), VALUES), max_size=6)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=ROWS,
    key=st.sampled_from([None, "id"]),
    state=st.sampled_from([None, "text"]),
    picture_is=st.sampled_from(["auto", "path", "base64"]),
)
def test_every_row_is_given_or_refused_whatever_it_holds(tmp_path, rows, key, state, picture_is):
    rows = [{"image": "a.png", "id": "one", "text": "x"}, *rows]
    path = write(tmp_path / "t.jsonl", rows)
    assert len(everything(source(path, key=key, state=state, picture_is=picture_is))) == len(rows)
