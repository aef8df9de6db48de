"""Prompts that describe one picture."""

from hypothesis import given
from hypothesis import strategies as st

from genai_assets.datasets.captions import prompt_variants

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
def test_there_are_one_or_two_prompts_and_the_plain_one_is_first(caption, keywords, style):
    variants = prompt_variants(caption, keywords, style, TEMPLATE)
    assert variants[0] == f"{caption}, {style} style"
    assert 1 <= len(variants) <= 2
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
