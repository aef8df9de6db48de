"""Prompts that describe one picture."""

import hashlib
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_assets.datasets.captions import prompt_variants, refuse_template, shuffled_tags, tags, without_style
from genai_assets.diffusion.training_cache import _number_prompts

TEMPLATE = "{caption}, {style} style"
words = st.text(alphabet="abcdefgh", min_size=1, max_size=6)


def test_without_keywords_there_is_the_plain_caption_alone():
    assert prompt_variants("red apple", [], "fluent", TEMPLATE) == ("red apple, fluent style",)


def test_keywords_that_the_caption_says_already_add_nothing():
    assert prompt_variants("Red apple", ["APPLE", "red"], "fluent", TEMPLATE) == ("Red apple, fluent style",)


def test_keywords_follow_the_caption_in_a_second_prompt():
    assert prompt_variants("red apple", ["fruit"], "fluent", TEMPLATE)[1] == "red apple, fruit, fluent style"


def test_braces_in_a_caption_are_only_braces():
    assert prompt_variants("{style} {0}", ["{x}"], "fluent", TEMPLATE) == (
        "{style} {0}, fluent style",
        "{style} {0}, {x}, fluent style",
    )


@given(caption=st.text(min_size=1, max_size=20), keywords=st.lists(words, max_size=8), style=words)
def test_the_plain_prompt_is_first_and_none_comes_twice(caption, keywords, style):
    variants = prompt_variants(caption, keywords, style, TEMPLATE)
    assert variants[0] == f"{caption}, {style} style"
    assert 1 <= len(variants) <= (4 if tags(caption) else 2)
    assert len(set(variants)) == len(variants)


@given(caption=words, keywords=st.lists(words, max_size=8), data=st.data())
def test_the_same_words_in_any_order_and_number_give_the_same_prompts(caption, keywords, data):
    shuffled = data.draw(st.permutations(keywords + keywords[:2]))
    one, other = (prompt_variants(caption, some, "fluent", TEMPLATE) for some in (keywords, shuffled))
    assert one == other


@given(caption=words, keywords=st.lists(words, max_size=8))
def test_at_most_three_keywords_are_added_and_each_was_given(caption, keywords):
    for longer in prompt_variants(caption, keywords, "fluent", "{caption}")[1:]:
        added = longer.removeprefix(caption + ", ").split(", ")
        assert 1 <= len(added) <= 3
        assert set(added) <= set(keywords) - {caption}


def test_tags_come_in_other_orders_too_with_the_first_one_kept():
    caption = "1girl, long hair, smile, blue sky, outdoors"
    plain, *others = prompt_variants(caption, [], "fluent", TEMPLATE)
    assert plain == f"{caption}, fluent style" and len(others) == 3
    for other in others:
        assert other.startswith("1girl, ") and other.endswith(", fluent style")
        assert sorted(other.split(", ")) == sorted(plain.split(", "))
    assert prompt_variants(caption, [], "fluent", TEMPLATE) == (plain, *others), "the same every time"


def test_keywords_come_before_other_orders():
    variants = prompt_variants("cat, red, small", ["fruit"], "fluent", "{caption}")
    assert variants == ("cat, red, small", "cat, red, small, fruit", "cat, small, red")


@given(caption=st.lists(words, min_size=3, max_size=6, unique=True), count=st.integers(1, 8))
def test_more_prompts_leave_the_first_ones_as_they_are(caption, count):
    text = ", ".join(caption)
    assert prompt_variants(text, [], "fluent", TEMPLATE, 9)[:count] == prompt_variants(
        text, [], "fluent", TEMPLATE, count
    )


@given(caption=st.lists(words, min_size=3, max_size=3, unique=True))
def test_there_are_no_more_orders_than_there_can_be(caption):
    assert set(shuffled_tags(", ".join(caption), 5)) <= {", ".join([caption[0], caption[2], caption[1]])}


@pytest.mark.parametrize(
    "caption",
    [
        "slice of pizza",
        "red, green",
        "red, white, and blue flag",
        "A cat, a dog, a bird.",
        "a long story about one thing, of which there is much to say, indeed",
        "one, , two",
        "family: man, woman, girl",
        "",
    ],
)
def test_a_sentence_is_no_list_of_tags(caption):
    assert tags(caption) == [] == shuffled_tags(caption, 3)


def test_no_prompt_at_all_is_a_clear_error():
    with pytest.raises(ValueError, match="at least one prompt"):
        prompt_variants("red apple", [], "fluent", TEMPLATE, 0)


MORE = (
    "a {style} drawing of {caption}",
    "{caption} ({category}), {style}",
    "{keywords}: {caption}",
    "{style} {concept}",
)


def test_without_templates_the_prompts_are_those_of_before_there_were_templates():
    asked = [
        ("slice of pizza", ["food", "italian", "cheese", "pepperoni"]),
        ("1girl, long hair, smile, blue sky, outdoors", ["anime", "girl"]),
        ("red, green", []),
        ("cat, red, small", ["fruit", "Cat", "tiny", "pet", "feline"]),
        ("{style} {0}", ["{x}"]),
        ("", []),
        ("São Tomé & Príncipe", ["flag", "island"]),
    ]
    told = [prompt_variants(*one, "fluent", TEMPLATE, count) for one in asked for count in (1, 2, 3, 4, 9)]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    # Written down from the code without templates: the training cache of the example must not change.
    assert digest == "91c5ec7139de850eadfca8fc94fcd6e4d36049ec33020abfbe6e10fb80d6dd50"


