"""Feedback's promises: everyone's last word counts once, nothing unusable is trained on, closed batches stay."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record, from_frame, read_manifest, to_frame
from genai_assets.datasets.sources.closed_batches import ClosedBatchesSource
from genai_assets.datasets.splits import assign, concept_split, training_rows
from genai_assets.monitoring.feedback import batches_folder, build_feedback_dataset, close_batches, curate
from genai_assets.serving.generator import ModelFacts
from genai_assets.serving.request_log import FeedbackEvent, RequestEntry, RequestLog
from genai_assets.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)


class House:
    """A home folder with a request log and drawn pictures, and short words for what people do."""

    def __init__(self, home: Path):
        self.settings = Settings(home=home, monitoring={"feedback_batch_size": 3})  # pyright: ignore
        self.store = PictureStore(self.settings.paths.drawn)
        self.log = RequestLog(self.settings.database_url)
        self.clock = START

    def draw(self, prompt: str, shade: int, *, picture: str | None = None) -> tuple[str, str]:
        """One request; returns its id and the picture's."""
        file = io.BytesIO()
        Image.new("RGB", (48, 32), (shade, shade, shade)).save(file, format="PNG")
        picture = picture or self.store.put(file.getvalue())
        entry = RequestEntry(
            prompt=prompt, n=1, size="64x64", seed=1, model_version="v7", status=200, picture_ids=[picture]
        )
        self.log.record_request(entry)
        return entry.id, picture

    def rate(self, drawn: tuple[str, str], rating: int, better_caption: str | None = None, comment: str = "") -> None:
        self.clock += timedelta(minutes=1)
        self.log.record_feedback(
            FeedbackEvent(
                request_id=drawn[0],
                picture_id=drawn[1],
                rating=rating,  # pyright: ignore
                better_caption=better_caption,
                comment=comment,
                created_at=self.clock,
            )
        )

    def curate(self):
        return curate(self.log.feedback(), self.log.requests(), self.store, self.settings)


@pytest.fixture
def house(tmp_path: Path):
    house = House(tmp_path / "home")
    yield house
    house.log.close()


def only(frame: pd.DataFrame) -> Record:
    [record] = from_frame(frame)
    return record


def test_a_liked_picture_becomes_a_record_that_says_where_it_came_from(house: House):
    drawn, *others = [house.draw("  a grey \n mouse ", 100) for _ in range(3)]
    house.rate(drawn, 1)
    house.rate(others[0], 1)
    house.rate(others[1], -1)
    record = only(house.curate().liked)
    assert record.id == drawn[1] and (record.width, record.height) == (48, 32)
    assert record.caption == "a grey mouse" and record.concept == "feedback:a-grey-mouse"
    assert record.style == house.settings.dataset.house_style
    assert record.source == "feedback" and record.licence == "LicenseRef-own-output"
    assert record.licence in house.settings.dataset.allowed_licences
    assert record.provenance == {
        "synthetic": "true",
        "request_id": drawn[0],
        "model_version": "v7",
        "likes": "2",
        "dislikes": "1",
    }
    assert record.added_at == START + timedelta(minutes=1)


def test_disliked_pictures_are_listed_with_what_people_said(house: House):
    drawn, again = house.draw("a cat", 100), house.draw("a cat", 100)
    house.rate(drawn, -1, comment="this is a dog")
    house.rate(again, -1)
    dataset = house.curate()
    assert dataset.liked.empty and dataset.dropped.empty
    [row] = dataset.disliked.to_dict("records")
    assert row["caption"] == "a cat" and row["dislikes"] == 2 and row["comments"] == ["this is a dog"]


def test_ratings_of_two_requests_that_contradict_each_other_are_dropped_with_the_reason(house: House):
    house.rate(house.draw("a cat", 100), 1)
    house.rate(house.draw("a cat", 100), -1)
    dataset = house.curate()
    assert dataset.liked.empty and dataset.disliked.empty
    assert "conflict" in dataset.dropped["reason"].item()


