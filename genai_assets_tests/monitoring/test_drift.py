"""Drift's promises: yes when the population moved, no when it did not, unknown when there is too little to say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from genai_assets.evaluation.features import TextFeatures
from genai_assets.monitoring.drift import DriftResult, detect_drift
from genai_assets.settings import MonitoringSettings

SETTINGS = MonitoringSettings()  # pyright: ignore[reportCallIssue]


def words(text: str) -> list[str]:
    return text.split()


ANIMALS = words("""
    ant badger bat bear beaver bee beetle bird bison boar butterfly camel cat chicken chipmunk cow crab cricket
    crocodile deer dodo dog dolphin dove dragon duck eagle elephant ewe fish flamingo fly fox frog giraffe goat
    goose gorilla hamster hedgehog hippopotamus horse kangaroo koala ladybug leopard lion lizard llama lobster
    mammoth mosquito mouse octopus orangutan otter owl ox oyster panda parrot peacock penguin pig poodle rabbit
    raccoon ram rat rhinoceros rooster scorpion seal shark shrimp skunk sloth snail snake spider squid swan tiger
    turkey turtle whale wolf worm zebra
""")

OBJECTS = words("""
    anchor accordion axe backpack balloon banjo bathtub battery bed bell bicycle bomb bookmark books boot bottle
    bowl briefcase broom brush bucket bus calculator calendar camera candle canoe car chair chart clipboard clock
    coat coin compass computer couch crayon crown desk diamond door dress drum dumbbell envelope eyeglasses
    flashlight fountain gear gloves guitar hammer handbag hat headphones helicopter hook hourglass house jeans jar
    key keyboard kite knife ladder lamp laptop locket magnet mailbox map microphone microscope mirror motorcycle
    nail necklace needle newspaper notebook package paintbrush paperclip pen pencil piano pill pin plunger printer
    purse puzzle radio razor ribbon ring robot rocket rope ruler safe sandal satellite saw scarf scissors screw
    shield ship shirt shoe shovel sled soap sock sponge stapler stethoscope stopwatch suitcase sunglasses sword
    syringe tape telephone telescope television tent thermometer thread ticket toilet toolbox toothbrush tractor
    train tram trolley trombone truck trumpet umbrella unicycle vase violin wallet watch wheel whistle window
    wrench yarn
""")


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return TextFeatures()


def rows(prompts: list[str], seed: int, *, shift: float = 0.0, latency: float = 5.0) -> pd.DataFrame:
    """Requests whose pictures' figures are random; ``shift`` moves the pictures, in standard deviations."""
    random = np.random.default_rng(seed)
    figures = {name: random.normal(0.5, 0.1, len(prompts)) for name in ("brightness", "saturation", "contrast")}
    pictures = {f"pic_{number}": random.normal(shift, 1, len(prompts)) for number in range(3)}
    return pd.DataFrame(
        {"prompt": prompts, "latency_ms": random.lognormal(latency, 0.3, len(prompts))} | figures | pictures
    )


def halves() -> tuple[list[str], list[str]]:
    shuffled = [str(word) for word in np.random.default_rng(3).permutation(OBJECTS)]
    return shuffled[:90], shuffled[90:]


def test_the_same_population_is_a_no(features, tmp_path: Path):
    ours, theirs = halves()
    result = detect_drift(rows(ours, 1), rows(theirs, 2), SETTINGS, tmp_path, text_features=features)
    assert result.verdict == "no", result
    assert result.share is not None and result.share < 0.2 and result.latency_drifted is False
    assert not result.not_compared


def test_prompts_that_move_to_animals_are_a_yes(features, tmp_path: Path):
    ours, _ = halves()
    result = detect_drift(rows(ours, 1), rows(ANIMALS[:50], 2), SETTINGS, tmp_path, text_features=features)
    assert result.verdict == "yes" and "prompts" in result.reason and "pictures" not in result.reason


def test_pictures_that_change_under_the_same_prompts_are_a_yes(features, tmp_path: Path):
    ours, theirs = halves()
    result = detect_drift(rows(ours, 1), rows(theirs, 2, shift=1.0), SETTINGS, tmp_path, text_features=features)
    assert result.verdict == "yes" and "pictures" in result.reason and "prompts" not in result.reason


def test_latency_alone_is_reported_and_is_no_reason(features, tmp_path: Path):
    ours, theirs = halves()
    result = detect_drift(rows(ours, 1), rows(theirs, 2, latency=7.0), SETTINGS, tmp_path, text_features=features)
    assert result.verdict == "no" and result.latency_drifted is True


