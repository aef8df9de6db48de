"""Icon sets: real packages become records with words, licence and provenance."""

import numpy as np
import pytest

from genai_assets.datasets.decoding import decode, to_square
from genai_assets.datasets.icon_sets import (
    EMOJIBASE,
    EMOJILIB,
    ICON_SETS,
    IconSetSource,
    clean_keywords,
    normalised_codepoints,
    read_emojis,
)
from genai_assets.datasets.npm_packages import PackageUnavailable, fetch_package
from genai_assets.datasets.picture_store import PictureStore


@pytest.fixture(scope="module")
def emojis(package_cache):
    return read_emojis(*(fetch_package(package, package_cache, offline=False) for package in (EMOJIBASE, EMOJILIB)))


@pytest.fixture
def read(tmp_path, package_cache):
    store = PictureStore(tmp_path / "pictures")

    def read(name, limit=None):
        return list(IconSetSource(name, package_cache, limit=limit).read(store)), store

    return read


def test_codepoints_are_joined_without_the_variation_selector():
    assert normalised_codepoints("2764-FE0F") == "2764"
    assert normalised_codepoints("1F468-200D-2764-FE0F-200D-1F468") == "1f468-200d-2764-200d-1f468"


def test_an_emoji_has_label_category_and_keywords(emojis):
    pizza = emojis["1f355"]
    assert (pizza.label, pizza.category, pizza.concept, pizza.variant) == ("pizza", "food-drink", "1f355", False)
    assert {"cheese", "pepperoni"} <= set(pizza.keywords)
    assert "number" in " ".join(emojis["0031-20e3"].keywords), "keycaps find their keywords too"


def test_a_skin_tone_belongs_to_the_concept_it_varies(emojis):
    tone = emojis["1f44b-1f3fb"]
    assert (tone.concept, tone.variant, tone.label) == ("1f44b", True, "waving hand: light skin tone")


def test_halves_of_flags_are_no_emoji(emojis):
    assert "1f1e6" not in emojis
    assert {emoji.category for emoji in emojis.values()} >= {"animals-nature", "food-drink", "flags"}


def test_keywords_are_words_without_emoticons_or_doubles():
    found = clean_keywords(["big_eyes", ":D", "Joy", "joy", "<3", "grin face", "o'clock", ""], label="Grin face")
    assert found == ("big eyes", "Joy", "o'clock")


@pytest.mark.parametrize("name", ["noto", "twemoji", "fxemoji", "fluent-emoji-3d", "openmoji"])
def test_every_known_set_gives_real_pictures_with_licence_and_provenance(read, name):
    records, store = read(name, limit=6)
    assert len(records) == 6
    for record in records:
        assert record.style == ICON_SETS[name].style
        assert record.licence == ICON_SETS[name].licence
        assert record.source == f"icons:{name}"
        assert record.caption and record.concept and record.category
        assert record.provenance["package"] == ICON_SETS[name].package.name
        assert record.provenance["licence_notice"]
        image = decode(store.read(record.id, verify=True), max_pixels=10**6)
        assert image.size == (record.width, record.height)
        assert np.asarray(image).std() > 5, "something is drawn"


def test_one_concept_looks_alike_in_different_styles(read):
    """The join is right: the same concept of two sets is nearer in pixels than two concepts of one set."""
    thumbs = {}
    for name in ("noto", "twemoji"):
        records, store = read(name, limit=60)
        for record in records:
            image = to_square(decode(store.read(record.id), max_pixels=10**6), 8).astype(float)
            thumbs[name, record.concept] = image.ravel()
    shared = [concept for name, concept in thumbs if name == "noto" and ("twemoji", concept) in thumbs]
    assert len(shared) >= 30, "a small trial keeps the same concepts in each set"
    noto, twemoji = (np.stack([thumbs[name, concept] for concept in shared]) for name in ("noto", "twemoji"))
    distances = np.linalg.norm(noto[:, None] - twemoji[None], axis=-1)
    assert np.median((distances <= distances.diagonal()[:, None]).sum(axis=1)) <= 3


def test_the_house_style_is_kept_as_it_is_and_without_flags(read):
    records, store = read("fluent-emoji-3d")
    assert len(records) > 3000
    assert "flags" not in {record.category for record in records}
    assert store.read(records[0].id)[8:12] == b"WEBP"
    assert len({(record.style, record.caption) for record in records}) == len(records), "each emoji comes once"
    assert "Microsoft's Fluent Emoji, MIT" in records[0].provenance["licence_notice"]
    assert sum(not record.variant for record in records) > 1500


def test_a_set_that_only_names_its_icons_keeps_those_whose_name_means_one_emoji(read, package_cache):
    records, _ = read("fxemoji", limit=400)
    icons = {record.provenance["icon"]: record.caption for record in records}
    assert len(icons) == len({record.concept for record in records}) == 400
    squashed = sum(icon == caption.replace(" ", "").replace("-", "").lower() for icon, caption in icons.items())
    assert squashed > 200


def test_drawing_twice_gives_the_same_pictures(read):
    first, second = read("noto", limit=5)[0], read("noto", limit=5)[0]
    assert [record.id for record in first] == [record.id for record in second]


def test_the_fingerprint_needs_no_package_and_follows_what_is_read(tmp_path):
    def fingerprint(name, limit=None):
        return IconSetSource(name, tmp_path / "nothing", offline=True, limit=limit).fingerprint()

    assert fingerprint("noto") == fingerprint("noto")
    assert len({fingerprint("noto"), fingerprint("twemoji"), fingerprint("noto", limit=5)}) == 3


def test_an_unknown_set_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown icon set 'notto'.*noto, twemoji"):
        IconSetSource("notto", tmp_path)


def test_offline_without_packages_is_one_clear_error(tmp_path):
    source = IconSetSource("noto", tmp_path / "nothing", offline=True)
    with pytest.raises(PackageUnavailable, match="offline"):
        list(source.read(PictureStore(tmp_path / "pictures")))
