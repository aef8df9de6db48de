"""Archives: what is in them, and everything that a hostile or broken one can hold."""

import builtins
import io
import json
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genai_assets.datasets.sources import archive
from genai_assets.datasets.sources.archive import ArchiveSource, refusal_of_name
from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets_tests.datasets.sources.pictures import (
    captions,
    everything,
    listing,
    png,
    refusals,
    surroundings,
)

CUP, POT = png(1), png(2)


def write_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def write_tar(path, members):
    with tarfile.open(path, {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2"}.get(path.suffix, "w")) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def write(path, members):
    return write_zip(path, members) if path.suffix == ".zip" else write_tar(path, members)


def source(path, *, max_file_bytes=10_000_000, **options):
    options = ArchiveSource.Options(path=str(path), **options)
    return ArchiveSource.open(options, surroundings(Path(path).parent, max_file_bytes=max_file_bytes))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2"])
def test_pictures_come_with_metadata_sidecars_or_no_caption(tmp_path, name):
    rows = [{"file_name": "cup.png", "text": "a red cup", "licence": "CC0-1.0", "keywords": ["tea"]}]
    members = {
        "shelf/cup.png": CUP,
        "shelf/metadata.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "./pot.JPG": POT,
        "pot.txt": "a pot\n".encode("utf-8-sig"),
        "bare.webp": b"not even a picture",
        "README.md": b"passed over",
        "__MACOSX/._cup.png": b"passed over",
        ".hidden.png": b"passed over",
    }
    found = everything(source(write(tmp_path / name, members)))
    assert {key: fetched.data for key, fetched in found.items()} == {
        "shelf/cup.png": CUP,
        "pot.JPG": POT,
        "bare.webp": b"not even a picture",
    }
    cup = found["shelf/cup.png"].description
    assert (cup.caption, cup.licence, cup.style, cup.keywords) == ("a red cup", "CC0-1.0", "house", ("tea",))
    assert cup.provenance == {"archive": name, "file": "shelf/cup.png"}
    assert found["pot.JPG"].description.caption == "a pot"
    assert found["bare.webp"].description.concept == "bare-webp"


def test_metadata_may_be_csv_with_columns_of_other_names(tmp_path):
    table = 'file_name,title\ncup.png,"a cup, red"\n'
    path = write_zip(tmp_path / "a.zip", {"cup.png": CUP, "metadata.csv": table})
    assert captions(source(path, columns={"caption": "title"})) == {"cup.png": "a cup, red"}
    with pytest.raises(SourceUnreadable, match="no column 'text' or 'caption'; its columns are file_name, title"):
        listing(source(path))


def test_captions_may_come_from_file_names(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a/red_cup.png": CUP, "a/red_cup.txt": "not this"})
    assert captions(source(path, captions="file_names")) == {"a/red_cup.png": "red cup"}


def test_a_webdataset_shard_is_read_by_samples(tmp_path):
    members = {
        "0001.jpg": CUP,
        "0001.json": json.dumps(
            {"caption": "from json", "license": "CC0-1.0", "url": "https://example.org/1"}
        ).encode(),
        "0001.cls": b"7",
        "0002.PNG": POT,
        "0002.txt": b"from text",
        "0002.seg.png": b"another channel of the sample",
        "0003.webp": CUP,
        "0003.png": POT,
        "0003.json": b"{broken",
        "0004.seg.png": POT,
        "0005.txt": b"no picture",
        "0006.jpg": CUP,
        "0006.json": b"[1]",
    }
    found = everything(source(write_tar(tmp_path / "00000.tar", members)))
    assert set(found) == {"0001.jpg", "0002.PNG", "0003.webp", "0003.png", "0004.seg.png", "0006.jpg"}
    first, second = found["0001.jpg"].description, found["0002.PNG"].description
    assert (first.caption, first.category, first.licence) == ("from json", "7", "CC0-1.0")
    assert first.provenance["url"] == "https://example.org/1"
    assert (second.caption, found["0002.PNG"].data) == ("from text", POT)
    assert "0003.json is not JSON" in found["0003.webp"].refusal
    assert "another picture, 0003.webp" in found["0003.png"].refusal
    assert "no picture's suffix" in found["0004.seg.png"].refusal
    assert "0006.json is not a JSON object" in found["0006.jpg"].refusal


def test_the_layout_can_be_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"cup.v2.png": CUP, "cup.v2.txt": b"second", "cup.json": b"{}"})
    assert captions(source(path)) == {"cup.v2.png": "second"}
    assert list(refusals(source(path, layout="webdataset"))) == ["cup.v2.png"]


def test_several_archives_are_read_from_a_folder_or_a_pattern(tmp_path):
    (tmp_path / "shards" / "more").mkdir(parents=True)
    write_tar(tmp_path / "shards" / "1.tar", {"cup.png": CUP})
    write_zip(tmp_path / "shards" / "more" / "2.zip", {"cup.png": POT})
    (tmp_path / "shards" / "notes.txt").touch()
    whole = source(tmp_path / "shards")
    assert {key: fetched.data for key, fetched in everything(whole).items()} == {
        "1.tar/cup.png": CUP,
        "more/2.zip/cup.png": POT,
    }
    assert set(everything(source(tmp_path / "shards" / "*.tar"))) == {"1.tar/cup.png"}
    assert set(everything(source(tmp_path / "shards" / "**" / "*.zip"))) == {"more/2.zip/cup.png"}
    [only] = whole.fetch(["more/2.zip/cup.png"])
    assert only.data == POT


def test_a_reservation_beside_a_picture_is_kept(tmp_path):
    found = everything(source(write_zip(tmp_path / "a.zip", {"cup.png": CUP, "cup.png.noai": "", "pot.png": POT})))
    assert found["cup.png"].description.opt_out
    assert not found["pot.png"].description.opt_out


# What changed


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_a_state_changes_with_the_picture_and_with_its_caption_only(tmp_path, name):
    members = {"cup.png": CUP, "pot.png": POT, "pot.txt": b"a pot"}
    before = listing(source(write(tmp_path / name, members)))
    assert listing(source(tmp_path / name)) == before
    after = listing(source(write(tmp_path / name, {**members, "pot.txt": b"a cap"})))
    assert after["pot.png"].state != before["pot.png"].state
    changed = listing(source(write(tmp_path / name, {**members, "cup.png": png(3)})))
    assert changed["cup.png"].state != before["cup.png"].state
    if name != "a.tar":  # which has no checksums, so that a rewritten one counts as changed
        assert after["cup.png"] == before["cup.png"]
        assert changed["pot.png"] == before["pot.png"]


def test_listing_reads_no_picture_of_a_zip_or_tar(tmp_path, monkeypatch):
    paths = [write(tmp_path / name, {"a.png": png(1, 300), "b.txt": b"x"}) for name in ("a.zip", "a.tar")]
    read: list[int] = []
    real = Path.open

    class Counting(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: Counting(self) if mode == "rb" else real(self, mode, *a, **k)
    )
    for path in paths:
        read.clear()
        assert "a.png" in listing(source(path))
        assert 0 < sum(read) < 8_000 < path.stat().st_size


def test_a_key_that_has_gone_is_left_out(tmp_path):
    assert list(source(write_zip(tmp_path / "a.zip", {"cup.png": CUP})).fetch(["gone.png"])) == []


# Hostile members

HOSTILE_NAMES = [
    ("../evil.png", "leads out"),
    ("shelf/../../evil.png", "leads out"),
    ("..\\evil.png", "leads out"),
    ("/etc/evil.png", "absolute"),
    ("\\evil.png", "absolute"),
    ("C:\\evil.png", "absolute"),
    ("a" * 5000 + ".png", "too long"),
    ("a" * 300 + ".png", "too long"),
    ("new\nline.png", "control characters"),
]


@pytest.mark.parametrize(("name", "reason"), HOSTILE_NAMES)
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_a_hostile_name_is_refused_and_the_others_are_given(tmp_path, name, reason, suffix):
    found = everything(source(write(tmp_path / f"a{suffix}", {name: POT, "cup.png": CUP})))
    assert found.pop("cup.png").data == CUP
    [refused] = found.values()
    assert reason in refused.refusal
    assert len(refused.key) < 300


def test_names_that_cannot_be_decoded_are_refused_one_by_one(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"é1.png": POT, "cup.png": CUP, "é2.png": POT})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    reasons = refusals(source(path))
    assert len(reasons) == 2
    assert all("cannot be decoded" in reason for reason in reasons.values())
    assert captions(source(path)) == {"cup.png": ""}

    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        for name in ("é.png", "cup.png"):
            file.addfile(tarfile.TarInfo(name))
    [reason] = refusals(source(path)).values()
    assert "cannot be decoded" in reason


