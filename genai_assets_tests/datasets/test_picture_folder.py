"""A team's own folder: both layouts, and every error a person can make with them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from genai_assets.datasets.picture_folder import PictureFolderSource, slug
from genai_assets.datasets.picture_store import PictureStore


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


def read(folder, **options):
    store = PictureStore(folder.parent / "pictures")
    source = PictureFolderSource(folder, "house", "LicenseRef-own", **options)
    return {record.provenance["file"]: record for record in source.read(store)}


def test_captions_come_from_metadata_and_its_optional_columns_are_kept(folder):
    draw(folder / "cup.png", 1)
    draw(folder / "shelf" / "pot.png", 2)
    described = {"concept": "pot", "category": "kitchen", "keywords": ["tea", "clay"], "licence": "MIT", "style": "old"}
    describe(
        folder, {"file_name": "cup.png", "text": "A red  cup"}, {"file_name": "shelf/pot.png", "text": "x", **described}
    )
    records = read(folder)
    cup, pot = records["cup.png"], records["shelf/pot.png"]
    assert (cup.caption, cup.concept, cup.style, cup.licence) == ("A red cup", "a-red-cup", "house", "LicenseRef-own")
    assert (cup.width, cup.height, cup.source) == (48, 40, "folder:products")
    assert (pot.concept, pot.category, pot.keywords) == ("pot", "kitchen", ("tea", "clay"))
    assert (pot.licence, pot.style) == ("MIT", "old")


def test_captions_come_from_text_files_beside_the_pictures(folder):
    draw(folder / "cup.jpg")
    (folder / "cup.txt").write_text("a red cup\n")
    draw(folder / "bare.PNG", 1)
    records = read(folder)
    assert records["cup.jpg"].caption == "a red cup"
    assert (records["bare.PNG"].caption, records["bare.PNG"].concept) == ("", "bare-png")


def test_a_picture_the_metadata_leaves_out_takes_its_text_file(folder):
    draw(folder / "a.png", 1)
    draw(folder / "b.png", 2)
    (folder / "b.txt").write_text("the second")
    describe(folder, {"file_name": "a.png", "caption": "the first"})
    assert {record.caption for record in read(folder).values()} == {"the first", "the second"}


def test_a_corrupt_picture_still_comes_in_without_a_size(folder):
    draw(folder / "good.png")
    (folder / "bad.png").write_bytes(b"\x89PNG but no more")
    (folder / "empty.png").touch()
    records = read(folder)
    assert (records["bad.png"].width, records["bad.png"].height) == (0, 0)
    assert records["empty.png"].width == 0
    assert records["good.png"].width == 48


def test_hidden_files_are_passed_over(folder):
    draw(folder / "a.png")
    draw(folder / ".thumbnails" / "a.png", 1)
    (folder / "._a.png").write_bytes(b"resource fork")
    assert list(read(folder)) == ["a.png"]


def test_a_missing_folder_a_file_and_an_empty_folder_are_told_apart(folder):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        read(folder / "nowhere")
    with pytest.raises(ValueError, match="no pictures in"):
        read(folder)
    (folder / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        read(folder / "file")


def test_metadata_without_a_caption_column_names_the_columns_it_has(folder):
    draw(folder / "a.png")
    describe(folder, {"file_name": "a.png", "title": "a cup"})
    with pytest.raises(ValueError, match="no column 'text' or 'caption'; its columns are file_name, title"):
        read(folder)


def test_files_that_the_metadata_names_but_are_not_there_are_listed(folder):
    draw(folder / "a.png")
    describe(folder, {"file_name": "a.png", "text": "a"}, *({"file_name": f"{n}.png", "text": "b"} for n in range(7)))
    with pytest.raises(FileNotFoundError, match=r"names 7 files that are not there: 0\.png, .*4\.png, …"):
        read(folder)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{broken", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"file_name": "a.png", "text": 5}', "line 2: text must be text, not 5"),
        ('{"file_name": "a.png", "text": "a", "keywords": 3}', "line 2: keywords must be a list"),
        ('{"text": "no name"}', "line 2: file_name '' is not a file below"),
    ],
)
def test_a_line_that_cannot_be_understood_is_named(folder, line, complaint):
    draw(folder / "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=complaint):
        read(folder)


def test_text_that_is_not_utf_8_is_named(folder):
    draw(folder / "a.png")
    (folder / "a.txt").write_bytes("Tür".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        read(folder)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "shelf/../../secret.png", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(folder, name):
    draw(folder / "a.png")
    draw(folder.parent / "secret.png")
    describe(folder, {"file_name": name, "text": "a"})
    with pytest.raises(ValueError, match="is not a file below"):
        read(folder)


def test_a_link_that_leads_out_of_the_folder_is_refused(folder):
    draw(folder / "a.png")
    draw(folder.parent / "elsewhere" / "secret.png")
    (folder / "linked.png").symlink_to(folder.parent / "elsewhere" / "secret.png")
    with pytest.raises(ValueError, match=r"linked\.png is a link that leads out"):
        read(folder)
    (folder / "linked.png").unlink()
    (folder / "shelf").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ValueError, match="shelf is a link that leads out"):
        read(folder)


def test_a_link_inside_the_folder_is_followed_and_one_to_nothing_is_named(folder):
    draw(folder / "a.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    assert set(read(folder)) == {"a.png", "b.png"}
    (folder / "c.png").symlink_to(folder / "gone.png")
    with pytest.raises(ValueError, match=r"c\.png is a link to a file that is not there"):
        read(folder)


def test_the_fingerprint_changes_with_pictures_and_captions_only(folder):
    def fingerprint():
        return PictureFolderSource(folder, "house", "MIT").fingerprint()

    draw(folder / "a.png")
    seen = [fingerprint()]
    (folder / "notes.md").write_text("not a caption")
    assert fingerprint() == seen[0]
    (folder / "a.txt").write_text("a cup")
    seen.append(fingerprint())
    (folder / "a.txt").write_text("a pot")
    os.utime(folder / "a.txt", ns=(1, 1))
    seen.append(fingerprint())
    draw(folder / "b.png", 1)
    seen.append(fingerprint())
    assert len(set(seen)) == 4


def test_a_limit_keeps_the_same_pictures_each_time(folder):
    for number in range(8):
        draw(folder / f"{number}.png", number)
    assert list(read(folder, limit=3)) == list(read(folder, limit=3))
    assert len(read(folder, limit=3)) == 3


def test_a_slug_is_letters_digits_and_dashes():
    assert slug("A red cup!") == "a-red-cup"
    assert slug("Tür_3") == "tür-3"
