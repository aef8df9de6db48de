"""Icon sets: real packages become pictures with words, licence and provenance."""

import json

import numpy as np
import pytest

from genai_assets.datasets.decoding import decode, to_square
from genai_assets.datasets.limits import within_limit
from genai_assets.datasets.npm_packages import PackageUnavailable, fetch_package
from genai_assets.datasets.sources.icon_sets import (
    EMOJIBASE,
    EMOJILIB,
    ICON_SETS,
    IconSetSource,
    clean_keywords,
    normalised_codepoints,
    read_emojis,
)
from genai_assets.datasets.sources.source import SourceUnreadable


@pytest.fixture(scope="module")
def emojis(package_cache):
    return read_emojis(*(fetch_package(package, package_cache, offline=False) for package in (EMOJIBASE, EMOJILIB)))


@pytest.fixture
def read(package_cache):
    """What a set gives of its first icons by their concept's hash: what was fetched, by key, in the order listed."""

    def read(name, limit=None):
        source = IconSetSource(name, package_cache)
        chosen = within_limit(
            source.list(), limit, concept=lambda item: item.concept, variant=lambda item: item.variant
        )
        found = {fetched.key: fetched for fetched in source.fetch([item.key for item in chosen])}
        assert not [fetched.refusal for fetched in found.values() if fetched.refusal]
        assert [item.key for item in chosen] == list(found)
        return list(found.values())

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


@pytest.mark.parametrize("name", ICON_SETS)
def test_every_known_set_gives_real_pictures_with_licence_and_provenance(read, name):
    found = read(name, limit=6)
    assert len(found) == 6
    for fetched in found:
        said = fetched.description
        assert said.style == ICON_SETS[name].style
        assert said.licence == ICON_SETS[name].licence
        assert said.caption and said.concept and said.category
        assert said.provenance["package"] == ICON_SETS[name].package.name
        assert said.provenance["licence_notice"]
        image = decode(fetched.data, max_pixels=10**6)
        assert np.asarray(image).std() > 5, "something is drawn"


def test_one_concept_looks_alike_in_different_styles(read):
    """The join is right: the same concept of two sets is nearer in pixels than two concepts of one set."""
    thumbs = {}
    for name in ("noto", "twemoji"):
        for fetched in read(name, limit=60):
            image = to_square(decode(fetched.data, max_pixels=10**6), 8).astype(float)
            thumbs[name, fetched.description.concept] = image.ravel()
    shared = [concept for name, concept in thumbs if name == "noto" and ("twemoji", concept) in thumbs]
    assert len(shared) >= 30, "a small trial keeps the same concepts in each set"
    noto, twemoji = (np.stack([thumbs[name, concept] for concept in shared]) for name in ("noto", "twemoji"))
    distances = np.linalg.norm(noto[:, None] - twemoji[None], axis=-1)
    assert np.median((distances <= distances.diagonal()[:, None]).sum(axis=1)) <= 3


def test_the_house_style_is_kept_as_it_is_and_without_flags(read):
    found = read("fluent-emoji-3d")
    said = [fetched.description for fetched in found]
    assert len(found) > 3000
    assert "flags" not in {description.category for description in said}
    assert found[0].data[8:12] == b"WEBP"
    captions = {(description.style, description.caption) for description in said}
    assert len(captions) == len(found), "each emoji comes once"
    assert "Microsoft's Fluent Emoji, MIT" in said[0].provenance["licence_notice"]
    assert sum(not description.variant for description in said) > 1500


def test_a_set_that_only_names_its_icons_keeps_those_whose_name_means_one_emoji(read):
    said = [fetched.description for fetched in read("fxemoji", limit=400)]
    icons = {description.provenance["icon"]: description.caption for description in said}
    assert len(icons) == len({description.concept for description in said}) == 400
    squashed = sum(icon == caption.replace(" ", "").replace("-", "").lower() for icon, caption in icons.items())
    assert squashed > 200


def test_drawing_twice_gives_the_same_pictures(read):
    assert read("noto", limit=5) == read("noto", limit=5)


def test_listing_draws_nothing_and_an_icon_that_is_drawn_otherwise_has_another_state(package_cache, tmp_path):
    for package in (ICON_SETS["noto"].package, EMOJIBASE, EMOJILIB):
        fetch_package(package, package_cache, offline=False)
        (tmp_path / package.folder_name).symlink_to(package_cache / package.folder_name)
    before = {item.key: item.state for item in IconSetSource("noto", tmp_path, offline=True).list()}
    folder = tmp_path / ICON_SETS["noto"].package.folder_name
    icons = json.loads((folder / "icons.json").read_text())
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    folder.unlink()
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    icons["icons"]["pizza"]["body"] = '<circle cx="8" cy="8" r="4"/>'
    (folder / "icons.json").write_text(json.dumps(icons))
    after = {item.key: item.state for item in IconSetSource("noto", tmp_path, offline=True).list()}
    assert [key for key, state in after.items() if before[key] != state] == ["1f355"]


def test_a_set_that_states_another_licence_than_is_known_is_not_read(package_cache, tmp_path):
    package = ICON_SETS["noto"].package
    for needed in (EMOJIBASE, EMOJILIB):
        fetch_package(needed, package_cache, offline=False)
        (tmp_path / needed.folder_name).symlink_to(package_cache / needed.folder_name)
    folder = tmp_path / package.folder_name
    folder.mkdir()
    (folder / "icons.json").write_text('{"prefix": "noto", "icons": {}}')
    (folder / "info.json").write_text('{"license": {"spdx": "GPL-3.0-only"}}')
    with pytest.raises(SourceUnreadable, match=r"states the licence GPL-3\.0-only, not Apache-2\.0"):
        list(IconSetSource("noto", tmp_path, offline=True).list())


def test_an_unknown_set_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown icon set 'notto'.*noto, twemoji"):
        IconSetSource("notto", tmp_path)


def test_offline_without_packages_is_one_clear_error(tmp_path):
    source = IconSetSource("noto", tmp_path / "nothing", offline=True)
    with pytest.raises(PackageUnavailable, match="offline"):
        list(source.list())