def test_doubled_names_are_refused_but_for_the_first(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("cup.png", CUP)
        file.writestr("cup.png", POT)
        file.writestr("./cup.png", POT)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for data in (CUP, POT, POT):
            info = tarfile.TarInfo("cup.png")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    for name in ("a.zip", "a.tar"):
        found = everything(source(tmp_path / name))
        assert found.pop("cup.png").data == CUP
        assert len(found) == 2
        assert all("same name" in fetched.refusal for fetched in found.values())


def test_names_that_differ_in_case_alone_are_two(tmp_path):
    for name in ("a.zip", "a.tar"):
        found = everything(source(write(tmp_path / name, {"Cup.png": CUP, "cup.png": POT})))
        assert {key: fetched.data for key, fetched in found.items()} == {"Cup.png": CUP, "cup.png": POT}


def test_a_member_after_a_refused_one_of_its_name_is_refused_too(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.REGTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("cup.png")
            info.type = kind
            file.addfile(info)
    assert list(refusals(source(tmp_path / "a.tar"))) == ["cup.png", "cup.png (member 2)", "cup.png (member 3)"]


def test_a_checksum_of_the_whole_that_is_wrong_is_said(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", {"cup.png": CUP})
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    assert "CRC" in refusals(source(path))["(the rest)"]


def test_links_and_devices_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, kind in {"link.png": stat.S_IFLNK, "device.png": stat.S_IFCHR, "fifo.png": stat.S_IFIFO}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            file.writestr(info, "/etc/passwd")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        kinds = {"link.png": tarfile.SYMTYPE, "hard.png": tarfile.LNKTYPE, "device.png": tarfile.CHRTYPE}
        for name, kind in {**kinds, "fifo.png": tarfile.FIFOTYPE}.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    assert {key: reason.split()[2] for key, reason in refusals(source(tmp_path / "a.zip")).items()} == {
        "link.png": "a",
        "device.png": "a",
        "fifo.png": "a",
    }
    reasons = refusals(source(tmp_path / "a.tar"))
    assert "a link" in reasons["link.png"] and "a link" in reasons["hard.png"]
    assert "a device" in reasons["device.png"] and "a device" in reasons["fifo.png"]


def test_what_is_too_large_is_refused_by_its_header(tmp_path):
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        path = write(tmp_path / name, {"big.png": b"x" * 2000, "cup.png": b"y" * 1000})
        found = everything(source(path, max_file_bytes=1000))
        assert found["cup.png"].data == b"y" * 1000
        assert "2000 bytes are more than the 1000" in found["big.png"].refusal


def test_a_header_that_lies_about_the_size_costs_no_memory_and_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"big.png": b"\0" * 5_000_000}, compression=zipfile.ZIP_DEFLATED)
    lied = path.read_bytes().replace((5_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(lied)
    [reason] = refusals(source(path)).values()
    assert "damaged in the archive" in reason


def test_what_packs_too_well_is_taken_for_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "RATIO_COUNTS_FROM", 1_000_000)
    bomb = b"\0" * 5_000_000
    path = write_zip(tmp_path / "a.zip", {"bomb.png": bomb, "cup.png": CUP}, compression=zipfile.ZIP_DEFLATED)
    assert "bomb" in refusals(source(path))["bomb.png"]
    assert captions(source(path)) == {"cup.png": ""}

    path = write_tar(tmp_path / "a.tar.gz", {"cup.png": CUP, "bomb.png": bomb, "after.png": POT})
    reasons = refusals(source(path))
    assert "times its size: taken for a bomb" in reasons["(the rest)"]
    assert captions(source(path)) == {"cup.png": ""}


def test_an_archive_may_unpack_to_so_much_and_no_more(tmp_path):
    members = {f"{number}.png": b"x" * 1000 for number in range(5)}
    for name in ("a.zip", "a.tar"):
        reasons = refusals(source(write(tmp_path / name, members), max_unpacked_bytes=3000))
        assert list(reasons) == ["3.png", "4.png"]
        assert "more than the 3000 bytes" in reasons["3.png"]


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"1.png": CUP, "2.png": POT})
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = (0).to_bytes(4, "little")  # the second entry points at the first one's bytes
    path.write_bytes(data)
    reasons = refusals(source(path))
    assert any("overlaps another member" in reason for reason in reasons.values())


