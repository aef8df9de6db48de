"""The promises of asking for a retrain: once per reason, not too soon, not too often, and never on what is unknown."""

import itertools
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from genai_assets.monitoring.retraining import (
    UNKNOWN,
    LedgerUnavailable,
    Reason,
    RetrainLedger,
    RetrainRequest,
    decide_retrain,
)
from genai_assets.settings import MonitoringSettings

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def policy(cooldown_hours: float = 6.0, a_week: int = 7) -> MonitoringSettings:
    return MonitoringSettings(retrain_cooldown_hours=cooldown_hours, max_retrains_a_week=a_week)  # pyright: ignore


def drift(key: str = "abc") -> Reason:
    return Reason("drift", key, "the prompts differ")


def asked(reason: Reason, hours_ago: float) -> RetrainRequest:
    return RetrainRequest(reason.run_key, reason.kind, reason.detail, NOW - timedelta(hours=hours_ago))


def test_a_new_reason_is_asked_for():
    decision = decide_retrain([drift()], [], NOW, policy())
    assert decision.request and decision.reason == drift() and decision.run_key == drift().run_key
    assert "the prompts differ" in decision.why


def test_no_reason_asks_for_nothing():
    assert not decide_retrain([], [], NOW, policy()).request


def test_a_reason_that_was_asked_for_is_passed_over_for_the_next_one():
    old, new = drift("old"), Reason("feedback", "000001-aa", "a batch closed")
    assert decide_retrain([old, new], [asked(old, 100)], NOW, policy()).reason == new
    assert not decide_retrain([old], [asked(old, 10_000)], NOW, policy()).request


def test_equal_keys_of_two_kinds_are_two_reasons():
    assert drift("abc").run_key != Reason("new_data", "abc", "").run_key


def test_the_run_key_does_not_depend_on_the_detail():
    assert Reason("drift", "abc", "seen on Monday").run_key == Reason("drift", "abc", "seen on Tuesday").run_key


def test_a_reason_without_a_key_is_refused():
    with pytest.raises(ValueError, match="key"):
        Reason("drift", " ", "")


def test_the_cooldown_holds_back_and_loses_nothing():
    earlier = [asked(drift("old"), 5.9)]
    held = decide_retrain([drift()], earlier, NOW, policy(6))
    assert not held.request and "must pass" in held.why
    assert decide_retrain([drift()], earlier, NOW + timedelta(hours=0.1), policy(6)).request


def test_the_longest_cooldown_holds_back_and_a_longer_one_is_refused():
    earlier = [asked(drift("old"), 8783)]
    assert not decide_retrain([drift()], earlier, NOW, policy(8784)).request
    for hours in (8784.1, 1e15, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="retrain_cooldown_hours"):
            policy(hours)


def test_the_weekly_budget_holds_back():
    earlier = [asked(drift(str(day)), 24 * day) for day in range(1, 4)]
    held = decide_retrain([drift()], earlier, NOW, policy(a_week=3))
    assert not held.request and "seven days" in held.why
    assert decide_retrain([drift()], earlier, NOW, policy(a_week=4)).request


def test_what_could_not_be_read_asks_for_nothing_and_allows_nothing():
    assert "could not be read" in decide_retrain(UNKNOWN, [], NOW, policy()).why
    assert not decide_retrain(UNKNOWN, [], NOW, policy()).request
    assert not decide_retrain([drift()], UNKNOWN, NOW, policy()).request


def test_a_clock_set_back_does_not_open_the_gate():
    assert not decide_retrain([drift()], [asked(drift("later"), -48)], NOW, policy()).request


def test_now_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        decide_retrain([drift()], [], NOW.replace(tzinfo=None), policy())


looks = st.lists(
    st.tuples(
        st.timedeltas(timedelta(0), timedelta(days=3)),
        st.one_of(st.just(UNKNOWN), st.lists(st.sampled_from("abcdefghijklmnop"), max_size=4)),
    ),
    max_size=60,
)


