"""What is left for review: honest words, a piece of genai.toml, and a merge that loses nothing."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from genai_assets.diffusion.tuning.proposal import (
    PAGE,
    PROPOSAL,
    STUDY,
    CannotMerge,
    changes,
    describe_trial,
    merge,
    proposal_text,
    verdict,
    write_study,
)
from genai_assets.diffusion.tuning.space import Budget, Choice, Range, Space
from genai_assets.diffusion.tuning.study import Again, StudyResult, Trial
from genai_assets.settings import Settings

SPACE: Space = {
    "learning_rate": Range(3e-5, 3e-3, log=True),
    "batch_size": Choice((32, 64)),
    "loss_weighting": Choice(("family", "none")),
}
BUDGET = Budget(8192, 8)
CURRENT = Trial(0, "complete", {"learning_rate": 3e-4, "batch_size": 64, "loss_weighting": "family"}, 0.5, 60.0)
BETTER = Trial(1, "complete", {"learning_rate": 8e-5, "batch_size": 64, "loss_weighting": "none"}, 0.4, 61.0)
FAILED = Trial(2, "failed", {"learning_rate": 3e-3, "batch_size": 32, "loss_weighting": "none"}, None, 1.0, "a <nan>")
BETTER_AGAIN = (Again(1, 0.52, 0.41),)
RESULT = StudyResult("fine-tune-1", (CURRENT, BETTER, FAILED), BETTER_AGAIN, interrupted=1)
NOT_BETTER = StudyResult("fine-tune-1", (CURRENT, FAILED), (), interrupted=0)
LUCKY = dataclasses.replace(RESULT, again=(Again(1, 0.4, 0.41),))


def test_a_proposal_loads_as_settings_and_has_only_what_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_study(tmp_path, RESULT, SPACE, BUDGET, {}, {})
    monkeypatch.setenv("GENAI_CONFIG", str(tmp_path / PROPOSAL))
    assert tomllib.loads((tmp_path / PROPOSAL).read_text()) == {"fine_tune": changes(RESULT)}
    assert changes(RESULT) == {"learning_rate": 8e-5, "loss_weighting": "none"}
    settings = Settings()
    assert (settings.fine_tune.learning_rate, settings.fine_tune.loss_weighting) == (8e-5, "none")
    assert settings.fine_tune.batch_size == 64


def test_a_proposal_tells_a_reviewer_what_it_rests_on():
    text = proposal_text(RESULT, BUDGET)
    for told in (
        "fine-tune-1",
        "trial number 1, of 3 trials",
        "0.4; current settings: 0.5",
        "seed 1: 0.41",
        "8,192 pictures",
    ):
        assert told in text
    assert "learning_rate = 8e-05  # now 0.0003" in text


@pytest.mark.parametrize(
    ("result", "why"), [(NOT_BETTER, "No other of 2 trials"), (LUCKY, "With another seed it was not")]
)
def test_where_nothing_is_better_nothing_is_proposed_and_it_says_so(tmp_path: Path, result: StudyResult, why: str):
    summary = write_study(tmp_path, result, SPACE, BUDGET, {}, {})
    assert why in summary["verdict"] and "nothing is proposed" in summary["verdict"]
    assert summary["proposed"] == {}
    assert not (tmp_path / PROPOSAL).exists()
    with pytest.raises(ValueError, match="proposes nothing"):
        proposal_text(result, BUDGET)


def test_a_better_trial_is_told_with_its_gain():
    assert "number 1, reaches 0.4, 20.0% less" in verdict(RESULT)
    assert "failed (it diverged)" in verdict(
        dataclasses.replace(
            RESULT,
            trials=(dataclasses.replace(CURRENT, state="failed", validation_loss=None, reason="it diverged"), BETTER),
        )
    )


def test_the_page_and_the_figures_have_every_trial(tmp_path: Path):
    write_study(tmp_path, RESULT, SPACE, BUDGET, {"A plot": "<div>drawn</div>"}, {"device": "cpu"})
    page = (tmp_path / PAGE).read_text()
    assert page.count('<td class="number">') == 3 * (3 + len(SPACE))
    assert "a &lt;nan&gt;" in page and "<div>drawn</div>" in page and "http" not in page
    figures = json.loads((tmp_path / STUDY).read_text())
    assert [trial["state"] for trial in figures["trials"]] == ["complete", "complete", "failed"]
    assert figures["facts"] == {"device": "cpu"} and figures["interrupted"] == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '[fine_tune]\nlearning_rate = 8e-05\nloss_weighting = "none"\n'),
        (
            '# ours\nhome = "x"\n\n[fine_tune] # the style\nlearning_rate = 3e-4 # tried by Ada\nmethod = "full"\n\n'
            "[serving]\nport = 3111\n",
            '# ours\nhome = "x"\n\n[fine_tune] # the style\nloss_weighting = "none"\n'
            'learning_rate = 8e-05 # tried by Ada\nmethod = "full"\n\n[serving]\nport = 3111\n',
        ),
        (
            '[dataset]\nhouse_style = "ours"\n',
            '[dataset]\nhouse_style = "ours"\n\n[fine_tune]\nlearning_rate = 8e-05\nloss_weighting = "none"\n',
        ),
        (
            "[fine_tune.augmentation]\nflip = 0.0\n",
            '[fine_tune.augmentation]\nflip = 0.0\n\n[fine_tune]\nlearning_rate = 8e-05\nloss_weighting = "none"\n',
        ),
    ],
)
def test_merging_changes_those_lines_and_nothing_else(before: str, after: str):
    merged = merge(before, proposal_text(RESULT, BUDGET))
    assert merged == after
    assert merge(merged, proposal_text(RESULT, BUDGET)) == merged


@pytest.mark.parametrize(
    "text",
    [
        "fine_tune = { learning_rate = 3e-4 }\n",
        "fine_tune.learning_rate = 3e-4\n",
        '[fine_tune]\nprompt_template = """\nlearning_rate = 1\n{caption}"""\n',
        "[fine_tune\n",
    ],
)
def test_a_file_written_in_another_way_is_left_to_a_person(text: str):
    with pytest.raises(CannotMerge):
        merge(text, proposal_text(RESULT, BUDGET))


def test_a_trial_is_told_in_one_line():
    assert describe_trial(CURRENT, 20) == (
        "trial number 0 (1 of 20), the current settings: complete, validation 0.5000; "
        "learning_rate 0.0003, batch_size 64, loss_weighting family"
    )
    assert describe_trial(FAILED, 20).startswith("trial number 2 (3 of 20): failed, a <nan>; learning_rate 0.003,")
