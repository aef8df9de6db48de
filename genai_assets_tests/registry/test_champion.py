"""The pointer's promises: one winner, nothing half, a loser who is told."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import sqlalchemy as sa

from genai_assets.database import BUSY_TIMEOUT_MILLISECONDS
from genai_assets.registry.champion import ChampionChanged, ChampionPointer, ModelVersion


@pytest.fixture
def database(tmp_path):
    return tmp_path / "registry" / "champion.sqlite"


@pytest.fixture
def pointer(database):
    with ChampionPointer(f"sqlite:///{database}") as pointer:
        yield pointer


def model(tmp_path: Path, version: str, **metrics) -> ModelVersion:
    folder = tmp_path / "models" / version
    folder.mkdir(parents=True, exist_ok=True)
    return ModelVersion(version, folder, metrics)


def test_before_the_first_promotion_there_is_no_champion_and_no_file(pointer, database):
    assert pointer.current() is None
    assert pointer.history() == []
    assert not database.exists()


def test_a_promotion_is_what_is_read_back_also_by_another_process(pointer, database, tmp_path):
    promoted = pointer.promote(model(tmp_path, "a1", kid=0.3), expected_revision=0, reason="the first model")
    assert promoted.revision == 1
    with ChampionPointer(f"sqlite:///{database}") as other:
        assert other.current() == promoted
    assert promoted.metrics == {"kid": 0.3}
    assert promoted.model_path == tmp_path / "models" / "a1"


def test_each_promotion_raises_the_revision_and_stays_in_the_history(pointer, tmp_path):
    for revision, version in enumerate(("a1", "b2", "a1")):
        pointer.promote(model(tmp_path, version), expected_revision=revision, reason=f"turn {revision}")
    assert [(old.revision, old.model_version) for old in pointer.history()] == [(1, "a1"), (2, "b2"), (3, "a1")]
    assert pointer.current() == pointer.history()[-1]


def test_a_promotion_decided_upon_an_older_champion_is_refused_and_names_the_current_one(pointer, tmp_path):
    pointer.promote(model(tmp_path, "a1"), expected_revision=0, reason="first")
    pointer.promote(model(tmp_path, "b2"), expected_revision=1, reason="kid fell")
    for stale in (0, 1, 7):
        with pytest.raises(ChampionChanged, match="b2 at revision 2") as refused:
            pointer.promote(model(tmp_path, "c3"), expected_revision=stale, reason="late")
        assert refused.value.current == pointer.current()
    assert len(pointer.history()) == 2


def test_promoting_over_a_champion_that_never_was_says_there_is_none(pointer, tmp_path):
    with pytest.raises(ChampionChanged, match="there is no champion") as refused:
        pointer.promote(model(tmp_path, "a1"), expected_revision=4, reason="guess")
    assert refused.value.current is None


@pytest.mark.parametrize("first", [True, False])
def test_of_racing_promotions_exactly_one_wins(database, tmp_path, first):
    url = f"sqlite:///{database}"
    revision = 0
    with ChampionPointer(url) as pointer:
        if not first:
            revision = pointer.promote(model(tmp_path, "a1"), expected_revision=0, reason="first").revision
        racers = [model(tmp_path, f"racer{number}") for number in range(6)]
        start = Barrier(len(racers))

        def race(racer: ModelVersion) -> str | None:
            with ChampionPointer(url) as own:
                start.wait()
                try:
                    return own.promote(racer, expected_revision=revision, reason="race").model_version
                except ChampionChanged:
                    return None

        with ThreadPoolExecutor(len(racers)) as threads:
            winners = [winner for winner in threads.map(race, racers) if winner]
        assert len(winners) == 1
        current = pointer.current()
        assert current is not None
        assert (current.model_version, current.revision) == (winners[0], revision + 1)
        assert len(pointer.history()) == revision + 1


def test_pointers_of_different_names_do_not_touch_each_other(pointer, tmp_path):
    pointer.promote(model(tmp_path, "a1"), expected_revision=0, reason="first", name="icons")
    pointer.promote(model(tmp_path, "b2"), expected_revision=0, reason="first", name="posters")
    assert [old.model_version for old in pointer.history("icons")] == ["a1"]
    assert pointer.current() is None


def test_a_failure_in_the_middle_leaves_the_old_champion(pointer, database, tmp_path):
    old = pointer.promote(model(tmp_path, "a1"), expected_revision=0, reason="first")
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON champion_history BEGIN SELECT RAISE(FAIL, 'disk'); END"
        )
    connection.close()
    with pytest.raises(sa.exc.DatabaseError):
        pointer.promote(model(tmp_path, "b2"), expected_revision=1, reason="second")
    assert pointer.current() == old


def test_a_damaged_database_is_an_error_and_not_an_absent_champion(pointer, database):
    database.parent.mkdir()
    database.write_bytes(b"not a database at all" * 100)
    with pytest.raises(sa.exc.DatabaseError):
        pointer.current()


def test_a_model_without_a_folder_a_reason_or_a_sane_revision_is_refused(pointer, tmp_path):
    with pytest.raises(FileNotFoundError, match="train it again"):
        pointer.promote(ModelVersion("ghost", tmp_path / "none"), expected_revision=0, reason="why not")
    with pytest.raises(ValueError, match="reason"):
        pointer.promote(model(tmp_path, "a1"), expected_revision=0, reason=" ")
    with pytest.raises(ValueError, match="revision"):
        pointer.promote(model(tmp_path, "a1"), expected_revision=-1, reason="typing error")
    assert pointer.current() is None


def test_sqlite_commits_reach_the_disk(pointer, tmp_path):
    pointer.promote(model(tmp_path, "a1"), expected_revision=0, reason="first")
    with pointer._engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "delete"
        assert connection.execute(sa.text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert connection.execute(sa.text("PRAGMA busy_timeout")).scalar() == BUSY_TIMEOUT_MILLISECONDS
