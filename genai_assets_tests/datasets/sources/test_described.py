"""Rows to descriptions: names of columns, mapped ones, and every value of the wrong kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_assets import durable
from genai_assets.datasets.sources.described import (
    KNOWN_COLUMNS,
    BadDescription,
    check_columns,
    describe,
    described_state,
    printable,
    slug,
    words_of_file_name,
)

GIVEN = {"style": "house", "licence": "MIT", "fallback": "shelf/cup.png"}


def test_a_row_is_read_under_the_names_that_are_understood():
    row = {"text": " a  red cup ", "license": "CC0-1.0", "category": 3, "keywords": "tea, clay,tea", "author": "Ann"}
    said = describe(row, **GIVEN, provenance={"file": "cup.png"})
    assert (said.caption, said.concept, said.style, said.licence) == ("a red cup", "a-red-cup", "house", "CC0-1.0")
    assert (said.category, said.keywords, said.synthetic) == ("3", ("tea", "clay"), False)
    assert said.provenance == {"author": "Ann", "file": "cup.png"}


def test_columns_can_have_other_names():
    row = {"caption": "not this one", "title": "a pot", "rights_holder": "x", "tags": ["tea"], "class": "pot"}
    said = describe(row, **GIVEN, columns={"caption": "title", "keywords": "tags", "concept": "class"})
    assert (said.caption, said.keywords, said.concept) == ("a pot", ("tea",), "pot")


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_what_is_missing_falls_back(missing):
    said = describe({"text": missing, "caption": missing, "licence": missing, "keywords": None}, **GIVEN)
    assert (said.caption, said.concept, said.licence, said.keywords) == ("", "shelf-cup-png", "MIT", ())
    assert describe({"text": missing, "caption": "a cup"}, **GIVEN).caption == "a cup"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": 5}, "text must be text, not 5"),
        ({"caption": ["a"]}, "caption must be text"),
        ({"licence": b"MIT"}, "licence must be text"),
        ({"category": True}, "category must be text, not True"),
        ({"keywords": 3}, "keywords must be a list of texts"),
        ({"keywords": ["a", 3]}, "keywords must be a list of texts"),
        ({"synthetic": "perhaps"}, "synthetic must be true or false"),
        ({"text": "a\ud800b"}, "characters that are no text"),
        ({"text": "a\x00b"}, "characters that are no text"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(row, complaint):
    with pytest.raises(BadDescription, match=complaint):
        describe(row, **GIVEN)


def test_an_opt_out_in_a_row_or_beside_the_picture_is_kept():
    assert describe({"text": "a cup", "noai": True}, **GIVEN).opt_out
    assert describe({"text": "a cup"}, **GIVEN, signal="noai sidecar").opt_out == "noai sidecar"
    assert describe({"text": "a cup", "noai": False}, **GIVEN).opt_out == ""


def test_what_a_model_drew_is_marked():
    assert describe({"synthetic": True}, **GIVEN).synthetic
    assert describe({"synthetic": "true"}, **GIVEN).synthetic


def test_a_mapped_field_or_column_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="'captoin', which is no field; fields are caption, concept"):
        check_columns({"captoin": "title"}, ["title"], "the table")
    with pytest.raises(ValueError, match=r"the table has no column 'title'.* its columns are a, b"):
        check_columns({"caption": "title"}, ["b", "a"], "the table")
    check_columns({"caption": "title"}, ["title"], "the table")


TEXTS = st.text(max_size=20)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary(max_size=4), st.lists(TEXTS))
COLUMNS = [name for names in KNOWN_COLUMNS.values() for name in names]


@given(st.dictionaries(st.sampled_from([*COLUMNS, "author", "noai"]), VALUES))
def test_any_row_is_described_or_refused_and_its_state_is_its_own(row):
    try:
        said = describe(row, **GIVEN)
    except BadDescription:
        return
    assert said.concept
    durable.canonical_json(said.provenance).encode()
    assert described_state(said) == described_state(describe(dict(row), **GIVEN))
    assert described_state(said) != described_state(describe({**row, "style": "another"}, **GIVEN))


@given(st.text(alphabet=st.characters(), max_size=400))
def test_any_name_can_be_shown(name):
    shown = printable(name)
    shown.encode()
    assert all(sign.isprintable() for sign in shown)
    assert len(shown) < 230


def test_a_file_name_is_read_as_words():
    assert words_of_file_name("shelf/red_cup-2.final.png") == "red cup 2.final"
    assert words_of_file_name("cup") == "cup"
    assert slug("A red cup!") == "a-red-cup"
