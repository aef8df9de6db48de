"""Rules for captions: each problem has a planted caption that shows it, and good captions are left alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genai_assets.datasets.caption_quality import (
    MOST_LOOKED_AT,
    CaptionRules,
    caption_problems,
    masked_caption,
)
from genai_assets.datasets.npm_packages import fetch_package
from genai_assets.datasets.sources.icon_sets import EMOJIBASE, EMOJILIB, read_emojis
from genai_assets.settings import Settings

RULES = CaptionRules()

PLANTED = {
    "mojibake": [
        "cafÃ©",
        "naÃ¯ve art",
        "â€œquotedâ€\x9d sign",
        "fianc\ufffde",
        "café &amp; bar",
        "crÃªpe",
        r"caf\u00e9",
        "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
        "a\x00b",
    ],
    "boilerplate": [
        "image of a cat",
        "a picture of a dog on grass",
        "An image showing a red car",
        "stock photo of a woman",
        "IMG_1234.jpg",
        "IMG_1234",
        "DSC01234",
        "https://example.com/cat",
        "shop.example.com/sofa",
        "click to enlarge",
        "Image may contain: person, dog",
        "1200x800",
        "untitled",
        "Untitled (3)",
        "null",
        "photo by Anna Smith",
        "© 2020 A Company",
        "red car, Getty Images",
        "<b>red car</b>",
        "cat-final-v2.png",
        "Screenshot 2023-04-05 at 10.11.12",
        "lorem ipsum dolor sit amet",
        "d9b2d63d-a233-4123-847a-7090c6bd1d1b",
        "alt text",
    ],
    "too short": ["", "   ", "x"],
    "too long": [" ".join(["word"] * 80)],
    "language": [
        "ein roter Apfel auf einem Holztisch",
        "une femme qui lit un livre dans le parc",
        "mujer leyendo un libro en el parque",
        "der Hund läuft durch den Wald",
        "gatto nero seduto su un muro",
        "een rode appel op een houten tafel",
        "czerwone jabłko na drewnianym stole",
        "красное яблоко",
        "桌子上的红苹果",
        "テーブルの上の赤いりんご",
    ],
    "e-mail address": ["portrait of jane.doe@example.com"],
    "telephone number": ["call +49 30 901820"],
    "secret": ["key AKIAIOSFODNN7EXAMPLE"],
}
GOOD = [
    "slice of pizza",
    "keycap: 10",
    "trade mark",
    "copyright",
    "framed picture",
    "camera with flash",
    "flag: Côte d’Ivoire",
    "São Tomé & Príncipe",
    "Rock & roll",
    "photo album with leather cover",
    "image processing diagram",
    "Tel Aviv skyline at dusk",
    "ox",
    "1girl, long hair, smile, blue sky, outdoors",
    "none of the cards match",
    "unknown flower in bloom",
    "test tube with blue liquid",
    "x < y and y > z",
    "node of a network",
    "crêpe suzette flambée",
    "naïve façade of a café",
    "click beetle on a leaf",
    "Taj Mahal at dusk",
    "Crêpe Suzette with orange",
    "Rue de Rivoli street sign in Paris",
    "Day of the Dead (Día de los Muertos) altar",
    "bratwurst, sauerkraut and a pretzel",
    "torii gate of the Miyajima shrine",
    "sushi, nigiri and wasabi on a plate",
    "La Sagrada Familia, Barcelona",
    "Hokusai, The Great Wave off Kanagawa",
    "ein Taxi",
    "kiss: man, man, dark skin tone",
    "a sign that says Привет",
]


def kinds_of(caption: str, rules: CaptionRules = RULES) -> list[str]:
    return [problem.kind for problem in caption_problems(caption, rules)]


@pytest.mark.parametrize("kind", PLANTED)
def test_every_planted_problem_is_found(kind):
    assert [caption for caption in PLANTED[kind] if kind not in kinds_of(caption)] == []


def test_good_captions_have_no_problem():
    assert {caption: kinds for caption in GOOD if (kinds := kinds_of(caption))} == {}


def test_no_caption_of_the_embedded_example_is_flagged(package_cache):
    emojis = read_emojis(*(fetch_package(package, package_cache, offline=False) for package in (EMOJIBASE, EMOJILIB)))
    labels = {emoji.label for emoji in emojis.values()}
    assert len(labels) > 1500
    assert {label: kinds for label in labels if (kinds := kinds_of(label))} == {}


def test_mojibake_is_told_with_what_it_should_have_been():
    (problem,) = caption_problems("a cafÃ© in Paris", RULES)
    assert problem.detail == "it should perhaps be “a café in Paris”"


@pytest.mark.parametrize(
    "caption",
    [
        "photo of jane.doe@example.com on https://example.com/jane",
        "https://jane.doe@example.com:443/x.png",
        "image of jane.doe@example.com",
        "cafÃ© jane.doe@example.com",
        "jane.doe@example.com.png",
        "<b>jane.doe@example.com</b>",
    ],
)
def test_no_detail_gives_personal_data_away(caption):
    told = [problem.detail for problem in caption_problems(caption, RULES)]
    assert told
    assert not [text for text in (*told, masked_caption(caption, RULES)) if "jane.doe" in text]


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_an_answer_and_every_problem_a_detail(caption):
    problems = caption_problems(caption, RULES)
    assert all(problem.detail for problem in problems)
    if not caption.strip():
        assert [problem.kind for problem in problems] == ["too short"]


@given(st.integers(1, 100), st.integers(1, 50), st.integers(0, 50))
def test_a_caption_is_too_short_or_too_long_exactly_beyond_its_bounds(words, least, more):
    rules = CaptionRules(languages=(), min_words=least, max_words=least + more)
    found = kinds_of(" ".join(["word"] * words), rules)
    assert found == (["too short"] if words < least else ["too long"] if words > least + more else [])


@pytest.mark.parametrize("text", ["a" * 20_000, "1 " * 10_000, "a1" * 10_000, "://a:" * 4_000, "<a " * 7_000])
def test_a_hostile_text_without_end_is_too_long_and_not_looked_through(text):
    assert kinds_of(text)[0] == "too long"
    assert len(masked_caption(text, RULES)) <= MOST_LOOKED_AT


def test_an_address_at_the_end_of_what_is_looked_at_is_not_shown_in_half():
    text = "a " * 995 + "jane.doe@example.com and more"
    assert "jane.doe" not in masked_caption(text, RULES)


def test_a_caption_in_an_allowed_language_is_no_problem():
    caption = "ein roter Apfel auf einem Holztisch"
    assert kinds_of(caption, CaptionRules(languages=("en", "de"))) == []
    assert kinds_of(caption, CaptionRules(languages=())) == []
    assert kinds_of("красное яблоко", CaptionRules(languages=("ru",))) == []
    assert kinds_of("a red apple", CaptionRules(languages=("ru",))) == ["language"], "other letters tell it at once"


def test_short_captions_are_in_no_certain_language():
    assert kinds_of("une tranche de pizza") == [], "18 letters are too few to say"


def test_a_language_that_cannot_be_told_is_an_error_that_names_the_setting():
    with pytest.raises(ValueError, match=r"captions\.languages has xx"):
        caption_problems("a long enough caption about a red apple", CaptionRules(languages=("xx",)))


def test_a_teams_own_boilerplate_is_found_and_named():
    rules = CaptionRules(boilerplate=(r"\bACME press kit\b",))
    (problem,) = caption_problems("cup, acme press kit 2020", rules)
    assert problem.kind == "boilerplate" and "acme press kit" in problem.detail


def test_kinds_of_personal_data_can_be_left_out():
    assert kinds_of("call +49 30 901820", CaptionRules(personal_data=("secret",))) == []


@pytest.mark.parametrize(
    ("given_rules", "told"),
    [
        ({"languages": ["English"]}, "ISO 639-1"),
        ({"boilerplate": ["("]}, "no regular expression"),
        ({"boilerplate": ["a*"]}, "fits every caption"),
        ({"phone_regions": ["usa"]}, "two letters"),
        ({"personal_data": ["faces"]}, "e-mail address"),
        ({"min_words": 9, "max_words": 3}, "more than max_words"),
        ({"templates": ["a picture"]}, "must have"),
        ({"templates": ["{caption} by {artist}"]}, "artist"),
        ({"templates": ["{caption"]}, "no format string"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused_by_name(tmp_path, monkeypatch, given_rules, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationError, match=told):
        Settings(home=tmp_path, captions=given_rules)


def test_the_section_of_the_settings_can_be_used_as_the_rules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = Settings(home=tmp_path, captions={"languages": []}).captions
    assert kinds_of("ein roter Apfel auf einem Holztisch", section) == []
