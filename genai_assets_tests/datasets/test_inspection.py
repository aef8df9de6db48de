"""Inspections: every picture is decoded once, in a worker; verdicts and thumbnails are kept by content."""

import io
import os
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image

from genai_assets.datasets import examination, guarded_worker, inspection
from genai_assets.datasets.decoding import UndecodablePicture
from genai_assets.datasets.examination import Inspection, Rules, examine, perceptual_hash
from genai_assets.datasets.inspection import Inspections
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.settings import Settings
from genai_assets_tests.datasets import misbehaviour


def png(seed: int, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> bytes:
    """Soft blobs of its own for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def settings_of(home: Path, **dataset: Any) -> Settings:
    return Settings.model_validate({"home": home, "dataset": {"decode_workers": 1, **dataset}})


def store_of(settings: Settings) -> PictureStore:
    return PictureStore(settings.paths.pictures)


class Counted:
    """How many pictures reached a worker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count = 0
        submit = guarded_worker.GuardedWorkers.submit

        def counting(workers: guarded_worker.GuardedWorkers, data: bytes) -> Any:
            self.count += 1
            return submit(workers, data)

        monkeypatch.setattr(guarded_worker.GuardedWorkers, "submit", counting)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_pictures_are_kept_and_inspected_in_order_good_and_bad(home):
    settings = settings_of(home)
    pictures = [png(1), b"", png(2, (64, 32)), png(1), b"<html>"]
    with Inspections(settings) as inspections:
        found = list(inspections.keep_and_inspect(iter(pictures), store_of(settings)))
    assert [(one.width, one.height, one.fault) for one in found] == [
        (48, 40, ""), (0, 0, "undecodable"), (64, 32, ""), (48, 40, ""), (0, 0, "undecodable"),
    ]  # fmt: skip
    assert [store_of(settings).read(one.id, verify=True) for one in found] == pictures
    assert found[0] == found[3]
    assert found[0].format == "PNG"


def test_what_is_known_is_not_decoded_again_in_any_way_it_may_be_asked_for(home, decoded):
    settings = settings_of(home)
    pictures = [png(seed) for seed in range(5)] + [b"damaged"]
    with Inspections(settings) as inspections:
        first = list(inspections.keep_and_inspect(pictures, store_of(settings)))
    assert decoded.count == 6
    with Inspections(settings) as inspections:
        assert list(inspections.keep_and_inspect(pictures, store_of(settings))) == first
        assert inspections.of([one.id for one in first], store_of(settings)) == {one.id: one for one in first}
        assert inspections.thumbnail(first[0].id).startswith(b"\xff\xd8")
    assert decoded.count == 6


@pytest.mark.parametrize("changed", [{"max_pixels": 1000}, {"background": "#102030"}])
def test_another_rule_inspects_anew_and_the_old_verdict_stays(home, decoded, changed):
    settings, other = settings_of(home), settings_of(home, **changed)
    picture = store_of(settings).put(png(1, mode="RGBA"))
    with Inspections(settings) as before, Inspections(other) as after:
        first = before.of([picture], store_of(settings))
        assert after.of([picture], store_of(settings)) != first
        assert before.of([picture], store_of(settings)) == first
    assert decoded.count == 2


def test_only_what_is_new_is_inspected_and_progress_is_told(home, decoded):
    settings = settings_of(home)
    store = store_of(settings)
    ids = store.put_many(png(seed) for seed in range(250))
    told: list[tuple[int, int]] = []
    with Inspections(settings) as inspections:
        inspections.of(ids[:100], store)
        found = inspections.of(ids * 2, store, lambda done, total: told.append((done, total)))
    assert list(found) == ids
    assert decoded.count == 250
    assert told == [(100, 250), (200, 250), (250, 250)]


def test_missing_and_changed_pictures_are_told_even_when_they_were_good_once(home):
    settings = settings_of(home)
    store = store_of(settings)
    kept, missing, changed = store.put_many([png(1), png(2), png(3)])
    with Inspections(settings) as inspections:
        assert not any(found.fault for found in inspections.of([kept, missing, changed], store).values())
        store.path(missing).unlink()
        store.path(changed).write_bytes(png(4))
        os.utime(store.path(changed), ns=(1, 1))
        found = inspections.of([kept, missing, changed], store)
    assert [found[picture].fault for picture in (kept, missing, changed)] == ["", "picture missing", "picture changed"]
    assert found[changed].reason.startswith("picture changed: ")


def test_thumbnails_are_small_faithful_and_drawn_again_when_lost_or_cut_short(home, decoded):
    settings = settings_of(home)
    data = png(1, (600, 400))
    with Inspections(settings) as inspections:
        (found,) = inspections.keep_and_inspect([data], store_of(settings))
        thumbnail = inspections.thumbnail(found.id)
        seen = Image.open(io.BytesIO(thumbnail))
        assert seen.size == (256, 171)
        expected = Image.open(io.BytesIO(data)).convert("RGB").resize(seen.size, Image.Resampling.LANCZOS)
        assert abs(np.asarray(seen).astype(int) - np.asarray(expected)).mean() < 3
        path = settings.paths.thumbnails / found.id[:2] / found.id[2:]
        assert path.read_bytes() == thumbnail
        path.write_bytes(thumbnail[:-100])
        assert inspections.thumbnail(found.id) == thumbnail
        path.unlink()
        assert inspections.thumbnail(found.id) == path.read_bytes() == thumbnail
    assert decoded.count == 3


def test_a_thumbnail_of_nothing_says_why(home):
    settings = settings_of(home)
    with Inspections(settings) as inspections:
        with pytest.raises(FileNotFoundError, match="no picture"):
            inspections.thumbnail("0" * 64)
        with pytest.raises(UndecodablePicture, match="not a picture"):
            inspections.thumbnail(store_of(settings).put(b"junk"))
        with pytest.raises(ValueError, match="not a picture's id"):
            inspections.thumbnail("../../secrets")


def test_a_verdict_that_hangs_on_the_machine_is_not_kept(home, monkeypatch):
    settings = settings_of(home)
    with monkeypatch.context() as patched:
        patched.setattr(examination, "prepare", lambda rules: None)
        patched.setattr(inspection, "partial", lambda prepare, rules: misbehaviour.prepare)
        with Inspections(settings) as inspections:
            (found,) = inspections.keep_and_inspect([b"crash"], store_of(settings))
            assert (found.fault, found.reason) == ("crashed", "crashed: the decoder crashed (signal 11, SIGSEGV)")
            (found,) = inspections.keep_and_inspect([b"nonsense"], store_of(settings))
            assert found.reason == "crashed: the decoder answered nonsense"
    with Inspections(settings) as inspections:
        found = inspections.of([found.id], store_of(settings))[found.id]
    assert found.fault == "undecodable"


def test_leaving_early_keeps_what_was_found(home, decoded):
    settings = settings_of(home)
    with Inspections(settings) as inspections:
        found = next(inspections.keep_and_inspect((png(seed) for seed in range(50)), store_of(settings)))
    with Inspections(settings) as inspections:
        before = decoded.count
        assert inspections.of([found.id], store_of(settings)) == {found.id: found}
    assert decoded.count == before


def test_a_damaged_file_of_inspections_is_named_with_its_remedy(home):
    settings = settings_of(home)
    home.mkdir()
    settings.paths.inspections.write_bytes(b"not a database at all" * 100)
    with pytest.raises(OSError, match=r"inspections\.sqlite is damaged .*; remove it"):
        Inspections(settings)


def test_an_opt_out_in_the_files_own_metadata_is_reported(home):
    settings = settings_of(home)
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"><plus:DataMining>'
        "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED</plus:DataMining></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    file = io.BytesIO()
    Image.open(io.BytesIO(png(1))).convert("RGB").save(file, "JPEG", xmp=packet.encode())
    with Inspections(settings) as inspections:
        reserved, free = inspections.keep_and_inspect([file.getvalue(), png(1)], store_of(settings))
    assert "DMI-PROHIBITED" in reserved.opt_out
    assert reserved.fault == free.opt_out == ""


@pytest.mark.parametrize("seed", range(6))
def test_the_perceptual_hash_is_imagehashs(seed):
    image = Image.open(io.BytesIO(png(seed, (200, 150)))).convert("RGB")
    assert perceptual_hash(image) == str(imagehash.phash(image))


def test_pictures_that_look_alike_have_near_hashes_and_others_have_not():
    def hash_of(image: Image.Image, format: str, **options: Any) -> imagehash.ImageHash:
        file = io.BytesIO()
        image.save(file, format, **options)
        found, _ = examine(file.getvalue(), Rules(max_pixels=10_000_000))
        return imagehash.hex_to_hash(found.perceptual_hash)

    image = Image.open(io.BytesIO(png(1, (900, 700)))).convert("RGB")
    whole = hash_of(image, "PNG")
    assert whole - hash_of(image, "JPEG", quality=60) <= 4
    assert whole - hash_of(image.resize((450, 350)), "WEBP", quality=70) <= 4
    assert whole - hash_of(Image.open(io.BytesIO(png(2, (900, 700)))).convert("RGB"), "PNG") > 16


def test_an_inspection_survives_its_way_out_of_a_worker():
    found = Inspection("", 3, 4, "PNG", "blank", "blank: “¼”", "0" * 16, "", ("a note", "another"))
    assert examination.from_bytes(examination.to_bytes(found, b"\xff\xd8 thumbnail")) == (found, b"\xff\xd8 thumbnail")