def test_the_last_rating_of_a_request_is_the_one_that_counts_and_its_captions_stay(house: House):
    drawn = house.draw("a cat", 100)
    house.rate(drawn, 1)
    house.rate(drawn, 1, better_caption="a lynx")  # the page sends the rating along with a caption
    house.rate(drawn, -1)
    [row] = house.curate().disliked.to_dict("records")
    assert (row["likes"], row["dislikes"], row["caption"]) == (0, 1, "a lynx")
    house.rate(drawn, 1)
    record = only(house.curate().liked)
    assert (record.provenance["likes"], record.provenance["dislikes"]) == ("1", "0")


def test_several_ratings_of_one_request_do_not_outvote_another(house: House):
    first, other = house.draw("a cat", 100), house.draw("a cat", 100)
    for caption in (None, "a lynx", "a tiger"):
        house.rate(first, 1, better_caption=caption)
    house.rate(other, -1)
    assert house.curate().dropped["reason"].tolist() == ["ratings are in conflict: 1 for, 1 against"]


def test_the_same_picture_of_two_requests_is_one_picture(house: House):
    first, again = house.draw("a cat", 100), house.draw("the cat, again", 100)
    assert first[1] == again[1]
    house.rate(again, 1)
    house.rate(first, 1)
    record = only(house.curate().liked)
    assert record.caption == "the cat, again" and record.provenance["likes"] == "2"


def test_the_better_caption_written_most_often_replaces_the_prompt(house: House):
    drawn = house.draw("a cat", 100)
    for caption in ("a lynx", "a  lynx", "a tiger", "   ", None):
        house.rate(drawn, 1, better_caption=caption)
    assert only(house.curate().liked).caption == "a lynx"


def test_a_style_typed_along_is_not_part_of_the_caption_so_that_training_does_not_say_it_twice(house: House):
    style, tune = house.settings.dataset.house_style, house.settings.fine_tune
    facts = ModelFacts(model_version="v7", style=style, prompt_template=tune.prompt_template, resolution=64)
    typed = f"dog face, {style} style"
    house.rate(house.draw(typed, 100), 1)
    caption = only(house.curate().liked).caption
    assert caption == "dog face"
    assert tune.prompt(caption, style) == facts.prompt(typed), "the picture's training prompt is what drew it"


def test_better_captions_that_differ_in_the_style_typed_along_are_one(house: House):
    drawn = house.draw("a cat", 100)
    for caption in ("a lynx", f"a lynx, {house.settings.dataset.house_style.upper()} style.", "a tiger"):
        house.rate(drawn, 1, better_caption=caption)
    assert only(house.curate().liked).caption == "a lynx"


def test_a_held_out_caption_is_not_trained_on_however_the_style_was_typed_along(house: House):
    settings = house.settings
    style = settings.dataset.house_style
    held_out = next(
        name for name in (f"thing {n}" for n in range(100)) if concept_split(name, settings.splits) == "held_out"
    )
    for shade, typed in enumerate((held_out, f"{held_out}, {style} style", f"{held_out} in {style} style.")):
        house.rate(house.draw(typed, shade), 1)
    drawn = house.curate().liked
    of_a_team = {"id": "f" * 64, "caption": held_out, "concept": held_out, "source": "team", "provenance": {}}
    real = from_frame(drawn)[0].model_copy(update=of_a_team)
    manifest = pd.concat([drawn, to_frame([real])], ignore_index=True)
    table = assign(manifest, settings, released=frozenset())
    assert len(drawn) == 3 and training_rows(manifest, table, settings).empty


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("   ", "empty"), ("x" * 301, "longer"), ("fluent style", "empty"), ("Fluent style.", "empty")],
)
def test_prompts_that_are_no_captions_are_dropped(house: House, prompt: str, reason: str):
    house.rate(house.draw(prompt, 100), 1)
    dataset = house.curate()
    assert dataset.liked.empty and reason in dataset.dropped["reason"].item()


def test_a_caption_of_signs_alone_has_a_concept_of_its_own(house: House):
    house.rate(house.draw("!!!", 100), 1)
    house.rate(house.draw("???", 120), 1)
    concepts = set(house.curate().liked["concept"])
    assert len(concepts) == 2 and all(len(concept) > len("feedback:") for concept in concepts)


