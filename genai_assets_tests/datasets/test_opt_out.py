"""Opt-outs: every place that can say "do not train on this" is heard, and nothing else is taken for it."""

import io
import struct
import zlib
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genai_assets.datasets import opt_out

PLUS = "http://ns.useplus.org/ldf/xmp/1.0/"
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"
PROHIBITED = (
    "DMI-PROHIBITED",
    "DMI-PROHIBITED-AIMLTRAINING",
    "DMI-PROHIBITED-GENAIMLTRAINING",
    "DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING",
    "DMI-PROHIBITED-SEECONSTRAINT",
    "DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR",
    "DMI-PROHIBITED-SEELINKEDRIGHTSEXPR",
)


def xmp(properties: str = "", attributes: str = "") -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:plus="{PLUS}" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:tdm="http://www.w3.org/ns/tdmrep#" xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/" '
        f"{attributes}>{properties}</rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="w"?>'
    ).encode()


def picture(file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), (200, 60, 30)).save(file, file_format, **options)
    return file.getvalue()


MINING = xmp(attributes=f'plus:DataMining="{VOCABULARY}DMI-PROHIBITED-AIMLTRAINING"')


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "TIFF"])
def test_a_prohibition_in_xmp_is_found_in_every_format_that_pillow_writes_it_to(file_format: str) -> None:
    assert opt_out.signal_in_file(picture(file_format)) == ""
    options = {"tiffinfo": {700: MINING}} if file_format == "TIFF" else {"xmp": MINING}
    found = opt_out.signal_in_file(picture(file_format, **options))
    assert found == "XMP plus:DataMining DMI-PROHIBITED-AIMLTRAINING"


def test_a_prohibition_in_a_heic_file_is_found() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    assert opt_out.signal_in_file(picture("HEIF")) == ""
    assert "DMI-PROHIBITED" in opt_out.signal_in_file(picture("HEIF", xmp=MINING))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_prohibition_in_a_png_is_found_whether_compressed_or_not(compressed: bool) -> None:
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", MINING.decode(), zip=compressed)
    assert "AIMLTRAINING" in opt_out.signal_in_file(picture("PNG", pnginfo=text))


@pytest.mark.parametrize("value", PROHIBITED)
def test_every_prohibition_of_the_plus_vocabulary_counts_in_each_way_rdf_writes_it(value: str) -> None:
    ways = (
        xmp(attributes=f'plus:DataMining="{value}"'),
        xmp(f"<plus:DataMining>{VOCABULARY}{value}</plus:DataMining>"),
        xmp(f'<plus:DataMining rdf:resource="{VOCABULARY}{value}"/>'),
        xmp(f"<plus:DataMining><rdf:Bag><rdf:li>{VOCABULARY}{value}</rdf:li></rdf:Bag></plus:DataMining>"),
    )
    assert {opt_out.signal_in_file(way) for way in ways} == {f"XMP plus:DataMining {value}"}


def test_another_prefix_for_the_same_property_changes_nothing() -> None:
    packet = MINING.replace(b"plus:", b"rights:").replace(b"xmlns:plus", b"xmlns:rights")
    assert "DMI-PROHIBITED-AIMLTRAINING" in opt_out.signal_in_file(packet)


@pytest.mark.parametrize("value", ["DMI-ALLOWED", "DMI-UNSPECIFIED", ""])
def test_what_is_allowed_or_left_open_is_no_opt_out(value: str) -> None:
    assert opt_out.signal_in_file(xmp(attributes=f'plus:DataMining="{value}"')) == ""


def test_a_prohibition_named_in_a_caption_is_no_opt_out() -> None:
    said = xmp("<dc:description>A slide that explains DMI-PROHIBITED and noai to artists.</dc:description>")
    assert opt_out.signal_in_file(said) == ""


