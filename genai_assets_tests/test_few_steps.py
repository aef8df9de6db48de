"""The figures of few-step students: the table, its place in the docs, and what the benchmark tells of them."""

import json
from pathlib import Path

import pytest

from benchmarks import drawing_few_steps, run
from benchmarks.quality import few_steps
from benchmarks.quality.few_steps import Row, markdown, write_figures
from genai_assets import stages
from genai_assets.settings import Settings


def figures(kid: float, latency: float, style: float | None = 0.5) -> dict[str, float | None]:
    return {
        "kid": kid,
        "kid_standard_error": 0.02,
        "recall_at_1": 0.25,
        "style_score": style,
        "latency_ms": latency,
    }


TEACHER = figures(0.20, 70.0)
MANY = figures(0.25, 200.0)


def row(kid: float, *, steps: int = 4, adversarial: float = 0.0) -> Row:
    return Row(2.0, steps, adversarial, "guidance", TEACHER, figures(kid, 10.0))


def test_a_student_is_told_by_how_much_of_its_teachers_kid_it_is_worse():
    assert row(0.23).loss == pytest.approx(0.15)
    text = markdown([row(0.23), row(0.19, steps=1, adversarial=0.5)], MANY, Settings())
    assert "| teacher, 30 steps, guidance 3 | – | 0.250 ± 0.020 | – | – | 0.25 | 50% | 200 |" in text
    assert "| teacher, 8 steps, guidance 3 | – | 0.200 ± 0.020 | – | – | 0.25 | 50% | 70 |" in text
    assert "| student of guidance, 4 steps | 2 | 0.230 ± 0.020 | -8% | +15% | 0.25 | 50% | 10 |" in text
    assert "| student of guidance, 1 step, discriminator 0.5 | 2 | 0.190 ± 0.020 | -24% | -5% |" in text


def test_a_dataset_of_one_style_has_no_style_figure():
    alone = Row(1.0, 4, 0.0, "trajectory", figures(0.2, 70, None), figures(0.3, 10, None))
    assert "| 0.25 | – | 10 |" in markdown([alone], MANY, Settings())


def test_the_table_takes_the_place_between_the_marks_and_no_more(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{few_steps.BEGIN}old\n{few_steps.END}after\n")
    for _ in range(2):
        write_figures("new\n", page)
    assert page.read_text() == f"before\n{few_steps.BEGIN}new\n{few_steps.END}after\n"


def test_a_page_without_a_place_is_a_clear_error_and_stays_as_it_is(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="no place for the figures"):
        write_figures("new\n", page)
    assert page.read_text() == "no marks\n"


def test_the_committed_page_has_a_place_for_it():
    text = few_steps.DOC.read_text()
    assert text.count(few_steps.BEGIN) == text.count(few_steps.END) == 1


def test_the_benchmark_tells_the_kid_of_the_newest_evaluated_student(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GENAI_HOME", str(tmp_path / "home"))
    assert "no KID" in drawing_few_steps.kid_at_hand()

    models = {"fine_tuned": TEACHER, stages.FEW_STEPS: figures(0.21, 10.0)}
    told = {"distillation": {"drawing_steps": 4}, "sampling_steps": 8, "guidance_scale": 3.0}

    def make(out: Path) -> dict[str, object]:
        (out / "metrics.json").write_text(json.dumps({"models": models, "provenance": told}))
        return {"models": models}

    stages.artifact_store(Settings()).build("eval_report", {"student": "s"}, make)
    assert drawing_few_steps.kid_at_hand() == (
        "KID of the newest student, 4 steps: 0.210 ± 0.020; of its teacher, 8 steps with guidance 3: 0.200 ± 0.020"
    )


def test_it_is_among_the_benchmarks():
    assert "drawing_few_steps" in run.find_benchmarks()
