"""A team's own folder: every layout, hostile names one by one, and every error a person can make as a whole."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genai_assets.datasets.sources.picture_folder import PictureFolderSource
from genai_assets.datasets.sources.source import SourceUnreadable


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "products"
    folder.mkdir()
    return folder


def draw(path, seed=0, size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def describe(folder, *rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def states(folder, **options):
    return {item.key: item.state for item in PictureFolderSource(folder, "house", "LicenseRef-own", **options).list()}


def fetch(folder, **options):
    source = PictureFolderSource(folder, "house", "LicenseRef-own", **options)
    return {fetched.key: fetched for fetched in source.fetch([item.key for item in source.list()])}


def read(folder, **options):
    """Descriptions of what was taken."""
    return {key: fetched.description for key, fetched in fetch(folder, **options).items() if fetched.description}


def refusals(folder, **options):
    return {key: fetched.refusal for key, fetched in fetch(folder, **options).items() if fetched.refusal}


def test_captions_come_from_metadata_and_its_optional_columns_are_kept(folder):
    draw(folder / "cup.png", 1)
    draw(folder / "shelf" / "pot.png", 2)
    said = {"concept": "pot", "category": "kitchen", "keywords": ["tea", "clay"], "licence": "MIT", "style": "old"}
    describe(
        folder, {"file_name": "cup.png", "text": "A red  cup"}, {"file_name": "shelf/pot.png", "text": "x", **said}
    )
    found = read(folder)
    cup, pot = found["cup.png"], found["shelf/pot.png"]
    assert (cup.caption, cup.concept, cup.style, cup.licence) == ("A red cup", "a-red-cup", "house", "LicenseRef-own")
    assert (pot.concept, pot.category, pot.keywords) == ("pot", "kitchen", ("tea", "clay"))
    assert (pot.licence, pot.style) == ("MIT", "old")
    assert pot.provenance == {"folder": "products", "file": "shelf/pot.png"}
    assert fetch(folder)["cup.png"].data == (folder / "cup.png").read_bytes()


def test_metadata_may_be_a_table_with_commas(folder):
    draw(folder / "cup.png", 1)
    draw(folder / "pot.png", 2)
    (folder / "metadata.csv").write_text(
        'file_name,text,keywords\ncup.png,"a cup, red","tea, clay"\npot.png,a pot,\n', encoding="utf-8-sig"
    )
    found = read(folder)
    assert (found["cup.png"].caption, found["cup.png"].keywords) == ("a cup, red", ("tea", "clay"))
    assert (found["pot.png"].caption, found["pot.png"].keywords) == ("a pot", ())


def test_columns_of_other_names_are_understood_when_they_are_told(folder):
    draw(folder / "cup.png", 1)
    draw(folder / "pot.png", 2)
    (folder / "pot.txt").write_text("a pot")
    describe(folder, {"file_name": "cup.png", "title": "a cup", "rights": "MIT", "thing": "c1"})
    columns = {"caption": "title", "licence": "rights", "concept": "thing"}
    cup, pot = (read(folder, columns=columns)[f"{name}.png"] for name in ("cup", "pot"))
    assert (cup.caption, cup.licence, cup.concept, pot.caption) == ("a cup", "MIT", "c1", "a pot")
    with pytest.raises(
        SourceUnreadable, match=r"no column 'name', which columns\.caption names; its columns are file_name"
    ):
        states(folder, columns={"caption": "name"})


def test_captions_come_from_text_files_beside_the_pictures(folder):
    draw(folder / "cup.jpg")
    (folder / "cup.txt").write_text("a red cup\n")
    draw(folder / "bare.PNG", 1)
    found = read(folder)
    assert found["cup.jpg"].caption == "a red cup"
    assert (found["bare.PNG"].caption, found["bare.PNG"].concept) == ("", "bare-png")


def test_captions_come_from_the_names_by_choice_and_metadata_goes_before_them(folder):
    draw(folder / "shelf" / "red_tea-cup.png", 1)
    (folder / "shelf" / "red_tea-cup.txt").write_text("not read")
    draw(folder / "b.png", 2)
    describe(folder, {"file_name": "b.png", "caption": "a pot"})
    found = read(folder, captions="file_names")
    assert {key: said.caption for key, said in found.items()} == {
        "b.png": "a pot",
        "shelf/red_tea-cup.png": "red tea cup",
    }


def test_a_picture_the_metadata_leaves_out_takes_its_text_file(folder):
    draw(folder / "a.png", 1)
    draw(folder / "b.png", 2)
    (folder / "b.txt").write_text("the second")
    describe(folder, {"file_name": "a.png", "caption": "the first"})
    assert {said.caption for said in read(folder).values()} == {"the first", "the second"}


def test_a_corrupt_picture_comes_in_as_it_is(folder):
    (folder / "bad.png").write_bytes(b"\x89PNG but no more")
    (folder / "empty.png").touch()
    assert {key: fetched.data for key, fetched in fetch(folder).items()} == {
        "bad.png": b"\x89PNG but no more",
        "empty.png": b"",
    }


def test_hidden_files_and_other_files_are_passed_over(folder):
    draw(folder / "a.png")
    draw(folder / ".thumbnails" / "a.png", 1)
    (folder / "._a.png").write_bytes(b"resource fork")
    (folder / "notes.md").write_text("not a caption")
    assert list(fetch(folder)) == ["a.png"]


def test_noai_sidecars_and_columns_reserve_their_pictures(folder):
    for seed, name in enumerate(["a.png", "b.png", "c.png", "shut/d.png"]):
        draw(folder / name, seed)
    (folder / "a.png.noai").touch()
    (folder / "shut" / ".noai").touch()
    describe(folder, {"file_name": "b.png", "text": "b", "noai": True})
    said = {key: bool(description.opt_out) for key, description in read(folder).items()}
    assert said == {"a.png": True, "b.png": True, "c.png": False, "shut/d.png": True}
    before = states(folder)
    (folder / "a.png.noai").unlink()
    after = states(folder)
    assert [key for key in after if after[key] != before[key]] == ["a.png"]


def test_a_folder_without_pictures_is_empty_and_one_that_is_not_there_is_an_error(folder):
    assert states(folder) == {}
    with pytest.raises(SourceUnreadable, match=r"no folder .*nowhere"):
        states(folder / "nowhere")
    (folder / "file").touch()
    with pytest.raises(SourceUnreadable, match="is a file"):
        states(folder / "file")


# Metadata as a whole


def test_metadata_without_a_caption_column_names_the_columns_it_has(folder):
    draw(folder / "a.png")
    describe(folder, {"file_name": "a.png", "title": "a cup"})
    with pytest.raises(SourceUnreadable, match="no column 'text' or 'caption'; its columns are file_name, title"):
        states(folder)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{broken", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"file_name": 5, "text": "a"}', "line 2: file_name must be text, not 5"),
        ('{"file_name": "./a.png", "text": "b"}', r"line 2 names a\.png again"),
    ],
)
def test_a_line_that_cannot_be_understood_is_named(folder, line, complaint):
    draw(folder / "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n' + line + "\n")
    with pytest.raises(SourceUnreadable, match=complaint):
        states(folder)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("file_name,text\na.png,a cup, red\n", "line 2 has more cells than the first line has columns"),
        ("file_name,text\na.png\n", "line 2 has fewer cells"),
        ('file_name,text\na.png,"a cup\n', "line 2 is not CSV"),
        ("name,text\na.png,a\n", "no column 'file_name'"),
    ],
)
def test_a_row_of_a_table_that_cannot_be_understood_is_named(folder, table, complaint):
    draw(folder / "a.png")
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(SourceUnreadable, match=complaint):
        states(folder)


def test_two_metadata_files_are_one_too_many(folder):
    draw(folder / "a.png")
    describe(folder, {"file_name": "a.png", "text": "a"})
    (folder / "metadata.csv").write_text("file_name,text\na.png,b\n")
    with pytest.raises(SourceUnreadable, match="keep one of them"):
        states(folder)


def test_metadata_that_is_not_utf_8_is_named(folder):
    draw(folder / "a.png")
    (folder / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "Tür"}'.encode("latin-1"))
    with pytest.raises(SourceUnreadable, match=r"metadata\.jsonl is not UTF-8"):
        states(folder)


# One picture at a time


def test_files_that_the_metadata_names_but_are_not_there_are_refused_and_the_rest_comes(folder):
    draw(folder / "a.png")
    describe(folder, *({"file_name": f"{name}.png", "text": name} for name in "abc"))
    assert list(read(folder)) == ["a.png"]
    assert refusals(folder) == {
        f"{name}.png": f"metadata.jsonl, line {line}: the file is not there; add it, or remove the line"
        for line, name in ((2, "b"), (3, "c"))
    }


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": 5}, "metadata.jsonl, line 1: text must be text, not 5"),
        ({"text": "a", "keywords": 3}, "metadata.jsonl, line 1: keywords must be a list of texts"),
        ({"text": "a\ud800"}, "metadata.jsonl, line 1: text holds characters that are no text"),
    ],
)
def test_a_row_that_says_something_odd_costs_its_own_picture_only(folder, row, complaint):
    draw(folder / "a.png")
    draw(folder / "b.png", 1)
    describe(folder, {"file_name": "a.png", **row}, {"file_name": "b.png", "text": "b"})
    assert list(read(folder)) == ["b.png"]
    assert refusals(folder)["a.png"].startswith(complaint)


def test_a_text_file_that_is_not_utf_8_costs_its_own_picture_only(folder):
    draw(folder / "a.png")
    draw(folder / "b.png", 1)
    (folder / "a.txt").write_bytes("Tür".encode("latin-1"))
    assert list(read(folder)) == ["b.png"]
    assert refusals(folder) == {"a.png": "the text file beside it is not UTF-8; save it as UTF-8"}


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "shelf/../../secret.png", ".", "", "a\0.png"])
def test_a_name_that_leads_out_of_the_folder_is_refused_and_never_read(folder, name):
    draw(folder / "a.png")
    draw(folder.parent / "secret.png", 1)
    describe(folder, {"file_name": "a.png", "text": "a"}, {"file_name": name, "text": "b"})
    found = fetch(folder)
    assert [key for key, fetched in found.items() if fetched.data] == ["a.png"]
    [refused] = [fetched.refusal for fetched in found.values() if fetched.refusal]
    assert refused == "metadata.jsonl, line 2: its file_name is not a file below the folder"


def test_a_name_of_5_000_characters_is_refused_with_what_the_disk_says(folder):
    draw(folder / "a.png")
    describe(folder, {"file_name": "a.png", "text": "a"}, {"file_name": "x" * 5_000 + ".png", "text": "b"})
    assert list(read(folder)) == ["a.png"]
    [reason] = refusals(folder).values()
    assert "File name too long" in reason


def test_names_that_differ_by_case_only_are_two_pictures(folder):
    draw(folder / "Cup.png", 1)
    draw(folder / "cup.png", 2)
    describe(folder, {"file_name": "Cup.png", "text": "the great"}, {"file_name": "cup.png", "text": "the small"})
    assert {key: said.caption for key, said in read(folder).items()} == {"Cup.png": "the great", "cup.png": "the small"}


def test_a_name_that_is_no_text_is_refused(folder):
    draw(folder / "a.png")
    shutil.copy(folder / "a.png", os.fsencode(folder) + b"/T\xfcr.png")
    assert refusals(folder) == {"T\\udcfcr.png": "its name is not UTF-8; rename it"}
    for key in states(folder):
        key.encode()


def test_links_that_lead_out_are_refused_one_by_one(folder):
    draw(folder / "a.png")
    draw(folder.parent / "elsewhere" / "secret.png")
    (folder / "linked.png").symlink_to(folder.parent / "elsewhere" / "secret.png")
    (folder / "shelf").symlink_to(folder.parent / "elsewhere")
    describe(folder, {"file_name": "shelf/secret.png", "text": "s"})
    found = fetch(folder)
    assert [key for key, fetched in found.items() if fetched.data] == ["a.png"]
    assert refusals(folder) == {
        "linked.png": "leads out of the folder by a link; copy the file in",
        "shelf/": "leads out of the folder by a link",
        "shelf/secret.png": "metadata.jsonl, line 1: its file_name leads out of the folder by a link",
    }


def test_a_text_file_that_leads_out_is_not_read(folder):
    draw(folder / "a.png")
    (folder.parent / "secret.txt").write_text("a secret")
    (folder / "a.txt").symlink_to(folder.parent / "secret.txt")
    assert read(folder)["a.png"].caption == ""


def test_a_link_inside_the_folder_is_followed_and_one_to_nothing_is_refused(folder):
    draw(folder / "a.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    (folder / "c.png").symlink_to(folder / "gone.png")
    assert set(read(folder)) == {"a.png", "b.png"}
    assert refusals(folder) == {"c.png": "is a link to a file that is not there; remove it"}


def test_what_is_no_file_is_refused_without_waiting_for_it(folder):
    draw(folder / "a.png")
    os.mkfifo(folder / "pipe.png")
    assert refusals(folder) == {"pipe.png": "is not a file that can be read"}


def test_a_file_that_is_too_large_is_refused_unread(folder):
    draw(folder / "a.png")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(1 << 40)  # takes no place on the disk, and no memory unless it is read
    [reason] = refusals(folder).values()
    assert reason.startswith("1,099,511,627,776 bytes are more than the")


@pytest.fixture
def nobody():
    """A folder that an account of few rights may look at, and that account for as long as the test runs."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        root = os.geteuid() == 0
        try:
            yield Path(name), (lambda: os.seteuid(65534)) if root else lambda: None
        finally:
            if root:
                os.seteuid(0)


