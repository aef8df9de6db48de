"""Prompts that describe one picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_assets.datasets.captions import prompt_variants, shuffled_tags, tags

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