def test_many_columns_that_each_move_a_little_are_a_yes_by_their_share(features, tmp_path: Path):
    ours, theirs = halves()
    low = SETTINGS.model_copy(update={"drift_share": 0.05})
    moved = rows(theirs, 2)
    moved["brightness"] += 0.2
    moved["contrast"] += 0.2
    result = detect_drift(rows(ours, 1), moved, low, tmp_path, text_features=features)
    assert result.verdict == "yes" and "of the columns" in result.reason


@pytest.mark.parametrize("reference", [None, pd.DataFrame(), pd.DataFrame({"brightness": [1.0]})])
def test_without_a_usable_reference_it_is_unknown(reference: pd.DataFrame | None, tmp_path: Path):
    result = detect_drift(reference, rows(OBJECTS, 2), SETTINGS, tmp_path)
    assert result.verdict == "unknown" and result.reason
    assert "unknown" in (tmp_path / "drift.html").read_text()


def test_too_few_requests_are_unknown_with_the_figures(tmp_path: Path):
    result = detect_drift(rows(OBJECTS, 1), rows(ANIMALS[:49], 2), SETTINGS, tmp_path)
    assert result.verdict == "unknown" and "49" in result.reason and "50" in result.reason


def test_no_request_at_all_is_unknown(tmp_path: Path):
    assert detect_drift(rows(OBJECTS, 1), rows([], 2), SETTINGS, tmp_path).verdict == "unknown"
    assert detect_drift(rows(OBJECTS, 1), pd.DataFrame(), SETTINGS, tmp_path).verdict == "unknown"


def test_one_person_pressing_the_button_again_and_again_is_not_many_requests(tmp_path: Path):
    pressed = rows(["a cat", "A  CAT "] * 100, 2)
    result = detect_drift(rows(OBJECTS, 1), pressed, SETTINGS, tmp_path)
    assert result.verdict == "unknown" and (result.current_requests, result.current_prompts) == (200, 1)


def test_lost_pictures_make_a_no_unknown_but_leave_a_yes(features, tmp_path: Path):
    ours, theirs = halves()
    same, moved = rows(theirs, 2), rows(ANIMALS, 2)
    for frame in (same, moved):
        frame.loc[:, frame.filter(regex=r"^pic_").columns] = np.nan
    unknown = detect_drift(rows(ours, 1), same, SETTINGS, tmp_path, text_features=features)
    assert unknown.verdict == "unknown" and "pictures" in unknown.reason and "pic_0" in unknown.not_compared
    yes = detect_drift(rows(ours, 1), moved, SETTINGS, tmp_path, text_features=features)
    assert yes.verdict == "yes"


def test_empty_constant_and_infinite_columns_do_no_harm(features, tmp_path: Path):
    ours, theirs = halves()
    reference, current = rows(ours, 1), rows(theirs, 2)
    reference["brightness"] = np.nan  # empty
    current = current.drop(columns="saturation")  # missing
    reference["contrast"] = current["contrast"] = 0.5  # constant
    current.loc[::9, "pic_0"] = np.inf
    current.loc[::7, "pic_1"] = np.nan
    reference["latency_ms"] = None
    result = detect_drift(reference, current, SETTINGS, tmp_path, text_features=features)
    assert result.verdict == "no" and result.latency_drifted is None
    assert set(result.not_compared) == {"brightness", "saturation", "latency_ms"}
    assert {column.column: column.p_value for column in result.columns}["contrast"] == 1


def test_the_report_is_written_says_the_verdict_and_is_the_same_twice(features, tmp_path: Path):
    ours, _ = halves()
    results: list[DriftResult] = []
    for name in ("one", "two"):
        results.append(detect_drift(rows(ours, 1), rows(ANIMALS, 2), SETTINGS, tmp_path / name, text_features=features))
    assert results[0] == results[1]
    written = json.loads((tmp_path / "one" / "drift.json").read_text())
    assert written == json.loads(json.dumps(results[0].summary()))
    assert written["verdict"] == "yes" and len(written["columns"]) == 8 + 2 + 3 + 3 + 1
    page = (tmp_path / "one" / "drift.html").read_text()
    assert "Drift: yes" in page and "prompt_axis_0" in page and "K-S p_value" in page
    assert page == (tmp_path / "two" / "drift.html").read_text()


def test_nothing_but_a_drift_report_imports_evidently():
    code = (
        "import sys, genai_assets.monitoring.drift, genai_assets.monitoring.retraining, "
        "genai_assets.monitoring.feedback; assert not {'evidently', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
