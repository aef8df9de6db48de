"""The feature index: each vector is computed once, and survives a crash."""

import io

import numpy as np
import pytest
from PIL import Image

from genai_assets import durable
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record, to_frame
from genai_assets.evaluation import feature_index
from genai_assets.evaluation.feature_index import FeatureIndex, FeatureTable, compute_features, select_pictures
from genai_assets.settings import Settings
from genai_assets_tests.evaluation.drawings import CAPTIONS, draw, draw_all

IDS = [f"{number:064x}" for number in range(24)]


class Loader:
    """Gives the drawn pictures, and remembers what it was asked for."""

    def __init__(self):
        self.asked: list[str] = []

    def __call__(self, ids):
        self.asked += ids
        return draw_all()[[int(identifier, 16) for identifier in ids]]


@pytest.fixture
def index(tmp_path, picture_features, text_features) -> FeatureIndex:
    return FeatureIndex(tmp_path / "features.lance", picture_features, text_features)


def test_only_missing_pictures_are_computed(index):
    load = Loader()
    assert index.add_missing_pictures(IDS[:10], load) == 10
    assert index.add_missing_pictures(IDS[:10], load) == 0
    assert index.add_missing_pictures([*IDS[5:15], IDS[14]], load) == 5
    assert load.asked == IDS[:15]


def test_vectors_come_back_in_the_order_asked_for(index, picture_features):
    index.add_missing_pictures(IDS, Loader())
    wanted = [IDS[9], IDS[2], IDS[9], IDS[20]]
    expected = picture_features.extract(draw_all())[[9, 2, 9, 20]]
    np.testing.assert_allclose(index.picture_vectors(wanted), expected, atol=1e-5)
    assert index.picture_vectors([]).shape == (0, 1280)


def test_a_picture_without_a_vector_is_named(index):
    with pytest.raises(KeyError, match=r"1 of 1 have no vector.*image_features"):
        index.picture_vectors(IDS[:1])
    index.add_missing_pictures(IDS[:1], Loader())
    with pytest.raises(KeyError, match="1 of 2 have no vector"):
        index.picture_vectors(IDS[:2])


def test_a_crash_midway_leaves_whole_rows_and_the_next_call_adds_the_rest(index, monkeypatch):
    monkeypatch.setattr(feature_index, "_PICTURES_A_COMMIT", 8)
    load = Loader()

    def crash(ids):
        if IDS[16] in ids:
            raise OSError("the disk is gone")
        return load(ids)

    with pytest.raises(OSError, match="the disk is gone"):
        index.add_missing_pictures(IDS, crash)
    assert index.picture_vectors(IDS[:16]).shape == (16, 1280)
    assert index.add_missing_pictures(IDS, load) == 8
    assert load.asked == IDS


def test_two_writers_leave_one_row_a_picture(index):
    load = Loader()

    def overtaken(ids):
        if not load.asked:
            index.add_missing_pictures(IDS[:6], load)
        return load(ids)

    index.add_missing_pictures(IDS[:6], overtaken)
    assert [neighbour.id for neighbour in index.nearest_pictures(index.picture_vectors(IDS[:1])[0], k=24)].count(
        IDS[0]
    ) == 1


def test_the_nearest_picture_is_the_picture_itself(index):
    assert index.nearest_pictures(np.zeros(1280, np.float32)) == []
    index.add_missing_pictures(IDS, Loader())
    found = index.nearest_pictures(index.picture_vectors([IDS[3]])[0], k=3)
    assert found[0].id == IDS[3] and found[0].distance == pytest.approx(0, abs=1e-5)
    assert [neighbour.distance for neighbour in found] == sorted(neighbour.distance for neighbour in found)


def test_only_living_pictures_are_found_however_many_near_ones_are_gone(index):
    index.add_missing_pictures(IDS, Loader())
    vector = index.picture_vectors([IDS[3]])[0]
    everything = [neighbour.id for neighbour in index.nearest_pictures(vector, k=24)]
    gone = set(everything[:20])
    found = index.nearest_pictures(vector, k=3, among=set(IDS) - gone)
    assert [neighbour.id for neighbour in found] == everything[20:23], "the nearest of those that are alive"
    assert index.nearest_pictures(vector, k=9, among=set()) == []
    assert len(index.nearest_pictures(vector, k=9, among={IDS[0], "never seen"})) == 1


def test_the_nearest_captions_are_found_by_meaning(index, text_features):
    assert index.nearest_captions(np.zeros(384, np.float32)) == []
    index.add_missing_captions([*CAPTIONS, "a slice of pizza"])
    vector = text_features.extract(["Italian food"])[0]
    assert index.nearest_captions(vector, k=1)[0][0] == "a slice of pizza"
    assert index.nearest_captions(vector, k=1, among=set(CAPTIONS))[0][0] in CAPTIONS


