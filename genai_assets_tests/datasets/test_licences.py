"""Licences: expressions are evaluated as SPDX means them, and how people write them is understood or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_assets.datasets.licences import (
    OBLIGATIONS,
    LicencePolicy,
    UnreadableLicence,
    licence_facts,
    obligations_of,
    read_licence,
)
from genai_assets.settings import DatasetSettings

POLICY = LicencePolicy(DatasetSettings().allowed_licences)


@pytest.mark.parametrize(
    ("stated", "allowed"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT OR GPL-3.0-only", True),
        ("Apache-2.0 AND CC-BY-4.0", True),
        ("Apache-2.0 AND CC-BY-NC-4.0", False),
        ("MIT AND (GPL-3.0-only OR CC0-1.0)", True),
        ("MIT OR Apache-2.0 AND GPL-3.0-only", True),  # AND binds more closely
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only WITH Font-exception-2.0", False),
        ("Apache-2.0+", True),
        ("CC-BY-SA-4.0", False),
        ("CC-BY-3.0", False),
        ("LicenseRef-own", True),
        ("LicenseRef-someone-else", False),
        ("proprietary", False),
        ("", False),
        ("MIT AND", False),
        ("(MIT", False),
        ("MIT Apache-2.0", False),
        ("All rights reserved", False),
    ],
)
def test_an_expression_is_allowed_if_one_side_of_or_and_both_sides_of_and_are(stated: str, allowed: bool) -> None:
    assert (POLICY.refusal(stated) is None) is allowed


@pytest.mark.parametrize(
    ("stated", "meant"),
    [
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc-by 4.0", "CC-BY-4.0"),
        ("Creative Commons Attribution 4.0 International", "CC-BY-4.0"),
        ("Creative Commons Attribution-ShareAlike 3.0 Unported", "CC-BY-SA-3.0"),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 4.0 International License", "CC-BY-NC-ND-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("http://www.creativecommons.org/licenses/by-nc-sa/3.0/de/legalcode", "CC-BY-NC-SA-3.0-DE"),
        ("creativecommons.org/licenses/by-nd-nc/1.0", "CC-BY-NC-ND-1.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/deed.en", "CC0-1.0"),
        ("CC0", "CC0-1.0"),
        ("The MIT License", "MIT"),
        ("MIT License (MIT)", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("BSD 3-Clause", "BSD-3-Clause"),
        ("GPL-3.0", "GPL-3.0-only"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("gplv3", "GPL-3.0-only"),
        ("apache-2.0 or mit", "Apache-2.0 OR MIT"),
        ("licenseref-Agency", "LicenseRef-Agency"),
    ],
)
def test_what_people_write_is_read_as_spdx_with_a_note(stated: str, meant: str) -> None:
    reading = read_licence(stated)
    assert reading.expression == meant
    assert reading.note.endswith(f"was read as {meant}")
    again = read_licence(meant)
    assert (again.expression, again.note) == (meant, "")


def test_a_licence_that_cannot_be_told_is_refused_and_the_reason_says_what_to_state() -> None:
    assert "its version is not stated, for example CC-BY-4.0" in (POLICY.refusal("CC BY") or "")
    assert "state its SPDX identifier" in (POLICY.refusal("https://example.org/licence") or "")
    assert "is left over" in (POLICY.refusal("all rights reserved") or "")
    assert "no licence is stated" in (POLICY.refusal("  ") or "")
    reason = POLICY.refusal("Apache-2.0 AND GPL-3.0") or ""
    assert "Apache-2.0 AND GPL-3.0-only is not allowed, for want of GPL-3.0-only" in reason


def test_the_version_named_allows_the_same_version_or_later_and_not_the_reverse() -> None:
    assert LicencePolicy(["GPL-2.0-only"]).refusal("GPL-2.0-or-later") is None
    assert LicencePolicy(["GPL-2.0-or-later"]).refusal("GPL-2.0-only") is not None


def test_an_allow_list_may_be_written_as_people_write_and_name_what_nobody_knows() -> None:
    policy = LicencePolicy(["CC BY 4.0", "openrail++", "LicenseRef-agency"])
    for licence in ("CC-BY-4.0", "openrail++", "LicenseRef-Agency"):
        assert policy.refusal(licence) is None
        assert policy.relied_on(licence)


def test_a_team_may_allow_an_expression_as_a_whole() -> None:
    policy = LicencePolicy(["GPL-3.0 AND CC-BY-NC-4.0", "MIT"])
    assert policy.refusal("gpl-3.0-only AND cc-by-nc-4.0") is None
    for written in ("GPL-3.0 AND CC-BY-NC-4.0", "GPL-3.0-only AND CC-BY-NC-4.0"):
        assert policy.relied_on(written) == ("GPL-3.0-only", "CC-BY-NC-4.0")
    assert "for want of GPL-3.0-only or Zlib" in (policy.refusal("GPL-3.0 OR Zlib") or "")
    assert policy.refusal("GPL-3.0-only") is not None


def test_of_a_choice_the_side_that_asks_for_least_is_relied_on() -> None:
    assert POLICY.relied_on("CC-BY-4.0 OR CC0-1.0") == ("CC0-1.0",)
    assert POLICY.relied_on("GPL-3.0-only OR CC-BY-4.0") == ("CC-BY-4.0",)
    assert POLICY.relied_on("MIT AND CC-BY-4.0") == ("MIT", "CC-BY-4.0")
    with pytest.raises(ValueError, match="is not allowed"):
        POLICY.relied_on("GPL-3.0-only")


def test_the_table_says_what_a_licence_asks_for() -> None:
    assert obligations_of(["CC0-1.0", "LicenseRef-own"]) == ()
    assert obligations_of(["MIT"]) == ("attribution", "keep the notice")
    assert obligations_of(["MIT", "CC-BY-SA-4.0"]) == ("attribution", "keep the notice", "state changes", "share alike")
    assert "non-commercial" in obligations_of(["CC-BY-NC-4.0"])
    assert licence_facts("cc-by-4.0").url == "https://creativecommons.org/licenses/by/4.0/"
    stranger = licence_facts("Hippocratic-2.1")
    assert not stranger.known and stranger.url == "https://spdx.org/licenses/Hippocratic-2.1.html"


def test_every_default_licence_is_known_with_its_obligations_in_order() -> None:
    for licence in DatasetSettings().allowed_licences:
        facts = licence_facts(licence)
        assert facts.known and facts.id == licence
        assert list(facts.obligations) == [each for each in OBLIGATIONS if each in facts.obligations]


EXPRESSIONS = st.recursive(
    st.sampled_from(["MIT", "Apache-2.0", "CC-BY-4.0", "GPL-3.0-only", "CC-BY-NC-4.0"]).map(
        lambda name: (name, {name})
    ),
    lambda inner: st.tuples(st.sampled_from(["AND", "OR"]), inner, inner).map(
        lambda it: (f"({it[1][0]}) {it[0]} ({it[2][0]})", (it[0], it[1][1], it[2][1]))
    ),
    max_leaves=8,
)


def _holds(tree: object) -> bool:
    if isinstance(tree, set):
        return not tree & {"GPL-3.0-only", "CC-BY-NC-4.0"}
    operator, left, right = tree  # pyright: ignore[reportGeneralTypeIssues]
    return (all if operator == "AND" else any)([_holds(left), _holds(right)])


@given(EXPRESSIONS)
def test_any_expression_is_decided_as_boolean_algebra_decides_it_and_survives_being_written_out(expression) -> None:
    stated, tree = expression
    assert (POLICY.refusal(stated) is None) is _holds(tree)
    canonical = read_licence(stated).expression
    assert read_licence(canonical).expression == canonical
    assert (POLICY.refusal(canonical) is None) is _holds(tree)


@given(st.text(max_size=80))
def test_no_text_makes_the_policy_fail(text: str) -> None:
    reason = POLICY.refusal(text)
    assert reason is None or reason
    try:
        read_licence(text)
    except UnreadableLicence as error:
        assert str(error)


def test_brackets_in_one_another_without_end_are_refused() -> None:
    assert "brackets" in (POLICY.refusal("(" * 100 + "MIT" + ")" * 100) or "")
