"""Search finds living records by what is said of them, by how they look, and by a picture."""

import numpy as np
import pandas as pd
import pytest

from genai_assets.datasets.records import Record, to_frame
from genai_assets.evaluation import search
from genai_assets.evaluation.feature_index import FeatureIndex, FeatureTable
from genai_assets_tests.evaluation.drawings import CAPTIONS, draw_all

IDS = [f"{number:064x}" for number in range(48)]
STYLES = ("flat", "outlined")


@pytest.fixture(scope="module")
def world(tmp_path_factory, picture_features, text_features) -> tuple[pd.DataFrame, FeatureIndex, FeatureTable]:
    """48 pictures: 24 captions drawn flat, and outlined."""
    pictures = np.concatenate([draw_all(), draw_all("outlined")])
    index = FeatureIndex(tmp_path_factory.mktemp("index") / "features.lance", picture_features, text_features)
    index.add_missing_pictures(IDS, lambda ids: pictures[[int(one, 16) for one in ids]])
    index.add_missing_captions(CAPTIONS)
    records = to_frame(
        Record(
            id=IDS[number], caption=CAPTIONS[number % 24], concept=CAPTIONS[number % 24], style=STYLES[number // 24],
            source="drawn", licence="MIT", width=48, height=48,
        )
        for number in range(48)
    )  # fmt: skip
    known = FeatureTable(
        index.version, 64, IDS, index.picture_vectors(IDS), list(CAPTIONS), index.caption_vectors(CAPTIONS)
    )
    return records, index, known


def test_a_text_finds_the_records_whose_captions_mean_it(world):
    records, index, known = world
    living = search.living_records(records, records, None)
    hits = search.by_text("a circle that is red", living, index, known, count=2)
    assert [hit.caption for hit in hits] == ["red circle", "red circle"]
    assert {hit.style for hit in hits} == set(STYLES)
    assert hits[0].looks >= hits[1].looks, "of one caption, what looks most like it comes first"
    assert hits[0].distance == hits[1].distance < 0.3 and hits[0].split == ""
    plain = search.by_text("a circle that is red", living, index, count=1)
    assert np.isnan(plain[0].looks), "without vectors, looks are not known"


def test_by_looks_a_picture_is_found_whatever_its_caption_says(world):
    records, index, known = world
    nameless = IDS[CAPTIONS.index("red circle")]
    told = records.assign(caption=records["caption"].where(records["id"] != nameless, "IMG_0001"))
    living = search.living_records(told, told, None)
    hits = search.by_text("red circle", living, index, known, count=6, by="picture")
    assert "IMG_0001" in {hit.caption for hit in hits}
    assert [hit.looks for hit in hits] == sorted((hit.looks for hit in hits), reverse=True)


def test_a_picture_finds_its_like_and_removed_pictures_never_come_back(world):
    records, index, _ = world
    vector = index.picture_vectors([IDS[5]])[0]
    everything = search.by_picture(vector, search.living_records(records, records, None), index, count=3)
    assert everything[0].id == IDS[5] and everything[0].distance == pytest.approx(0, abs=1e-5)
    raw = records[records["id"] != IDS[5]]
    living = search.living_records(records, raw, None)
    assert [hit.id for hit in search.by_picture(vector, living, index, count=2)] == [hit.id for hit in everything[1:]]
    assert IDS[5] not in {hit.id for hit in search.by_text(CAPTIONS[5], living, index, count=48)}


def test_hits_tell_their_split(world):
    records, index, _ = world
    splits = records[["id", "caption"]].assign(split="test").iloc[:10]
    living = search.living_records(records, records, splits)
    assert sorted(living["split"].value_counts().to_dict().items()) == [("", 38), ("test", 10)]
    hit = search.by_picture(index.picture_vectors(IDS[:1])[0], living, index, count=1)[0]
    assert hit.split == ("test" if hit.id in set(splits["id"]) else "")


def test_an_empty_text_and_missing_vectors_are_told(world):
    records, index, known = world
    living = search.living_records(records, records, None)
    with pytest.raises(ValueError, match="an empty text finds nothing"):
        search.by_text("  ", living, index, known)
    with pytest.raises(ValueError, match="no picture has a vector yet"):
        search.by_text("red", living, index, by="picture")
