"""The request log's promises: committed when it returns, nothing invented, unreadable is not empty."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genai_assets.serving.request_log import (
    FEEDBACK_COLUMNS,
    REQUEST_COLUMNS,
    FeedbackEvent,
    LogUnavailable,
    RequestEntry,
    RequestLog,
    UnknownRequest,
)

PICTURE = "a" * 64


def entry(prompt: str = "a red car", **changes) -> RequestEntry:
    plain = {"n": 1, "size": "64x64", "seed": 7, "model_version": "v1", "status": 200, "picture_ids": [PICTURE]}
    return RequestEntry(prompt=prompt, **(plain | changes))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "log.sqlite"


@pytest.fixture
def log(file: Path):
    with RequestLog(f"sqlite:///{file}") as log:
        yield log


def test_reading_a_log_that_does_not_exist_gives_empty_frames_and_creates_nothing(log: RequestLog, file: Path):
    assert tuple(log.requests().columns) == REQUEST_COLUMNS and log.requests().empty
    assert tuple(log.feedback().columns) == FEEDBACK_COLUMNS and log.feedback().empty
    assert str(log.requests()["created_at"].dt.tz) == "UTC"
    assert not file.parent.exists()


def test_a_request_comes_back_as_it_was_written(log: RequestLog):
    written = entry("ein Häuschen 🏠", latency_ms=12.5, error_code=None)
    log.record_request(written)
    [row] = log.requests().to_dict("records")
    assert row["prompt"] == "ein Häuschen 🏠" and row["id"] == written.id and len(written.id) == 32
    assert row["created_at"].to_pydatetime() == written.created_at
    assert row["picture_ids"] == [PICTURE] and row["latency_ms"] == 12.5 and row["error_code"] is None


def test_another_connection_sees_a_row_as_soon_as_it_is_recorded(log: RequestLog, file: Path):
    log.record_request(entry())
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        assert connection.execute("select count(*) from requests").fetchone() == (1,)
        assert connection.execute("pragma journal_mode").fetchone() == ("delete",)
    connection.close()


def test_the_newest_requests_of_a_model_come_in_order(log: RequestLog):
    for number in range(6):
        log.record_request(entry(str(number), model_version=f"v{number % 2}"))
    assert list(log.requests(newest=3)["prompt"]) == ["3", "4", "5"]
    assert list(log.requests(model_version="v1", newest=2)["prompt"]) == ["3", "5"]
    assert log.requests(newest=0).empty


def test_feedback_is_kept_with_its_picture(log: RequestLog):
    asked = entry()
    log.record_request(asked)
    log.record_feedback(FeedbackEvent(request_id=asked.id, picture_id=PICTURE, rating=-1, better_caption="a blue car"))
    [row] = log.feedback().to_dict("records")
    assert (row["request_id"], row["picture_id"], row["rating"]) == (asked.id, PICTURE, -1)
    assert row["better_caption"] == "a blue car" and row["comment"] == ""


def test_feedback_on_an_unknown_request_or_picture_is_refused(log: RequestLog):
    asked = entry()
    log.record_request(asked)
    with pytest.raises(UnknownRequest, match="no request 'nobody'"):
        log.record_feedback(FeedbackEvent(request_id="nobody", picture_id=PICTURE, rating=1))
    with pytest.raises(UnknownRequest, match="drew no picture 'b'"):
        log.record_feedback(FeedbackEvent(request_id=asked.id, picture_id="b", rating=1))
    assert log.feedback().empty


def test_a_rating_is_up_or_down():
    with pytest.raises(ValueError, match="-1 or 1, not 5"):
        FeedbackEvent(request_id="r", picture_id=PICTURE, rating=5)  # pyright: ignore[reportArgumentType]


def test_a_log_that_cannot_be_written_or_read_says_so(tmp_path: Path):
    file = tmp_path / "log.sqlite"
    file.write_bytes(b"this is no database, whatever its name says" * 50)
    with RequestLog(f"sqlite:///{file}") as log:
        with pytest.raises(LogUnavailable, match="cannot be written: file is not a database"):
            log.record_request(entry())
        with pytest.raises(LogUnavailable, match="cannot be read"):
            log.requests()


def test_a_read_only_log_can_be_read_and_not_written(log: RequestLog, file: Path):
    log.record_request(entry("kept"))
    with RequestLog(f"sqlite:///file:{file}?mode=ro&uri=true") as read_only:
        assert list(read_only.requests()["prompt"]) == ["kept"]
        with pytest.raises(LogUnavailable, match="readonly database"):
            read_only.record_request(entry("lost"))
    assert list(log.requests()["prompt"]) == ["kept"]


def test_two_logs_of_one_file_write_at_once_and_lose_nothing(file: Path):
    def write(worker: int) -> None:
        with RequestLog(f"sqlite:///{file}") as mine:
            for number in range(10):
                mine.record_request(entry(f"{worker}-{number}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with RequestLog(f"sqlite:///{file}") as log:
        assert log.requests()["prompt"].nunique() == 40