def test_lost_and_damaged_pictures_are_dropped_with_the_reason(house: House):
    house.rate(house.draw("lost", 1, picture="e" * 64), 1)
    house.rate(house.draw("damaged", 1, picture=house.store.put(b"not a picture")), 1)
    reasons = " ".join(house.curate().dropped["reason"])
    assert "not in the store" in reasons and "cannot be read" in reasons


def test_an_event_whose_request_is_unknown_is_dropped(house: House):
    house.rate(house.draw("a cat", 100), 1)
    dataset = curate(house.log.feedback(), house.log.requests().iloc[:0], house.store, house.settings)
    assert dataset.liked.empty and dataset.dropped["reason"].tolist() == ["its request is not known"]


def test_batches_close_when_they_are_full_and_the_rest_waits(house: House, tmp_path: Path):
    for shade in range(7):
        house.rate(house.draw(f"shade {shade}", shade), 1)
    summary = build_feedback_dataset(house.settings, tmp_path / "out")
    assert summary["closed_now"] == 2 and summary["waiting"] == 1 and summary["liked"] == 7
    files = sorted(batches_folder(house.settings).iterdir())
    assert [path.name[:7] for path in files] == ["000001-", "000002-"]
    captions = [read_manifest(path)["caption"].tolist() for path in files]
    assert captions == [["shade 0", "shade 1", "shade 2"], ["shade 3", "shade 4", "shade 5"]]


def test_raw_data_can_read_a_closed_batch(house: House, tmp_path: Path):
    for shade in range(3):
        house.rate(house.draw(f"shade {shade}", shade), 1)
    build_feedback_dataset(house.settings, tmp_path / "out")
    source = ClosedBatchesSource("feedback", batches_folder(house.settings), house.store)
    found = list(source.fetch([item.key for item in source.list()]))
    assert sorted(fetched.description.caption for fetched in found if fetched.description) == [
        "shade 0",
        "shade 1",
        "shade 2",
    ]
    assert all(fetched.data for fetched in found)


def test_building_again_changes_nothing_on_the_disk(house: House, tmp_path: Path):
    for shade in range(4):
        house.rate(house.draw(f"shade {shade}", shade), 1)
    first = build_feedback_dataset(house.settings, tmp_path / "one")
    before = {path: path.read_bytes() for path in batches_folder(house.settings).iterdir()}
    second = build_feedback_dataset(house.settings, tmp_path / "two")
    assert {path: path.read_bytes() for path in batches_folder(house.settings).iterdir()} == before
    assert first | {"closed_now": 0} == second
    for name in ("feedback.parquet", "disliked.parquet", "dropped.parquet", "events.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_an_opinion_that_comes_late_is_a_retraction_and_leaves_the_batch(house: House, tmp_path: Path):
    drawn = [house.draw(f"shade {shade}", shade) for shade in range(3)]
    for one in drawn:
        house.rate(one, 1)
    build_feedback_dataset(house.settings, tmp_path / "one")
    house.rate(drawn[0], -1)
    summary = build_feedback_dataset(house.settings, tmp_path / "two")
    assert summary["retracted"] == 1 and summary["disliked"] == 1 and len(summary["batches"]) == 1
    [batch] = batches_folder(house.settings).iterdir()
    assert len(read_manifest(batch)) == 3


def test_a_batch_that_cannot_be_written_leaves_nothing_and_is_closed_the_next_time(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for shade in range(3):
        house.rate(house.draw(f"shade {shade}", shade), 1)
    liked = house.curate().liked

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("genai_assets.durable.os.replace", full)
        with pytest.raises(OSError, match="No space"):
            close_batches(liked, tmp_path / "batches", 3)
    assert not list((tmp_path / "batches").iterdir())
    assert len(close_batches(liked, tmp_path / "batches", 3).closed_now) == 1


def test_no_feedback_makes_empty_tables_and_no_batch(tmp_path: Path):
    settings = Settings(home=tmp_path / "home")
    summary = build_feedback_dataset(settings, tmp_path / "out")
    assert summary["events"] == summary["liked"] == summary["waiting"] == 0 and summary["batches"] == []
    assert read_manifest(tmp_path / "out" / "feedback.parquet").empty
    assert json.loads((tmp_path / "out" / "events.json").read_text())["dropped"] == {}
