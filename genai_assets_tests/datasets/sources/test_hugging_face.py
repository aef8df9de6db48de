"""Local Hugging Face datasets, written by the library itself and read without its hub."""

import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from genai_assets.datasets.sources.hugging_face import HuggingFaceSource
from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets_tests.datasets.sources.pictures import captions, everything, listing, png, refusals, surroundings

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

PICTURES = [png(number) for number in range(5)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any use of a socket fails the test, also where the library would swallow an error of its own."""
    used: list[object] = []

    def refused(*given, **_):
        used.append(given)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    yield
    assert not used


def dataset(pictures=PICTURES, **columns):
    features = {
        "photo": datasets.Image(),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["cup", "pot"]),
    }
    rows = {
        "photo": [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(pictures)],
        "text": [f"picture {number}" for number in range(len(pictures))],
        "label": [number % 2 for number in range(len(pictures))],
    }
    extra = {name: datasets.Value("int64") for name in columns}
    return datasets.Dataset.from_dict(rows | columns, features=datasets.Features(features | extra))


def source(folder, **options):
    return HuggingFaceSource.open(HuggingFaceSource.Options(path=folder, **options), surroundings(folder.parent))


def saved(folder):
    dataset().save_to_disk(str(folder), num_shards=2)


def shards(folder):
    folder.mkdir()
    for number in range(2):
        part = dataset().shard(2, number, contiguous=True)
        part.to_parquet(str(folder / f"train-{number:05}-of-00002.parquet"))


@pytest.mark.parametrize("write", [saved, shards])
def test_a_dataset_on_this_machine_is_read_with_labels_as_words(tmp_path, write):
    write(tmp_path / "cups")
    whole = source(tmp_path / "cups")
    assert whole.name == "hugging-face:cups"
    found = everything(whole)
    assert [fetched.data for _, fetched in sorted(found.items())] == PICTURES
    said = [fetched.description for _, fetched in sorted(found.items())]
    assert [(each.caption, each.category) for each in said[:2]] == [("picture 0", "cup"), ("picture 1", "pot")]
    assert said[0].provenance["dataset"] == "cups"
    assert listing(whole) == listing(source(tmp_path / "cups"))
    [one] = whole.fetch([max(found)])
    assert one.data == PICTURES[4]


def test_pictures_are_never_decoded(tmp_path):
    dataset([b"not a picture", b""]).save_to_disk(str(tmp_path / "cups"))
    found = everything(source(tmp_path / "cups"))
    assert found["0.png"].data == b"not a picture"


def test_splits_are_read_together_or_by_name(tmp_path):
    splits = {"train": dataset(PICTURES[:3]), "test": dataset(PICTURES[3:])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "cups"))
    found = everything(source(tmp_path / "cups"))
    assert sorted(found) == ["test/0.png", "test/1.png", "train/0.png", "train/1.png", "train/2.png"]
    assert found["test/0.png"].data == PICTURES[3]
    assert sorted(everything(source(tmp_path / "cups", split="test"))) == ["test/0.png", "test/1.png"]
    with pytest.raises(SourceUnreadable, match="no split 'dev'; its splits are test, train"):
        listing(source(tmp_path / "cups", split="dev"))


def test_a_folder_of_pictures_is_read_as_the_library_reads_it(tmp_path):
    for number, label in enumerate(["cup", "pot", "cup"]):
        (tmp_path / "cups" / "train" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cups" / "train" / label / f"{number}.png").write_bytes(PICTURES[number])
    found = everything(source(tmp_path / "cups"))
    assert {key: (fetched.data, fetched.description.category) for key, fetched in found.items()} == {
        "train/cup/0.png": (PICTURES[0], "cup"),
        "train/pot/1.png": (PICTURES[1], "pot"),
        "train/cup/2.png": (PICTURES[2], "cup"),
    }
    before = listing(source(tmp_path / "cups"))
    (tmp_path / "cups" / "train" / "pot" / "1.png").write_bytes(png(9, 20))
    after = listing(source(tmp_path / "cups"))
    assert {key for key in before if before[key] != after[key]} == {"train/pot/1.png"}


def test_keys_may_come_from_a_column(tmp_path):
    dataset(PICTURES[:3], sku=[7, 8, 8]).save_to_disk(str(tmp_path / "cups"))
    whole = source(tmp_path / "cups", key="sku")
    assert captions(whole) == {"7": "picture 0", "8": "picture 1"}
    assert "is that of a row before" in refusals(whole)["8 (again)"]


def test_the_library_s_switches_are_as_before_afterwards(tmp_path):
    import huggingface_hub.constants

    saved(tmp_path / "cups")
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    listing(source(tmp_path / "cups"))
    assert before == (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)


def test_what_is_no_dataset_is_said_to_be_none(tmp_path):
    with pytest.raises(SourceUnreadable, match=r"there is no folder .*on this machine"):
        listing(source(tmp_path / "squad"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceUnreadable, match="cannot be read as a Hugging Face dataset"):
        listing(source(tmp_path / "empty"))
    saved(tmp_path / "cups")
    for file in Path(tmp_path / "cups").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SourceUnreadable, match="cannot be read as a Hugging Face dataset"):
        listing(source(tmp_path / "cups"))


def test_without_the_library_it_is_said_what_to_install(tmp_path, monkeypatch):
    saved(tmp_path / "cups")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceUnreadable, match=r"pip install genai_assets\[huggingface\]"):
        listing(source(tmp_path / "cups"))
