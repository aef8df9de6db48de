"""The benchmark runner shows what was measured, and does not take a broken benchmark for a result."""

import json

import pytest

from benchmarks import run

RESULT = {"name": "things a second", "ours": 4.0, "peer": 2.0, "ratio": 2.0, "goal": 3.0, "quality": "same things"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "trials"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    return folder


def test_the_last_line_is_the_result_and_the_goal_is_compared(folder):
    (folder / "good.py").write_text(f"print('warming up')\nprint({json.dumps(json.dumps(RESULT))})")
    result = run.run_benchmark("good", folder)
    assert (result.ours, result.peer, result.reached) == (4.0, 2.0, False)


def test_a_ratio_that_is_not_told_leaves_the_goal_undecided(folder):
    (folder / "short.py").write_text(f"print({json.dumps(json.dumps(RESULT | {'ratio': None}))})")
    assert run.run_benchmark("short", folder).reached is None


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('the disk is gone')", "the disk is gone"),
        ("print('no json')", "no json"),
        ("print('{}')", "name"),
        ("", "no result"),
    ],
)
def test_a_benchmark_that_breaks_or_gives_no_result_is_told_as_broken(folder, code, said):
    (folder / "bad.py").write_text(code)
    with pytest.raises(run.BenchmarkBroken, match=said):
        run.run_benchmark("bad", folder)


def test_every_module_beside_the_runner_is_a_benchmark():
    assert "picture_store" in run.find_benchmarks()
    assert "run" not in run.find_benchmarks()


def test_an_unknown_benchmark_is_refused_with_the_known_ones(capsys):
    assert run.main(["nonsense"]) == 1
    assert "picture_store" in capsys.readouterr().out
