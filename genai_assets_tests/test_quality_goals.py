"""The table of goals compares what it says it compares, and the sheets show every prompt once in every style."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.quality import goals, sheets
from benchmarks.quality.goals import Estimate, Measured, Row
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.settings import Settings
from genai_assets_tests.tiny_pipeline import save_tiny_pipeline

COUNT = 10


def measured(
    *,
    minutes: float = 5.0,
    seed: int = 0,
    kid: float = 0.3,
    style: float | None = 0.8,
    base_kid: float = 0.5,
    found: int = 3,
    real_found: int = 5,
) -> Measured:
    """Figures of a run: so many of ten concepts were found first by the fine-tuned and by the real pictures."""

    def of(kid: float, style: float | None, found: int) -> dict[str, float | None]:
        return {"kid": kid, "kid_standard_error": 0.01, "style_score": style, "recall_at_1": found / COUNT}

    models = {
        "base": of(base_kid, None if style is None else 0.0, 1),
        "fine_tuned": of(kid, style, found),
        "real": of(-0.01, None if style is None else 0.9, real_found),
    }
    frames = [
        pd.DataFrame(
            {
                "concept": [f"c{number}" for number in range(COUNT)],
                "model": name,
                "rank": [1 if number < round(COUNT * (figures["recall_at_1"] or 0)) else 7 for number in range(COUNT)],
            }
        )
        for name, figures in models.items()
    ]
    metrics = {"pictures": COUNT, "chance": {"recall_at_1": 1 / COUNT}, "models": models}
    return Measured(minutes, seed, 450, metrics, pd.concat(frames, ignore_index=True))


def row(rows: list[Row], *words: str) -> Row:
    [found] = [row for row in rows if all(word in row.what for word in words)]
    return found


def test_five_minutes_are_held_against_half_the_bases_kid_and_the_style_goal():
    rows = goals.goal_rows([measured(kid=0.3, style=0.8, base_kid=0.5)])
    kid, style = row(rows, "after 5 min", "KID"), row(rows, "after 5 min", "house style")
    assert (kid.goal, kid.reached) == (0.25, False)
    assert "0.60 of it" in kid.note
    assert (style.goal, style.reached) == (0.8, True)
    assert row(rows, "after 5 min", "R@1").reached is None
    assert row(goals.goal_rows([measured(kid=0.25)]), "after 5 min", "KID").reached is True


def test_an_hour_is_held_against_its_own_goals():
    rows = goals.goal_rows([measured(), measured(minutes=60, kid=0.09, found=3, real_found=5)])
    kid, recall = row(rows, "after 60 min", "KID"), row(rows, "after 60 min", "R@1")
    assert (kid.goal, kid.reached) == (0.10, True)
    assert recall.estimate.value == pytest.approx(0.6) and recall.reached is True
    assert row(rows, "after 60 min", "house style").reached is None
    worse = goals.goal_rows([measured(), measured(minutes=60, found=2, real_found=5)])
    assert row(worse, "after 60 min", "R@1").reached is False


def test_several_seeds_are_averaged_and_their_range_is_shown():
    rows = goals.goal_rows([measured(seed=0, kid=0.30), measured(seed=1, kid=0.20)])
    kid = row(rows, "after 5 min", "KID")
    assert kid.estimate.value == pytest.approx(0.25)
    assert goals.cells(kid)[3] == "0.200 to 0.300"
    assert goals.cells(row(rows, "floor"))[3] == ""


def test_a_goal_inside_the_interval_is_told_as_not_sure():
    def verdict(value: float, low: float, high: float) -> str:
        return goals.cells(Row("x", Estimate(value, low, high), goal=0.2))[5]

    assert verdict(0.19, 0.15, 0.23) == "reached, not sure"
    assert verdict(0.10, 0.05, 0.15) == "reached"
    assert verdict(0.30, 0.25, 0.35) == "missed"


def test_wilsons_interval_is_the_known_one_and_stays_a_share():
    assert goals.wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    low, high = goals.wilson_interval(1.0, 10)
    assert low == pytest.approx(0.7225, abs=1e-3) and high == 1.0


def test_agreement_is_paired_by_concept_whatever_the_order_of_rows():
    run = measured(found=3, real_found=5)
    shuffled = Measured(5.0, 0, 450, run.metrics, run.concepts.sample(frac=1, random_state=1))
    first, second = (goals.recall_estimate([one], "fine_tuned") for one in (run, shuffled))
    assert first == second
    # The same concepts are drawn for both, so pictures as good as the real ones are surely as good.
    same = goals.recall_estimate([measured(found=5, real_found=5)], "fine_tuned")
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)


def test_figures_that_nothing_can_be_held_against_are_refused():
    with pytest.raises(ValueError, match="one style only"):
        goals.goal_rows([measured(style=None)])
    with pytest.raises(ValueError, match="no real picture"):
        goals.goal_rows([measured(real_found=0)])
    with pytest.raises(ValueError, match="nothing was measured"):
        goals.goal_rows([])


def test_the_written_table_has_every_row_and_the_json_says_what_was_reached(tmp_path):
    runs = [measured()]
    rows = goals.goal_rows(runs)
    goals.write_figures(rows, runs, Settings(home=tmp_path), tmp_path)
    lines = (tmp_path / "goals.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert '"reached": false' in (tmp_path / "goals.json").read_text()


def test_a_home_of_its_own_shares_the_downloaded_packages(tmp_path):
    settings = Settings(home=tmp_path / "home")
    home = goals.own_home(settings)
    (settings.paths.packages / "noto").mkdir()
    assert home != settings.home and (home / "packages" / "noto").is_dir()
    assert goals.own_home(settings) == home


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--seeds", "0"]])
def test_no_time_and_no_seeds_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        goals.parse(words)
    assert "at least 1" in capsys.readouterr().err


def test_pictures_lie_in_the_row_of_their_style_and_the_column_of_their_caption():
    colours = {"one": ["red", "lime"], "two": ["blue", "yellow"]}
    rows = {name: [Image.new("RGB", (64, 64), colour) for colour in row] for name, row in colours.items()}
    sheet = np.asarray(sheets.lay_out(rows, ["a", "a very long caption"]).convert("RGB"))
    places = {
        colour: np.argwhere((sheet == colour).all(-1)).mean(0) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    }
    red, lime, blue = places.values()
    assert red[0] == lime[0] < blue[0] and red[1] == blue[1] < lime[1]
    with pytest.raises(ValueError, match="not as many pictures in two"):
        sheets.lay_out({"one": rows["one"], "two": rows["two"][:1]}, ["a", "b"])


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    shape = DenoiserConfig(hidden_size=64, depth=1, num_heads=1, bottleneck_size=16, axes_dim=(32, 32))
    save_tiny_pipeline(folder, shape)
    return folder


def test_the_sheets_alone_are_drawn_of_any_base_model(tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GENAI_SAMPLING__STEPS", "1")
    monkeypatch.setenv("GENAI_HOME", str(tmp_path / "home"))
    assert goals.main(["--sheet-only", "--base", str(tiny_base), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for name in ("things-base.png", "combinations-base.png"):
        with Image.open(tmp_path / name) as sheet:
            assert sheet.width > 12 * 64 and sheet.height > len(goals.BASE_STYLES) * 64
        assert name in said
    assert not (tmp_path / "goals.json").exists()


def test_a_base_model_that_is_not_there_is_told_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GENAI_HOME", str(tmp_path / "home"))
    assert goals.main(["--sheet-only", "--base", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