def test_encrypted_and_oddly_compressed_members_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"secret.png": CUP, "cup.png": CUP})
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + at] |= 1
    path.write_bytes(data)
    assert "encrypted" in refusals(source(path))["secret.png"]
    assert captions(source(path)) == {"cup.png": ""}
    path = write_zip(tmp_path / "b.zip", {"cup.png": CUP}, compression=zipfile.ZIP_LZMA)
    assert "compressed by method 14" in refusals(source(path))["cup.png"]


def test_a_tar_header_of_gigabytes_is_not_read_into_memory(tmp_path):
    path = tmp_path / "a.tar"
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 * 1024**3
    good = write_tar(tmp_path / "good.tar", {"cup.png": CUP}).read_bytes()
    path.write_bytes(good[: 512 + -(-len(CUP) // 512) * 512] + header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    reasons = refusals(source(path))
    assert "a header of 8589934592 bytes" in reasons["(the rest)"]
    assert captions(source(path)) == {"cup.png": ""}


def test_a_text_that_cannot_be_read_refuses_its_picture(tmp_path):
    members = {"cup.png": CUP, "cup.txt": "Tür".encode("latin-1"), "pot.png": POT, "pot.txt": b"x" * 2_000_000}
    reasons = refusals(source(write_zip(tmp_path / "a.zip", members)))
    assert "cup.txt is not UTF-8" in reasons["cup.png"]
    assert "pot.txt cannot be read: 2000000 bytes" in reasons["pot.png"]


# Damage


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_of_a_tar_that_is_cut_off_what_lies_before_is_given(tmp_path, suffix):
    members = {f"{number}.png": png(number, 64) for number in range(6)}
    path = write_tar(tmp_path / f"a{suffix}", members)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    found = everything(source(path))
    given = {key: fetched.data for key, fetched in found.items() if not fetched.refusal}
    assert given and all(members[key] == picture for key, picture in given.items())
    assert len(given) < len(members)
    assert "cut off" in found["(the rest)"].refusal or "end" in found["(the rest)"].refusal
    assert "pack the archive again" in found["(the rest)"].refusal


def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"cup.png": CUP, "pot.png": POT})
    data = bytearray(path.read_bytes())
    at = data.index(b"pot.png")
    data[at : at + 7] = b"XXXXXXX"
    path.write_bytes(data)
    found = everything(source(path))
    assert found["cup.png"].data == CUP
    assert f"damaged at byte {at} of the archive" in found["(the rest)"].refusal
    path.write_bytes(data[:at])
    assert "end mark" in refusals(source(path))["(the rest)"]


def test_a_flipped_byte_in_a_zip_refuses_its_member(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"cup.png": CUP, "pot.png": POT})
    data = bytearray(path.read_bytes())
    data[data.index(POT) + 50] ^= 1
    path.write_bytes(data)
    found = everything(source(path))
    assert found["cup.png"].data == CUP
    assert "damaged in the archive: Bad CRC-32" in found["pot.png"].refusal


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100])
def test_what_is_no_archive_is_said_to_be_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceUnreadable, match="copy or pack it again"):
        listing(source(tmp_path / name))