def test_a_file_that_may_not_be_read_is_refused_and_a_folder_that_may_not_stops_all(nobody):
    folder, become_nobody = nobody
    draw(folder / "a.png")
    draw(folder / "shut.png", 1)
    (folder / "shut.png").chmod(0)
    (folder / "a.png").chmod(0o644)
    (folder / "closed").mkdir(mode=0)
    become_nobody()
    with pytest.raises(SourceUnreadable, match=r"closed cannot be read: Permission denied"):
        states(folder)
    if os.geteuid() == 65534:
        os.seteuid(0)
    (folder / "closed").rmdir()
    become_nobody()
    found = fetch(folder)
    assert found["a.png"].data and not found["shut.png"].data
    assert (found["shut.png"].refusal, found["shut.png"].passing) == ("it cannot be read: Permission denied", True)


def test_a_picture_that_is_gone_since_the_listing_is_left_out(folder):
    draw(folder / "a.png")
    draw(folder / "b.png", 1)
    source = PictureFolderSource(folder, "house", "MIT")
    keys = [item.key for item in source.list()]
    (folder / "a.png").unlink()
    assert [fetched.key for fetched in source.fetch(keys)] == ["b.png"]


def test_a_link_that_took_a_pictures_place_since_the_listing_is_not_followed(folder):
    draw(folder / "a.png")
    draw(folder.parent / "secret.png", 1)
    source = PictureFolderSource(folder, "house", "MIT")
    keys = [item.key for item in source.list()]
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder.parent / "secret.png")
    [fetched] = source.fetch(keys)
    assert fetched.refusal.startswith("leads out of the folder by a link") and not fetched.data


# States


def test_a_state_changes_with_its_picture_and_its_words_only(folder):
    draw(folder / "a.png")
    draw(folder / "b.png", 1)
    seen = [states(folder)]

    def changed():
        seen.append(states(folder))
        return [key for key in seen[-1] if seen[-1][key] != seen[-2].get(key)]

    (folder / "notes.md").write_text("not a caption")
    assert changed() == []
    (folder / "a.txt").write_text("a cup")
    assert changed() == ["a.png"]
    (folder / "a.txt").write_text("a pot")
    os.utime(folder / "a.txt", ns=(1, 1))
    assert changed() == ["a.png"]
    draw(folder / "b.png", 2)
    assert changed() == ["b.png"]
    describe(folder, {"file_name": "b.png", "text": "a jug"})
    assert changed() == ["b.png"]
    draw(folder / "c.png", 3)
    assert changed() == ["c.png"]


def test_a_choice_that_changes_every_description_changes_every_state(folder):
    draw(folder / "a.png")
    assert len({states(folder)["a.png"], states(folder, captions="file_names")["a.png"]}) == 2