def test_templates_are_filled_with_what_is_known_of_the_picture():
    variants = prompt_variants(
        "slice of pizza", ["cheese"], "fluent", TEMPLATE, 9, more=MORE, category="food-drink", concept="pizza"
    )
    assert variants[:2] == ("slice of pizza, fluent style", "slice of pizza, cheese, fluent style")
    assert set(variants[2:]) == {
        "a fluent drawing of slice of pizza",
        "slice of pizza (food drink), fluent",
        "cheese: slice of pizza",
        "fluent pizza",
    }


def test_a_template_that_asks_for_what_is_not_known_is_passed_over():
    variants = prompt_variants("cup", [], "fluent", TEMPLATE, 9, more=MORE)
    assert variants == ("cup, fluent style", "a fluent drawing of cup")


@given(caption=words, keywords=st.lists(words, max_size=8), count=st.integers(1, 8), more=st.permutations(MORE))
def test_templates_keep_the_plain_prompt_first_and_their_order_is_the_pictures_own(caption, keywords, count, more):
    one, other = (
        prompt_variants(caption, keywords, "fluent", TEMPLATE, count, more=some, category="food", concept="x")
        for some in (MORE, more)
    )
    assert one == other, "whatever the order in which the templates stand"
    assert one[0] == f"{caption}, fluent style"
    assert len(set(one)) == len(one) <= count


def test_pictures_with_few_prompts_see_different_templates():
    seen = {
        prompt_variants(f"cup {number}", [], "s", TEMPLATE, 2, more=(*MORE[:1], "one {caption}"))[1][:3]
        for number in range(40)
    }
    assert seen == {"a s", "one"}


def test_braces_in_a_caption_are_only_braces_in_a_template_too():
    assert prompt_variants("{0} {caption}", [], "s", TEMPLATE, 2, more=("see {caption}",))[1] == "see {0} {caption}"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("a picture", "must have"),
        ("{style}", "must have"),
        ("{caption} by {artist}", r"\{artist\}"),
        ("{caption}{", "format string"),
        ("{} {caption}", r"asks for \{\}"),
        ("{caption.__class__}", "asks for"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template, told):
    with pytest.raises(ValueError, match=told):
        refuse_template(template)


@pytest.mark.parametrize("template", MORE)
def test_good_templates_are_taken(template):
    refuse_template(template)


def test_the_training_cache_numbers_prompts_of_templates_but_not_for_pictures_of_the_prior():
    rows = pd.DataFrame(
        {
            "caption": ["cup", "a picture"],
            "keywords": [["tea"], []],
            "style": ["fluent", "base"],
            "split": ["train", "prior"],
            "category": ["food-drink", None],
            "concept": ["c1", "c2"],
        }
    )
    plain = _number_prompts(rows, TEMPLATE, 4)
    assert plain == (["", "cup, fluent style", "cup, tea, fluent style", "a picture"], [[1, 2], [3]])
    assert _number_prompts(rows.drop(columns="category"), TEMPLATE, 4) == plain
    texts, numbers = _number_prompts(rows, TEMPLATE, 4, MORE[:2])
    assert [texts[number] for number in numbers[0]][:2] == plain[0][1:3]
    assert {texts[number] for number in numbers[0][2:]} == {"a fluent drawing of cup", "cup (food drink), fluent"}
    assert [texts[number] for number in numbers[1]] == ["a picture"]


@pytest.mark.parametrize(
    ("typed", "caption"),
    [
        ("a cat", "a cat"),
        ("a cat.", "a cat."),
        ("a cat, fluent style", "a cat"),
        ("a cat; Fluent Style. ", "a cat"),
        ("a cat fluent style", "a cat"),
        ("a cat in fluent style", "a cat"),
        ("a cat in a fluent style", "a cat"),
        ("a cat, fluent style, fluent style", "a cat"),
        ("fluent style", ""),
        ("a drawing in an effluent style", "a drawing in an effluent style"),
        ("fluent style cat", "fluent style cat"),
    ],
)
def test_a_style_typed_behind_a_caption_is_taken_off_and_nothing_else(typed: str, caption: str):
    assert without_style(typed, TEMPLATE, "fluent") == caption


@pytest.mark.parametrize(
    ("template", "typed", "caption"),
    [
        ("{caption}", "a cat, fluent style", "a cat, fluent style"),
        ("fluent icon of {caption}", "fluent icon of a cat", "fluent icon of a cat"),
        ("{caption} ({style})", "a cat (fluent)", "a cat"),
        ("{caption}, {{caption}} {style}", "a cat, {caption} fluent", "a cat"),
        ("{caption}{style}风格", "一只猫fluent风格", "一只猫"),
        ("{caption}, {style}.*", "a cat, fluentest", "a cat, fluentest"),
    ],
)
def test_what_is_taken_off_is_what_the_template_puts_behind_the_caption(template: str, typed: str, caption: str):
    assert without_style(typed, template, "fluent") == caption


@given(caption=words, style=words)
def test_a_prompt_without_its_style_is_its_caption(caption, style):
    assert without_style(TEMPLATE.format(caption=caption, style=style), TEMPLATE, style) == caption