def test_a_zip_that_is_cut_off_has_no_directory_and_is_unreadable(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"cup.png": CUP})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SourceUnreadable, match="damaged, cut off or no zip file"):
        listing(source(path))


def test_a_place_without_archives_is_not_empty_but_unreadable(tmp_path):
    with pytest.raises(SourceUnreadable, match="there is no archive or folder"):
        listing(source(tmp_path / "nowhere.zip"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceUnreadable, match="no archive matches"):
        listing(source(tmp_path / "folder"))
    with pytest.raises(SourceUnreadable, match="no archive matches"):
        listing(source(tmp_path / "*.zip"))
    (tmp_path / "a.tar.zst").touch()
    with pytest.raises(SourceUnreadable, match=r"pack it again as \.tar\.gz"):
        listing(source(tmp_path / "a.tar.zst"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{broken", "line 1 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
        ('{"text": "a"}', "line 1: file_name None"),
        ('{"file_name": "../a.png", "text": "a"}', "line 1: file_name '../a.png'"),
        ('{"file_name": "\\ud800.png", "text": "a"}', "line 1: file_name"),
    ],
)
def test_metadata_that_cannot_be_understood_stops_the_source(tmp_path, text, complaint):
    path = write_zip(tmp_path / "a.zip", {"a.png": CUP, "metadata.jsonl": text})
    with pytest.raises(SourceUnreadable, match=complaint):
        listing(source(path))


def test_rows_of_metadata_without_a_picture_or_with_one_again_are_refused(tmp_path):
    rows = [{"file_name": name, "text": text} for name, text in [("a.png", "one"), ("gone.png", "x"), ("a.png", "two")]]
    rows.append({"file_name": "b.png", "text": 5})
    text = "\n".join(map(json.dumps, rows))
    found = everything(source(write_zip(tmp_path / "a.zip", {"a.png": CUP, "b.png": POT, "metadata.jsonl": text})))
    assert found["a.png"].description.caption == "one"
    assert "not in the archive" in found["gone.png"].refusal
    assert "names a.png again" in found["a.png (again, metadata.jsonl line 3)"].refusal
    assert found["b.png"].refusal == "text must be text, not 5"


# Promises

PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "~", "/", "C:", "\\", "a", "cup", "etc", "__MACOSX", "con", "\x00", "é", "😀"]),
    st.text(max_size=12),
)
NAMES = st.builds(
    lambda parts, separator, suffix: separator.join(parts) + suffix,
    st.lists(PARTS, max_size=6),
    st.sampled_from(["/", "\\", "//"]),
    st.sampled_from([".png", ".PNG", ".jpg", ".txt", ""]),
)