@pytest.mark.parametrize(
    ("packet", "signal"),
    [
        (xmp("<tdm:reservation>1</tdm:reservation>"), "XMP tdm:reservation"),
        (xmp(attributes='tdm:reservation="1"'), "XMP tdm:reservation"),
        (xmp("<tdm:reservation>0</tdm:reservation>"), ""),
        (
            xmp("<dc:subject><rdf:Bag><rdf:li>cup</rdf:li><rdf:li>NoAI</rdf:li></rdf:Bag></dc:subject>"),
            "XMP keyword noai",
        ),
        (xmp("<dc:subject><rdf:Bag><rdf:li>noimageai</rdf:li></rdf:Bag></dc:subject>"), "XMP keyword noimageai"),
        (xmp("<dc:subject><rdf:Bag><rdf:li>casino airport</rdf:li></rdf:Bag></dc:subject>"), ""),
    ],
)
def test_reservations_and_keywords_in_xmp_are_read(packet: bytes, signal: str) -> None:
    assert opt_out.signal_in_file(packet) == signal


@pytest.mark.parametrize(
    ("terms", "reserved"),
    [
        ("May not be used to train AI models.", True),
        ("All rights reserved, including those for text and data mining.", True),
        ("No machine learning or dataset use without consent", True),
        ("Not for resale. AI training is welcome.", False),
        ("No restrictions on AI training.", False),
        ("All rights reserved.", False),
        ("Photographed on a mining site, no entry", False),
    ],
)
def test_plain_words_about_rights_are_understood_by_the_sentence(terms: str, reserved: bool) -> None:
    packet = xmp(
        f'<xmpRights:UsageTerms><rdf:Alt><rdf:li xml:lang="x-default">{terms}</rdf:li></rdf:Alt></xmpRights:UsageTerms>'
    )
    assert bool(opt_out.signal_in_file(packet)) is reserved
    assert bool(opt_out.signal_in_fields({"usage_terms": terms})) is reserved


def test_a_png_text_chunk_a_jpeg_comment_and_iptc_keywords_are_read() -> None:
    text = PngInfo()
    text.add_text("noai", "noindex", zip=True)
    assert opt_out.signal_in_file(picture("PNG", pnginfo=text)) == "PNG text noai field"
    assert opt_out.signal_in_file(picture("JPEG", comment=b"noimageai")) == "JPEG comment keyword noimageai"
    iptc = b"\x1c\x02\x19\x00\x03cup" + b"\x1c\x02\x19\x00\x04noai"
    block = b"Photoshop 3.0\x008BIM\x04\x04\x00\x00" + struct.pack(">I", len(iptc)) + iptc + b"\x00"
    jpeg = picture("JPEG")
    segment = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
    assert opt_out.signal_in_file(jpeg[:2] + segment + jpeg[2:]) == "IPTC keyword noai"


def test_extended_xmp_is_put_together_from_its_parts() -> None:
    whole = xmp("<dc:source>" + "x" * 70_000 + "</dc:source><tdm:reservation>1</tdm:reservation>")
    jpeg, parts = picture("JPEG"), b""
    for offset in reversed(range(0, len(whole), 60_000)):
        body = b"http://ns.adobe.com/xmp/extension/\x00" + b"0" * 32 + struct.pack(">II", len(whole), offset)
        body += whole[offset : offset + 60_000]
        parts += b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    assert "tdm:reservation" in opt_out.signal_in_file(jpeg[:2] + parts + jpeg[2:])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_xmp_in_utf_16_is_read(encoding: str) -> None:
    assert "AIMLTRAINING" in opt_out.signal_in_file(b"II*\x00" + MINING.decode().encode(encoding))


def test_a_content_credential_that_forbids_training_is_heard() -> None:
    def cbor(use: str) -> bytes:
        key = b"cawg.ai_generative_training"
        entry = b"\xa1\x63use" + bytes([0x60 + len(use)]) + use.encode()
        return (
            b"jumdcawg.training-mining\x00cborentries\xa2\x71cawg.ai_inference\xa1\x63use\x6anotAllowed"
            + b"\x78\x1b"
            + key
            + entry
        )

    assert opt_out.signal_in_file(cbor("notAllowed")) == "C2PA ai_generative_training notAllowed"
    assert opt_out.signal_in_file(cbor("constrained")) == "C2PA ai_generative_training constrained"
    assert opt_out.signal_in_file(cbor("allowed")) == ""


def test_a_packet_with_entities_is_not_expanded_and_its_words_still_count() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(12)
    )
    hostile = bomb.encode() + b"]>" + MINING.replace(b"<rdf:Description", b"<dc:x>&m;</dc:x><rdf:Description", 1)
    assert opt_out.signal_in_file(hostile) == "XMP plus:DataMining DMI-PROHIBITED-AIMLTRAINING in damaged metadata"
    inside = MINING.replace(b"<x:xmpmeta ", b"<x:xmpmeta " + b" " * 10).decode()
    with pytest.raises(opt_out._NotXmp):
        list(opt_out._xmp_properties(bomb + "]>" + inside))


