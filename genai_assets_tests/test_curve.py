"""The curve of quality against time: what is chosen, what is written."""

import pytest

from benchmarks import run
from benchmarks.quality import curve
from benchmarks.quality.curve import Point, chart, cheapest_good, markdown, write_page


def point(name: str, steps: int, kid: float, *, guidance_scale: float = 3.0, error: float = 0.02) -> Point:
    return Point(name, steps, guidance_scale, kid, error, recall_at_1=0.3, seconds=steps / 100)


POINTS = [point("euler", 8, 0.30), point("euler", 30, 0.20), point("dpm++", 8, 0.215), point("heun", 8, 0.21)]


def worse(one: Point, other: Point) -> float:
    return (other.kid - one.kid) / 0.02


def test_the_cheapest_point_within_one_standard_error_of_the_best_is_chosen():
    assert cheapest_good(POINTS, worse) == POINTS[2]
    unguided = point("euler", 16, 0.219, guidance_scale=1.0)
    assert cheapest_good([*POINTS, unguided], worse) == POINTS[2], "as many rows, and a lower KID"
    assert cheapest_good([*POINTS, point("euler", 8, 0.219, guidance_scale=1.0)], worse).guidance_scale == 1.0
    assert cheapest_good(POINTS, lambda _one, _other: 2.0) == POINTS[1], "the best itself"


def test_rows_count_guidance_and_the_second_call_of_heun():
    assert [point.rows for point in POINTS] == [16, 60, 16, 30]


def test_nothing_measured_is_a_clear_error():
    with pytest.raises(ValueError, match="no point"):
        cheapest_good([], worse)


def test_table_and_picture_take_the_place_between_the_marks_and_no_more(tmp_path):
    page, place = tmp_path / "page.md", tmp_path / "curve.png"
    page.write_text(f"before\n{curve.BEGIN}old\n{curve.END}after\n")
    for _ in range(2):
        write_page(markdown(POINTS, POINTS[2], 128), chart(POINTS), page, place)
    text = page.read_text()
    assert text.startswith(f"before\n{curve.BEGIN}128 held-out prompts")
    assert text.endswith(f"{curve.END}after\n")
    assert "| dpm++ | 8 | 3 | 16 | 0.2150 ± 0.0200 | 0.30 | 0.080 |" in text
    assert "old" not in text
    assert place.stat().st_size <= curve.MOST_BYTES


def test_a_full_picture_is_small_enough():
    names = ("euler", "heun", "dpm++", "unipc")
    points = [point(name, steps, 0.5 / steps + 0.01 * len(name)) for name in names for steps in curve.STEPS]
    assert len(chart(points)) <= curve.MOST_BYTES


def test_a_page_without_a_place_is_a_clear_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place for the curve"):
        write_page("table", b"", page, tmp_path / "curve.png")


def test_the_committed_page_has_a_place_for_it():
    text = curve.PAGE.read_text()
    assert curve.BEGIN in text
    assert curve.END in text


def test_the_curve_takes_no_part_in_make_bench():
    assert "drawing" in run.find_benchmarks()
    assert "curve" not in run.find_benchmarks()