def test_a_large_table_gets_an_index_that_finds_nearly_what_the_exact_search_finds(index, monkeypatch):
    dice = np.random.default_rng(0)
    vectors = (dice.normal(size=(40, 384)).repeat(20, axis=0) + 0.5 * dice.normal(size=(800, 384))).astype(np.float32)
    captions = [f"caption {number}" for number in range(800)]
    monkeypatch.setattr(index.captions, "extract", lambda texts: vectors[[int(text[8:]) for text in texts]])
    index.add_missing_captions(captions[:500])
    exact = [index.nearest_captions(vectors[number], k=10) for number in range(0, 500, 25)]
    monkeypatch.setattr(feature_index, "INDEX_FROM", 500)
    index.add_missing_captions(captions[:600])
    table = index._open(index._caption_table)
    assert feature_index._has_index(table)
    among = set(captions[:500])
    found = [index.nearest_captions(vectors[number], k=10, among=among) for number in range(0, 500, 25)]
    same = [len(dict(one).keys() & dict(other).keys()) for one, other in zip(exact, found, strict=True)]
    assert sum(same) >= 0.95 * 10 * len(exact)
    index.add_missing_captions(captions)
    assert index.nearest_captions(vectors[799], k=1)[0][0] == "caption 799", "what came since is found, too"
    assert len(index.nearest_captions(vectors[0], k=300, among=set(captions[-300:]))) == 300, "and all that are alive"


def test_captions_are_kept_too(index, text_features):
    assert index.add_missing_captions([*CAPTIONS, CAPTIONS[0]]) == 24
    assert index.add_missing_captions(CAPTIONS) == 0
    wanted = ["blue bar", "red circle"]
    np.testing.assert_allclose(index.caption_vectors(wanted), text_features.extract(wanted), atol=1e-6)


def test_another_extractor_version_never_meets_the_old_vectors(tmp_path, index, text_features):
    from genai_assets.evaluation.features import PictureFeatures

    index.add_missing_pictures(IDS[:4], Loader())
    other = FeatureIndex(index.path, PictureFeatures(resolution=32), text_features)
    assert other.add_missing_pictures(IDS[:4], Loader()) == 4
    assert not np.allclose(other.picture_vectors(IDS[:4]), index.picture_vectors(IDS[:4]))


def _manifest(store: PictureStore):
    records = []
    for style in ("fluent", "noto"):
        for number, caption in enumerate(CAPTIONS[:6]):
            buffer = io.BytesIO()
            Image.fromarray(draw(caption, "flat" if style == "fluent" else "outlined")).save(buffer, "PNG")
            data = buffer.getvalue()
            records.append(
                Record(
                    id=store.put(data), caption=caption, concept=caption, style=style, source="drawn", licence="MIT",
                    width=48, height=48, variant=number == 5,
                )
            )  # fmt: skip
    return to_frame(records)


def test_the_artifact_holds_the_vectors_of_the_manifest_and_a_second_run_computes_nothing(tmp_path):
    settings = Settings(home=tmp_path / "home")
    store = PictureStore(settings.paths.pictures)
    manifest = _manifest(store)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    told = []

    summary = compute_features(
        manifest, store, settings, first, on_progress=lambda stage, done, total: told.append((stage, done, total))
    )
    assert (summary["pictures"], summary["computed_pictures"]) == (11, 11), "the other style's variant is left out"
    assert (summary["captions"], summary["computed_captions"]) == (6, 6)
    assert summary["resolution"] == 64
    assert told == [("pictures", 11, 11)]

    again = compute_features(manifest, store, settings, second)
    assert (again["computed_pictures"], again["computed_captions"]) == (0, 0)
    assert durable.digest_tree(first) == durable.digest_tree(second)

    table = FeatureTable.read(first)
    house = manifest[manifest["style"] == "fluent"]["id"].tolist()
    index = feature_index.open_feature_index(settings)
    np.testing.assert_allclose(table.vectors(house), index.picture_vectors(house), atol=2e-3)
    captions = CAPTIONS[3:1:-1]
    np.testing.assert_allclose(table.vectors_of_captions(captions), index.caption_vectors(captions), atol=2e-3)
    left_out = manifest[(manifest["style"] == "noto") & manifest["variant"]]["id"].tolist()
    assert table.known([*left_out, house[0]]) == [False, True]
    with pytest.raises(KeyError, match="1 of 1 pictures have no features"):
        table.vectors(left_out)


def test_only_wanted_styles_are_selected_and_none_is_an_error(tmp_path):
    settings = Settings(home=tmp_path / "home")
    store = PictureStore(settings.paths.pictures)
    manifest = _manifest(store)
    assert set(select_pictures(manifest, settings, ["noto"])["style"]) == {"noto"}
    with pytest.raises(ValueError, match="no pictures to compute features of"):
        compute_features(manifest, store, settings, tmp_path, styles=["twemoji"])
