"""The gate: what it never does, whatever the figures."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_assets.evaluation.promotion import Decision, Figures, decide, judge_student
from genai_assets.settings import PromotionPolicy

POLICY = PromotionPolicy()  # pyright: ignore[reportCallIssue]
SOUND = Figures(
    kid=0.5,
    kid_standard_error=0.01,
    recall_at_1=0.1,
    recall_at_5=0.2,
    copied_share=0.01,
    pictures_are_not_blank=True,
    pictures_vary=True,
    base_kid=0.65,
    measured_on="same",
)

shares = st.floats(0, 1)
kids = st.floats(-0.1, 2)
any_number = st.floats(allow_nan=True, allow_infinity=True)
policies = st.builds(
    PromotionPolicy, min_kid_improvement=st.floats(0, 0.5), max_agreement_loss=shares, max_copied_share=shares
)
sound = st.builds(
    Figures,
    kid=kids,
    kid_standard_error=st.floats(0, 0.1),
    recall_at_1=shares,
    recall_at_5=shares,
    copied_share=shares,
    pictures_are_not_blank=st.just(True),
    pictures_vary=st.just(True),
    base_kid=st.one_of(kids, st.just(math.nan)),
    measured_on=st.just("same"),
)
anything = st.builds(
    Figures,
    kid=any_number,
    kid_standard_error=any_number,
    recall_at_1=any_number,
    recall_at_5=any_number,
    copied_share=any_number,
    pictures_are_not_blank=st.booleans(),
    pictures_vary=st.booleans(),
    base_kid=any_number,
    measured_on=st.sampled_from(["same", "other", ""]),
)


def test_a_better_challenger_is_promoted_and_the_reason_tells_the_figures():
    decision = decide(replace(SOUND, kid=0.4), SOUND, POLICY)
    assert decision.promote and not decision.broken
    assert "0.5000 → 0.4000" in decision.reason


def test_a_challenger_that_is_not_better_is_quietly_not_promoted():
    decision = decide(replace(SOUND, kid=0.6), SOUND, POLICY)
    assert not decision.promote and not decision.broken
    assert "0.5000 → 0.6000" in decision.reason


def test_the_first_model_must_beat_the_base():
    assert decide(SOUND, None, POLICY).promote
    decision = decide(replace(SOUND, base_kid=0.4), None, POLICY)
    assert not decision.promote and not decision.broken and "base model" in decision.reason
    assert not decide(replace(SOUND, base_kid=math.nan), None, POLICY).promote


def test_a_model_that_ignores_prompts_more_than_allowed_is_not_promoted():
    decision = decide(replace(SOUND, kid=0.1, recall_at_5=0.1), SOUND, POLICY)
    assert not decision.promote and not decision.broken and "R@5" in decision.reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kid": math.nan}, "not finite: kid"),
        ({"recall_at_5": math.inf}, "not finite: recall_at_5"),
        ({"pictures_are_not_blank": False}, "blank"),
        ({"pictures_vary": False}, "same whatever the prompt"),
        ({"copied_share": 0.5}, "50% of its pictures nearly copy"),
    ],
)
def test_a_broken_challenger_is_refused_with_the_reason(change, word):
    decision = decide(replace(SOUND, **change), None, POLICY)
    assert decision.broken and not decision.promote and word in decision.reason


def test_models_measured_on_different_pictures_are_not_compared():
    decision = decide(replace(SOUND, kid=0.1, measured_on="today"), SOUND, POLICY)
    assert not decision.promote and not decision.broken and "different held-out pictures" in decision.reason


def test_a_broken_champion_does_not_hold_its_place():
    assert decide(SOUND, replace(SOUND, kid=0.01, pictures_vary=False), POLICY).promote


@given(anything, st.none() | anything, policies)
def test_a_broken_model_is_never_promoted_and_every_decision_has_a_reason(challenger, champion, policy):
    decision = decide(challenger, champion, policy)
    assert decision.reason.endswith(".")
    assert not (decision.promote and decision.broken)
    judged = (challenger.kid, challenger.recall_at_1, challenger.recall_at_5, challenger.copied_share)
    if not all(map(math.isfinite, judged)) or not challenger.pictures_vary or not challenger.pictures_are_not_blank:
        assert decision.broken


@given(sound, sound, policies)
def test_a_model_that_is_not_nearer_than_the_champion_is_never_promoted(challenger, champion, policy):
    champion = replace(champion, copied_share=0.0)
    challenger = replace(challenger, kid=max(challenger.kid, champion.kid))
    assert not decide(challenger, champion, policy).promote


@given(sound, st.none() | sound, policies, st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_challenger_better_in_every_figure_is_promoted_wherever_the_worse_one_was(
    challenger, champion, policy, nearer, more_agreeing, fewer_copies
):
    improved = replace(
        challenger,
        kid=challenger.kid - nearer,
        recall_at_5=min(1.0, challenger.recall_at_5 + more_agreeing),
        copied_share=max(0.0, challenger.copied_share - fewer_copies),
    )
    if decide(challenger, champion, policy).promote:
        assert decide(improved, champion, policy).promote


@given(sound, policies)
def test_a_model_never_replaces_itself(figures, policy):
    assert not decide(figures, replace(figures, copied_share=0.0), policy).promote


def test_figures_are_read_from_the_evaluation_and_what_is_absent_is_broken():
    of = {
        "kid": 0.4,
        "kid_standard_error": 0.01,
        "recall_at_1": 0.1,
        "recall_at_5": 0.3,
        "copied_share": 0.0,
        "pictures_are_not_blank": True,
        "pictures_vary": True,
    }
    result = {"models": {"base": {"kid": 0.6}, "fine_tuned": of}, "measured_on": "abc"}
    figures = Figures.from_metrics(result)
    assert (figures.kid, figures.base_kid, figures.measured_on) == (0.4, 0.6, "abc")
    assert isinstance(decide(figures, None, POLICY), Decision) and decide(figures, None, POLICY).promote
    del of["kid"]
    assert decide(Figures.from_metrics(result), None, POLICY).broken
    with pytest.raises(ValueError, match="no model 'champion'; it has: base, fine_tuned"):
        Figures.from_metrics(result, "champion")


def test_a_student_serves_when_its_distance_is_at_most_so_much_higher_than_its_teachers():
    near, far = replace(SOUND, kid=0.5499), replace(SOUND, kid=0.5501)
    assert judge_student(near, SOUND, POLICY, max_kid_loss=0.1).promote
    refused = judge_student(far, SOUND, POLICY, max_kid_loss=0.1)
    assert not refused.promote and "more than 10% higher (KID 0.5000 → 0.5501" in refused.reason


def test_a_student_that_heeds_prompts_less_or_is_broken_does_not_serve():
    deaf = judge_student(replace(SOUND, recall_at_5=0.1), SOUND, POLICY, max_kid_loss=0.1)
    assert not deaf.promote and "agreement with the prompt falls" in deaf.reason
    broken = judge_student(replace(SOUND, kid=math.nan), SOUND, POLICY, max_kid_loss=0.1)
    assert broken.broken and not broken.promote and "not finite: kid" in broken.reason