def test_a_packet_cut_short_is_searched_for_the_words() -> None:
    assert "in damaged metadata" in opt_out.signal_in_file(MINING[:-40])


def test_a_text_chunk_that_inflates_without_end_is_read_within_bounds() -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    body = b"noai\x00\x00" + bomb
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + b"\x00\x00\x00\x00"
    texts = list(opt_out._png_texts(b"\x89PNG\r\n\x1a\n" + chunk))
    assert [(name, len(text)) for name, text in texts] == [("noai", 1 << 22)]


@pytest.mark.parametrize(
    "fields",
    [
        {"noai": True},
        {"NoImageAI": "1"},
        {"opt_out": "asked by mail in March"},
        {"tdm-reservation": "1"},
        {"tdm:reservation": 1},
        {"ai_training": "no"},
        {"ai_training": "see contract"},
        {"data_mining": f"{VOCABULARY}DMI-PROHIBITED"},
        {"plus:DataMining": "DMI-PROHIBITED-GENAIMLTRAINING"},
        {"X-Robots-Tag": "noindex, noai"},
        {"Content-Usage": "train-ai=n"},
        {"Content-Signal": "search=yes, ai-train=no"},
        {"keywords": ["cup", "noai"]},
        {"meta.noai": 1.0},
    ],
)
def test_fields_that_reserve_are_heard(fields: dict[str, object]) -> None:
    assert opt_out.signal_in_fields({"caption": "a cup", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"noai": False},
        {"noai": "0"},
        {"noai": float("nan")},
        {"opt_out": None},
        {"opt_out": ""},
        {"tdm_reservation": 0},
        {"ai_training": "allowed"},
        {"ai_training": ""},
        {"data_mining": "DMI-ALLOWED"},
        {"robots": "noindex"},
        {"Content-Usage": "train-ai=y"},
        {"caption": "a sign that says noai"},
        {"keywords": "casino, airport"},
    ],
)
def test_fields_that_say_nothing_or_allow_are_no_opt_out(fields: dict[str, object]) -> None:
    assert opt_out.signal_in_fields(fields) == ""


def test_sidecars_reserve_a_picture_by_either_name_and_a_folder_with_all_below() -> None:
    assert opt_out.is_noai_sidecar("a/cup.noai")
    assert opt_out.is_noai_sidecar(PurePosixPath("a/cup.png.NOAI"))
    assert opt_out.is_noai_sidecar("a/.noai")
    assert not opt_out.is_noai_sidecar("a/noai.png")
    sidecars = {"a/cup.noai", "a/mug.png.noai", "private/.noai"}
    assert opt_out.signal_in_sidecars("a/cup.png", sidecars) == opt_out.SIDECAR_SIGNAL
    assert opt_out.signal_in_sidecars("a/mug.png", sidecars) == opt_out.SIDECAR_SIGNAL
    assert opt_out.signal_in_sidecars("private/deep/x.png", sidecars) == opt_out.FOLDER_SIGNAL
    assert opt_out.signal_in_sidecars("a/other.png", sidecars) == ""
    assert opt_out.signal_in_sidecars("x.png", {".noai"}) == opt_out.FOLDER_SIGNAL


@given(st.binary(max_size=400), st.integers(0, 500), st.sampled_from(["PNG", "JPEG", "raw"]))
def test_no_bytes_whatever_make_it_raise(noise: bytes, at: int, kind: str) -> None:
    body = {"PNG": PNG_WITH_TEXT, "JPEG": JPEG_WITH_XMP, "raw": b""}[kind]
    opt_out.signal_in_file(body[:at] + noise + body[at + len(noise) // 2 :])
    opt_out.signal_in_file(noise)


def _with_text() -> bytes:
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", MINING.decode(), zip=True)
    text.add_text("Copyright", "nobody", zip=True)
    return picture("PNG", pnginfo=text)


PNG_WITH_TEXT = _with_text()
JPEG_WITH_XMP = picture("JPEG", xmp=MINING, comment=b"hello")
