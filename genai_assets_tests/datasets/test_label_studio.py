"""Label Studio's formats: what is written can be imported there, and its exports are read as people meant them."""

import json
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_assets.datasets.label_studio import (
    CONTROL,
    LABELLING_CONFIG,
    NotAnExport,
    Task,
    embedded,
    local_file,
    read_export,
    write_tasks,
)

PICTURE = "ab" * 32


def task(number: int, caption: str = "a cpu", original: str | None = None) -> Task:
    picture = f"{number:064x}"
    return Task(picture, caption, caption if original is None else original, embedded(b"jpeg"), "language: de")


def annotation(text: str | list[str] | None, minute: int, by: Any = 7, **more: Any) -> dict[str, Any]:
    """As in an export "JSON" of Label Studio."""
    texts = [text] if isinstance(text, str) else text
    result = {
        "value": {"text": texts},
        "id": "Dx_aB91ISN",
        "from_name": CONTROL,
        "to_name": "picture_shown",
        "type": "textarea",
        "origin": "prediction-changed",
    }
    when = f"2026-05-04T12:{minute:02}:00.728378Z"
    made = {
        "id": 1000 + minute,
        "completed_by": by,
        "result": [] if texts is None else [result],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": when,
        "updated_at": when,
        "lead_time": 4.288,
        "task": 1,
    }
    return made | more


def exported(tmp_path: Path, tasks: list[Task], *annotations: list[dict[str, Any]]) -> Path:
    """What Label Studio exports as JSON of the tasks it was given."""
    write_tasks(tmp_path / "tasks.json", tasks)
    given_tasks = json.loads((tmp_path / "tasks.json").read_text())
    export = [
        {
            "id": number,
            "data": one["data"],
            "annotations": made,
            "predictions": one.get("predictions", []),
            "created_at": "2026-05-04T11:00:00.000000Z",
            "updated_at": "2026-05-04T13:00:00.000000Z",
            "project": 1,
        }
        for number, (one, made) in enumerate(zip(given_tasks, annotations, strict=True), start=1)
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(export))
    return path


def exported_minimal(tmp_path: Path, path: Path) -> Path:
    """The export "JSON-MIN" of the same: a line an annotation, a single text as text, data and result side by side."""
    lines = []
    for one in json.loads(path.read_text()):
        for made in one["annotations"]:
            if made["was_cancelled"]:
                continue
            texts = [text for result in made["result"] for text in result["value"]["text"]]
            value = texts[0] if len(texts) == 1 else {"text": texts}
            lines.append(
                {
                    **one["data"],
                    "id": one["id"],
                    **({CONTROL: value} if texts else {}),
                    "annotator": made["completed_by"],
                    "annotation_id": made["id"],
                    "created_at": made["created_at"],
                    "updated_at": made["updated_at"],
                    "lead_time": made["lead_time"],
                }
            )
    minimal = tmp_path / "minimal.json"
    minimal.write_text(json.dumps(lines))
    return minimal


def test_tasks_are_basic_json_that_fits_the_labelling_interface(tmp_path):
    assert write_tasks(tmp_path / "tasks.json", [task(1), task(2, caption="")]) == 2
    first, second = json.loads((tmp_path / "tasks.json").read_text())
    view = ElementTree.fromstring(LABELLING_CONFIG)
    (image,), (area,) = view.findall("Image"), view.findall("TextArea")
    assert area.get("toName") == image.get("name")
    (result,) = first["predictions"][0]["result"]
    assert (result["from_name"], result["to_name"], result["type"]) == (CONTROL, image.get("name"), "textarea")
    assert result["value"] == {"text": ["a cpu"]}
    assert "predictions" not in second, "there is nothing to edit"
    for one in (first, second):
        wanted = {value[1:] for tag in view.iter() if (value := tag.get("value", "")).startswith("$")}
        assert wanted <= one["data"].keys(), "every field that the interface shows is there"
        assert CONTROL not in one["data"], "JSON-MIN would lay the answer over it"
        assert not {"id", "created_at", "updated_at"} & one["data"].keys(), "nor over these"
        assert one["data"]["image"].startswith("data:image/jpeg;base64,")


def test_no_task_at_all_is_an_empty_list(tmp_path):
    assert write_tasks(tmp_path / "tasks.json", []) == 0
    assert json.loads((tmp_path / "tasks.json").read_text()) == []


def test_an_export_that_breaks_off_leaves_the_file_of_before(tmp_path):
    path = tmp_path / "tasks.json"
    write_tasks(path, [task(1)])
    before = path.read_bytes()

    def breaking():
        yield task(2)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_tasks(path, breaking())
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["tasks.json"]


def test_a_file_of_the_local_storage_is_named_as_its_server_wants_it():
    assert local_file("my pictures/ü.png") == "/data/local-files/?d=my%20pictures/%C3%BC.png"


@pytest.mark.parametrize("minimal", [False, True])
def test_a_changed_caption_is_a_correction_and_an_unchanged_one_a_confirmation(tmp_path, minimal):
    path = exported(tmp_path, [task(1), task(2)], [annotation("a  cup\n", 1)], [annotation("a cpu", 2)])
    told = read_export(exported_minimal(tmp_path, path) if minimal else path)
    (one,) = told.corrections
    assert (one.picture, one.original, one.shown, one.caption) == (f"{1:064x}", "a cpu", "a cpu", "a cup")
    assert (one.by, one.task) == ("7", "1")
    assert one.at == datetime(2026, 5, 4, 12, 1, 0, 728378, tzinfo=UTC)
    assert told.confirmed == 1