@trials(max_examples=150, deadline=None)
@given(looks, st.floats(0, 100), st.integers(1, 5))
def test_in_any_history_keys_are_unique_and_cooldown_and_budget_hold(looks, cooldown_hours, a_week):
    ledger: list[RetrainRequest] = []
    clock = NOW
    for passed, seen in looks:
        clock += passed
        reasons = seen if seen is UNKNOWN else [drift(key) for key in seen]
        decision = decide_retrain(reasons, ledger, clock, policy(cooldown_hours, a_week))
        assert (decision.request, decision.reason is None, decision.run_key is None) in (
            (True, False, False),
            (False, True, True),
        )
        if decision.request and decision.reason and decision.run_key:
            assert seen is not UNKNOWN
            ledger.append(RetrainRequest(decision.run_key, "drift", "", clock))
    keys = [row.run_key for row in ledger]
    assert len(set(keys)) == len(keys)
    times = [row.requested_at for row in ledger]
    assert all(later - sooner >= timedelta(hours=cooldown_hours) for sooner, later in itertools.pairwise(times))
    for start in times:
        assert sum(start <= time <= start + timedelta(days=7) for time in times) <= a_week


@trials(max_examples=50, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_the_order_of_the_ledger_does_not_matter(order, a_week):
    rows = [asked(drift(str(number)), 20 * number + 1) for number in range(6)]
    decisions = [decide_retrain([drift()], some, NOW, policy(0, a_week)) for some in (rows, [rows[i] for i in order])]
    assert decisions[0] == decisions[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "genai.sqlite"


@pytest.fixture
def ledger(file: Path):
    with RetrainLedger(f"sqlite:///{file}") as ledger:
        yield ledger


def test_an_empty_ledger_is_read_without_creating_anything(ledger: RetrainLedger, file: Path):
    assert ledger.rows() == [] and not file.parent.exists()


def test_a_request_comes_back_as_it_was_recorded_and_only_once(ledger: RetrainLedger):
    there = timezone(timedelta(hours=3))
    decision = decide_retrain([drift()], [], NOW.astimezone(there), policy())
    assert ledger.record(decision) is True
    assert ledger.record(decision) is False
    assert ledger.rows() == [RetrainRequest(drift().run_key, "drift", "the prompts differ", NOW)]
    assert ledger.rows()[0].requested_at.tzinfo is not None


def test_a_decision_for_nothing_cannot_be_recorded(ledger: RetrainLedger):
    with pytest.raises(ValueError, match="no reason to retrain"):
        ledger.record(decide_retrain([], [], NOW, policy()))


def test_an_unreadable_ledger_is_not_an_empty_one(ledger: RetrainLedger, file: Path):
    file.parent.mkdir()
    file.write_bytes(b"this is no database, and long enough for SQLite to see that" * 20)
    with pytest.raises(LedgerUnavailable, match="cannot be read"):
        ledger.rows()
    with pytest.raises(LedgerUnavailable, match="cannot be written"):
        ledger.ask([drift()], NOW, policy())


def test_asking_reads_decides_and_records(ledger: RetrainLedger):
    assert ledger.ask([drift()], NOW, policy()).request
    assert not ledger.ask([drift()], NOW + timedelta(days=1), policy()).request
    assert not ledger.ask(UNKNOWN, NOW + timedelta(days=1), policy()).request
    assert len(ledger.rows()) == 1


def test_sensors_that_ask_at_the_same_moment_share_one_budget(file: Path):
    def ask(number: int) -> bool:
        with RetrainLedger(f"sqlite:///{file}") as ledger:
            return ledger.ask([drift(str(number))], NOW, policy()).request

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(ask, range(8))) == 1


def test_the_ledger_may_share_a_file_with_other_tables(ledger: RetrainLedger, file: Path):
    file.parent.mkdir()
    connection = sqlite3.connect(file)
    connection.execute("create table requests (id)")
    connection.commit()
    connection.close()
    assert ledger.rows() == []
    assert ledger.ask([drift()], NOW, policy()).request and len(ledger.rows()) == 1
