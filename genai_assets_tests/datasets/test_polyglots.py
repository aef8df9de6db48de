"""Polyglots: where a picture ends, what else its file is, and that no bytes break the looking."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_assets.datasets.decoding import FORMATS, UndecodablePicture, decode, probe
from genai_assets.datasets.polyglots import end_of_picture, second_nature
from genai_assets_tests.datasets.hostile_files import well_formed, zip_archive

pytest.importorskip("pillow_heif")

BEGINNINGS = [b"", *sorted({data[:length] for data in well_formed().values() for length in (4, 12, 40)})]
WITH_AN_END = {"rgb.png": "PNG", "progressive.jpg": "JPEG", "turned.jpg": "JPEG", "animated.gif": "GIF"} | {
    "lossy.webp": "WEBP",
    "rgba.avif": "AVIF",
    "rgb.heic": "HEIC",
}


def tar_archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("run.sh"))
    return file.getvalue()


@pytest.mark.parametrize(("name", "format"), WITH_AN_END.items())
def test_a_picture_ends_where_its_format_says_whatever_follows(name, format):
    data = well_formed()[name]
    for appended in (b"", b"\0" * 99, b"noise \xff\xd9 noise", zip_archive()):
        assert end_of_picture(data + appended, format) == len(data)


def test_a_preview_within_a_jpegs_metadata_does_not_end_it():
    data = well_formed()["rgb.jpg"]
    preview = b"\xff\xe1" + (2 + len(data)).to_bytes(2, "big") + data
    whole = data[:2] + preview + data[2:]
    assert end_of_picture(whole + b"behind", "JPEG") == len(whole)


@pytest.mark.parametrize(
    ("appended", "kind"),
    [
        (zip_archive(), "a ZIP archive"),
        (zip_archive(b"a comment " * 1000), "a ZIP archive"),
        (tar_archive(), "a tar archive"),
        (b"\n\n#!/bin/sh\n", "a script"),
        (b"\0\0MZ\x90\0", "a program"),
        (b"%PDF-1.4", "a PDF"),
        (b"some words, then <SCRIPT src=x>", "a web page or script"),
        (b"", ""),
        (b"PK\x03\x04 is no archive without a directory", ""),
        (b"PK\x05\x06" + bytes(18), ""),
        (b"an ordinary comment", ""),
    ],
)
def test_what_follows_a_picture_is_told_by_its_nature(appended, kind):
    data = well_formed()["rgb.png"]
    assert second_nature(data + appended, len(data)) == kind


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=400), st.sampled_from(FORMATS))
def test_no_bytes_break_the_looking(beginning, rest, format):
    data = beginning + rest
    end = end_of_picture(data, format)
    assert 0 <= end <= len(data)
    assert isinstance(second_nature(data, end), str)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=400))
def test_any_bytes_are_a_picture_or_are_refused_with_a_reason(beginning, rest):
    for look in (probe, lambda data: decode(data, max_pixels=1_000_000).size):
        try:
            width, height = look(beginning + rest)
        except UndecodablePicture as error:
            assert str(error)
        else:
            assert width > 0 and height > 0