def test_both_formats_give_the_same_correction_so_that_importing_both_changes_nothing(tmp_path):
    path = exported(tmp_path, [task(1)], [annotation("a cup", 1)])
    minimal = exported_minimal(tmp_path, path)
    assert [one.key for one in read_export(path).corrections] == [one.key for one in read_export(minimal).corrections]


@pytest.mark.parametrize("minimal", [False, True])
def test_of_several_annotators_the_last_one_counts_and_the_others_are_told(tmp_path, minimal):
    path = exported(
        tmp_path,
        [task(1)],
        [annotation("late", 30, by=8), annotation("early", 10, by=7), annotation("middle", 20, by=8)],
    )
    told = read_export(exported_minimal(tmp_path, path) if minimal else path)
    assert [one.caption for one in told.corrections] == ["late"]
    (disagreement,) = told.disagreements
    assert (disagreement.used, disagreement.others) == ("late", ("early",)), "nobody disagrees with himself"


def test_the_ground_truth_goes_before_what_is_newer(tmp_path):
    made = [annotation("true", 10, ground_truth=True), annotation("newer", 20, by=8)]
    assert [one.caption for one in read_export(exported(tmp_path, [task(1)], made)).corrections] == ["true"]


def test_what_nobody_said_is_counted_and_changes_nothing(tmp_path):
    cancelled = annotation("never meant", 10, was_cancelled=True)
    given_tasks = [task(number) for number in range(5)]
    made = ([cancelled], [], [annotation(None, 1)], [annotation("  ", 1)], [annotation(["one", "two"], 1)])
    told_of: list[str] = []
    told = read_export(exported(tmp_path, given_tasks, *made), on_skip=told_of.append)
    assert told.corrections == ()
    assert (told.skipped, told.untouched, told.blank, told.several) == (1, 1, 2, 1)
    assert [line.split(":")[0] for line in told_of] == [f"task {number}" for number in range(1, 6)]


def test_a_cancelled_annotation_does_not_hide_a_real_one(tmp_path):
    made = [annotation("real", 10), annotation("cancelled", 20, was_cancelled=True)]
    assert [one.caption for one in read_export(exported(tmp_path, [task(1)], made)).corrections] == ["real"]


def test_a_whole_person_as_newer_exports_have_it_is_taken_by_address(tmp_path):
    by = {"id": 3, "email": "anna@example.com", "first_name": "Anna"}
    (one,) = read_export(exported(tmp_path, [task(1)], [annotation("a cup", 1, by=by)])).corrections
    assert one.by == "anna@example.com"


def test_tasks_of_others_are_passed_over_unless_there_are_no_others(tmp_path):
    path = exported(tmp_path, [task(1), task(2)], [annotation("a cup", 1)], [annotation("a hat", 1)])
    export = json.loads(path.read_text())
    export[1]["data"] = {"image": "https://example.com/1.jpg"}
    path.write_text(json.dumps(export))
    told = read_export(path)
    assert (len(told.corrections), told.foreign) == (1, 1)
    path.write_text(json.dumps(export[1:]))
    with pytest.raises(NotAnExport, match="none of the 1 tasks"):
        read_export(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "no JSON"), ("{}", "no list"), ("[1]", "no list"), ("\x89PNG", "no JSON"), ('[{"id": 1}]', "none of")],
)
def test_what_is_no_export_is_told(tmp_path, text, told):
    path = tmp_path / "export.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(NotAnExport, match=told):
        read_export(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(PICTURE),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "data", "result", "value", "text", "from_name", CONTROL]), inner)
    ),
    max_leaves=8,
)
fields = st.sampled_from(["annotations", "completed_by", "updated_at", "result", "was_cancelled", "id", CONTROL])


@given(st.dictionaries(fields, anything), st.dictionaries(fields, anything), st.booleans())
def test_whatever_stands_in_a_task_it_is_read_or_refused_and_never_breaks(tmp_path_factory, task, annotation, minimal):
    data = {"genai_picture": PICTURE, "genai_original_caption": "a", "caption": "a"}
    made = {**data, **task, **annotation} if minimal else {"data": data, "annotations": [annotation], **task}
    path = tmp_path_factory.mktemp("fuzz") / "export.json"
    path.write_text(json.dumps([made]))
    try:
        told = read_export(path)
    except NotAnExport:
        return
    assert len(told.corrections) + told.confirmed + told.skipped + told.untouched + told.blank + told.several == 1
    assert all(one.caption for one in told.corrections)


def test_the_tasks_of_the_api_which_have_only_numbers_of_annotations_are_refused(tmp_path):
    path = exported(tmp_path, [task(1)], [])
    export = json.loads(path.read_text())
    export[0]["annotations"] = [1001]
    path.write_text(json.dumps(export))
    with pytest.raises(NotAnExport, match="only their numbers"):
        read_export(path)


def test_an_annotation_without_a_time_is_told_with_its_task(tmp_path):
    path = exported(tmp_path, [task(1)], [annotation("a cup", 1, updated_at=None, created_at=None)])
    with pytest.raises(NotAnExport, match="task 1 has no time"):
        read_export(path)


@given(st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=5))
def test_any_caption_goes_out_and_comes_back_as_it_was(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("round")
    one_line = [" ".join(text.split()) for text in texts]
    tasks = [task(number, "before and other") for number in range(len(texts))]
    path = exported(folder, tasks, *([annotation(text, 1)] for text in texts))
    assert [one.caption for one in read_export(path).corrections] == one_line