def passed_over(name: str) -> bool:
    plain = os.path.normpath(name.replace("\\", "/"))
    return any(part.startswith(".") or part == "__MACOSX" for part in plain.split("/"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True), kind=st.sampled_from([".zip", ".tar", ".tar.gz"]))
def test_whatever_a_member_is_called_it_is_given_or_refused_and_nothing_else_is_read(
    tmp_path, monkeypatch, names, kind
):
    path = tmp_path / f"a{kind}"
    members = {name: f"content {number}".encode() for number, name in enumerate(names) if name}
    if kind == ".zip":
        write_raw_zip(path, members)
    else:
        write_tar(path, members)
    opened: list[str] = []

    def noticed(self, mode="r"):
        opened.append(str(self))
        return builtins.open(self, mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", noticed)
        for dangerous in ("mkdir", "makedirs", "symlink", "link", "rename"):
            patch.setattr(os, dangerous, None)
        found = everything(source(path))
    assert set(opened) == {str(path)}
    given = [fetched.data for fetched in found.values() if not fetched.refusal]
    assert set(given) <= set(members.values())
    assert len(given) == len(set(given))
    for name, data in members.items():
        stored = name.partition("\0")[0] if kind != ".zip" else name
        is_picture = name.casefold().endswith((".png", ".jpg"))
        if is_picture and not refusal_of_name(stored) and not passed_over(stored) and "\0" not in name:
            assert data in given or any("same name" in fetched.refusal for fetched in found.values())
        elif refusal_of_name(stored) and not name.endswith("/"):
            assert data not in given


def write_raw_zip(path, members):
    """With names as they are; ``ZipInfo`` would cut them off at a zero byte."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name
            file.writestr(info, data)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from([".zip", ".tar", ".tar.gz"]))
def test_whatever_bytes_are_damaged_pictures_are_given_whole_refused_or_the_source_is_unreadable(tmp_path, data, kind):
    members = {"1.png": png(1), "1.txt": b"one", "d/2.png": png(2), "3.png": png(3)}
    path = write(tmp_path / f"a{kind}", members)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        found = everything(source(path))
    except SourceUnreadable:
        return
    if kind == ".zip":  # whose members have checksums
        pictures = {member for name, member in members.items() if name.endswith(".png")}
        assert {fetched.data for fetched in found.values() if not fetched.refusal} <= pictures
