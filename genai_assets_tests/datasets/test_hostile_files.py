"""Hostile files: each is accepted or quarantined with a reason, and none does harm on the way."""

import re
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator

import pytest

from genai_assets.datasets import guarded_worker
from genai_assets.datasets.decoding import UndecodablePicture, decode, probe
from genai_assets.datasets.inspection import Inspection, Inspections
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.settings import Settings
from genai_assets_tests.datasets import hostile_files
from genai_assets_tests.datasets.hostile_files import HostileFile

MAX_PIXELS = 64_000_000
FAULTS = {"undecodable", "polyglot", "too long", "blank", "too slow", "too much memory", "crashed"}

pytest.importorskip("pillow_heif")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings.model_validate({"home": tmp_path_factory.mktemp("home"), "dataset": {"max_pixels": MAX_PIXELS}})


@pytest.fixture(scope="module")
def inspections(settings: Settings) -> Iterator[Inspections]:
    with Inspections(settings) as found:
        yield found


def inspect_all(
    inspections: Inspections, settings: Settings, files: Iterable[HostileFile]
) -> Iterator[tuple[HostileFile, Inspection]]:
    files = list(files)
    found = inspections.keep_and_inspect((file.data for file in files), PictureStore(settings.paths.pictures))
    return zip(files, found, strict=True)


@pytest.fixture(scope="module")
def verdicts(inspections: Inspections, settings: Settings) -> dict[str, tuple[HostileFile, Inspection]]:
    files = inspect_all(inspections, settings, hostile_files.crafted())
    return {file.name: (file, found) for file, found in files}


def names(fault: str | None) -> list[str]:
    return [file.name for file in hostile_files.crafted() if file.fault == fault]


@pytest.mark.parametrize("name", names(hostile_files.ACCEPTED))
def test_an_odd_file_that_is_a_picture_is_accepted(verdicts, inspections, name):
    file, found = verdicts[name]
    assert found.fault == found.reason == ""
    assert file.says in "; ".join(found.notes)
    assert re.fullmatch("[0-9a-f]{16}", found.perceptual_hash)
    assert decode(inspections.thumbnail(found.id), max_pixels=256 * 256).width <= 256


@pytest.mark.parametrize("name", [file.name for file in hostile_files.crafted() if file.fault])
def test_a_hostile_file_is_quarantined_with_its_reason(verdicts, name):
    file, found = verdicts[name]
    assert found.fault == file.fault
    assert found.reason.startswith(f"{file.fault}: ")
    assert file.says in found.reason


def test_a_file_that_costs_too_much_takes_no_other_with_it(tmp_path):
    limits = {"max_pixels": MAX_PIXELS, "decode_seconds": 4, "decode_memory_mib": 64, "decode_workers": 1}
    settings = Settings.model_validate({"home": tmp_path, "dataset": limits})
    good = HostileFile("good", hostile_files.well_formed()["rgb.png"], hostile_files.ACCEPTED)
    files = [good, *(file for costly in hostile_files.costly() for file in (costly, good))]
    with Inspections(settings) as inspections:
        for file, found in inspect_all(inspections, settings, files):
            assert found.fault == file.fault, file.name
            assert file.says in found.reason


def assert_each_has_a_verdict_that_decoding_agrees_with(files: Iterable[tuple[HostileFile, Inspection]]) -> None:
    for file, found in files:
        assert found.fault in FAULTS | {""}, file.name
        assert bool(found.fault) == bool(found.reason), file.name
        # Its reader would have opened another file, or was not loaded in time: neither must pass for damage.
        assert "Errno" not in found.reason, file.name
        assert (
            bool(found.perceptual_hash) == (found.width > 0) == (found.fault in ("", "polyglot", "too long", "blank"))
        )
        try:
            seen = decode(file.data, max_pixels=MAX_PIXELS).size
        except UndecodablePicture:
            assert not found.width, file.name
        else:
            assert seen == probe(file.data) == (found.width, found.height), file.name


def test_crafted_files_decode_in_the_parent_exactly_when_they_were_accepted(verdicts):
    assert_each_has_a_verdict_that_decoding_agrees_with(
        (file, found) for file, found in verdicts.values() if "80 MB" not in file.name and "10⁵" not in file.name
    )


def test_a_sample_of_mutated_files_each_gets_a_verdict(inspections, settings):
    files = hostile_files.mutated(300, seed=0)
    assert_each_has_a_verdict_that_decoding_agrees_with(inspect_all(inspections, settings, files))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_thousands_of_mutated_files_each_get_a_verdict(inspections, settings, seed):
    files = hostile_files.mutated(4000, seed=seed)
    assert_each_has_a_verdict_that_decoding_agrees_with(inspect_all(inspections, settings, files))


def test_the_same_seed_makes_the_same_files():
    first, again, other = ([file.data for file in hostile_files.mutated(40, seed=seed)] for seed in (0, 0, 1))
    assert first == again != other


def test_the_parents_memory_does_not_grow_with_the_number_of_pictures(inspections, settings, monkeypatch):
    monkeypatch.setattr(guarded_worker, "_WAITING_BYTES", 4 * 1024**2)
    picture = hostile_files.png(64, 64, pixels=zlib.compress(bytes(65 * 64)))

    def distinct(count: int) -> Iterator[bytes]:
        yield from (picture + b"%d" % number + bytes(250_000) for number in range(count))

    tracemalloc.start()
    try:
        for found in inspections.keep_and_inspect(distinct(200), PictureStore(settings.paths.pictures)):
            assert found.fault == "blank"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25 * 1024**2, "200 pictures are 50 MB"
