"""Label Studio: captions go out as tasks for people, and what they made of them comes back.

Belongs here: the JSON that Label Studio imports and exports, and nothing else of it: its server is not called. Tasks
are written in its "basic JSON" with the present caption as a prediction, so that people edit instead of type. Its
exports "JSON" and "JSON-MIN" are read. What is then done with corrections is ``corrections``.

The formats are those of Label Studio's own guide (labelstud.io/guide: "Label Studio JSON format of annotated tasks",
"Import pre-annotated data", "Export annotations").
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from genai_assets import durable
from genai_assets.datasets.corrections import Correction

# JSON-MIN lays the control's text over a field of the same name: no field of a task may be called so.
CONTROL = "corrected_caption"
_OBJECT = "picture_shown"

LABELLING_CONFIG = f"""<View>
  <Image name="{_OBJECT}" value="$image" zoom="true"/>
  <Header value="What does the picture show? Correct the caption, then submit."/>
  <TextArea name="{CONTROL}" toName="{_OBJECT}" editable="true" maxSubmissions="1" rows="3" required="true"/>
  <Header value="Problems found in the caption of now:" size="5"/>
  <Header value="$problems" size="5"/>
</View>
"""
"""The labelling interface that the tasks are made for; to be pasted into the project's settings."""

_PICTURE = "genai_picture"
_ORIGINAL = "genai_original_caption"
_SHOWN = "caption"
_ID = re.compile(r"[0-9a-f]{64}")


class NotAnExport(ValueError):
    """The file is no export of Label Studio, or not of tasks that were made here; the message says which."""


@dataclass(frozen=True)
class Task:
    """One caption for a person to look at.

    Attributes:
        picture: the record's id.
        caption: as it stands now; may be empty.
        original: the source's caption.
        image: an address Label Studio can show: a ``data:`` URI, or one of its local files.
        problems: what is wrong with the caption, in words.
        about: further fields that help to find and sort tasks (source, category, split).
    """

    picture: str
    caption: str
    original: str
    image: str
    problems: str = ""
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Disagreement:
    """Several people captioned one task, each in another way.

    Attributes:
        task: Label Studio's number.
        used: what counts.
        others: what does not.
    """

    task: str
    used: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Annotations:
    """What an export tells.

    Attributes:
        corrections: captions that people changed.
        confirmed: tasks whose caption a person submitted as it was.
        skipped: tasks that were only skipped (cancelled).
        untouched: tasks nobody has looked at.
        blank: tasks submitted without a caption.
        several: tasks with more than one text, of which none can be chosen.
        foreign: tasks that were not made here.
        disagreements: see :class:`Disagreement`.
    """

    corrections: tuple[Correction, ...]
    confirmed: int
    skipped: int
    untouched: int
    blank: int
    several: int
    foreign: int
    disagreements: tuple[Disagreement, ...]


def embedded(data: bytes, kind: str = "image/jpeg") -> str:
    """A picture's bytes as a ``data:`` URI, which needs no storage to be set up in Label Studio."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def local_file(path: str) -> str:
    """Address of a file of Label Studio's local storage, relative to its document root."""
    from urllib.parse import quote

    return f"/data/local-files/?d={quote(path)}"


def write_tasks(path: Path, tasks: Iterable[Task]) -> int:
    """Write tasks in Label Studio's basic JSON, one at a time and all or nothing; returns how many."""
    count = 0
    with durable.replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for task in tasks:
            file.write(",\n" if count else "\n")
            json.dump(_as_json(task), file, ensure_ascii=False)
            count += 1
        file.write("\n]\n")
    return count


def read_export(path: Path, on_skip: Callable[[str], None] | None = None) -> Annotations:
    """Read an export "JSON" or "JSON-MIN".

    Of several annotations of a task the one marked as ground truth counts, else the one that was updated last; skipped
    (cancelled) ones never do. JSON-MIN tells neither mark nor skipping: there, the last one counts.

    Args:
        path: the file.
        on_skip: told of each task that is passed over, and why.

    Raises:
        NotAnExport: not JSON, not a list of tasks, none of them made here, or an annotation without a time.
        OSError: it cannot be read.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnExport(f"{path} is no JSON ({error}); export from Label Studio as JSON or JSON-MIN") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise NotAnExport(f"{path} is no list of tasks; export from Label Studio as JSON or JSON-MIN")
    read = [told for task in _grouped(tasks) if (told := _read_task(task, path))]
    if tasks and not read:
        raise NotAnExport(
            f"none of the {len(tasks)} tasks of {path} has the field {_PICTURE}: they were not made by "
            "`genai data captions export`, so nothing tells which pictures they are of"
        )
    if on_skip:
        for told in read:
            if told.outcome not in ("corrected", "confirmed"):
                on_skip(f"task {told.task}: {_PASSED_OVER[told.outcome]}")
    outcomes = [told.outcome for told in read]
    return Annotations(
        corrections=tuple(told.correction for told in read if told.correction),
        confirmed=outcomes.count("confirmed"),
        skipped=outcomes.count("skipped"),
        untouched=outcomes.count("untouched"),
        blank=outcomes.count("blank"),
        several=outcomes.count("several"),
        foreign=len(list(_grouped(tasks))) - len(read),
        disagreements=tuple(told.disagreement for told in read if told.disagreement),
    )


_Outcome = Literal["corrected", "confirmed", "skipped", "untouched", "blank", "several"]

_PASSED_OVER: dict[_Outcome, str] = {
    "skipped": "it was skipped",
    "untouched": "nobody has annotated it",
    "blank": "it was submitted without a caption",
    "several": "it has several texts, and none can be chosen",
}


@dataclass(frozen=True)
class _Told:
    """What one task tells."""

    task: str
    outcome: _Outcome
    correction: Correction | None = None
    disagreement: Disagreement | None = None


@dataclass(frozen=True)
class _Annotation:
    """One annotation of a task, in either format."""

    texts: tuple[str, ...]
    by: str
    at: datetime
    ground_truth: bool


@dataclass(frozen=True)
class _Exported:
    """One task of an export, in either format."""

    task: str
    data: Mapping[str, Any]
    annotations: tuple[Mapping[str, Any], ...]
    minimal: bool


def _as_json(task: Task) -> dict[str, Any]:
    made: dict[str, Any] = {
        "data": {
            **{name: value for name, value in task.about.items() if value},
            "image": task.image,
            _SHOWN: task.caption,
            "problems": task.problems or "none",
            _PICTURE: task.picture,
            _ORIGINAL: task.original,
        }
    }
    if task.caption:
        result = {
            "id": task.picture[:10],
            "from_name": CONTROL,
            "to_name": _OBJECT,
            "type": "textarea",
            "value": {"text": [task.caption]},
        }
        made["predictions"] = [{"model_version": "present caption", "result": [result]}]
    return made


def _grouped(tasks: list[dict[str, Any]]) -> Iterator[_Exported]:
    """Tasks with all of their annotations: JSON-MIN has a line for each annotation."""
    minimal: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        if isinstance(task.get("data"), dict):
            annotations = task.get("annotations") or []
            if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
                raise NotAnExport(
                    f"the annotations of task {task.get('id')} are not in the file; export from the project's page as "
                    "JSON or JSON-MIN, for the list of tasks that the API gives has only their numbers"
                )
            yield _Exported(str(task.get("id", "")), task["data"], tuple(annotations), minimal=False)
        else:
            minimal.setdefault(f"{task.get('id', '')} {task.get(_PICTURE, '')}", []).append(task)
    for lines in minimal.values():
        yield _Exported(str(lines[0].get("id", "")), lines[0], tuple(lines), minimal=True)


def _read_task(task: _Exported, path: Path) -> _Told | None:
    """What a task tells; None when it was not made here."""
    data = task.data
    if not all(isinstance(data.get(name), str) for name in (_PICTURE, _ORIGINAL, _SHOWN)):
        return None
    if not _ID.fullmatch(data[_PICTURE]):
        return None
    given = [one for one in task.annotations if not one.get("was_cancelled")]
    if not given:
        return _Told(task.task, "skipped" if task.annotations else "untouched")
    annotations = sorted(
        (_read_annotation(one, task, path) for one in given), key=lambda one: (one.ground_truth, one.at)
    )
    chosen = annotations[-1]
    if len(chosen.texts) != 1:
        return _Told(task.task, "several" if chosen.texts else "blank")
    caption = chosen.texts[0]
    # An annotator's own earlier texts are no disagreement.
    newest = {one.by: one.texts[0] for one in annotations if len(one.texts) == 1}
    others = tuple(sorted({text for by, text in newest.items() if by != chosen.by and text != caption}))
    disagreement = Disagreement(task.task, caption, others) if others else None
    if caption == _one_line(data[_SHOWN]):
        return _Told(task.task, "confirmed", disagreement=disagreement)
    correction = Correction(
        picture=data[_PICTURE],
        original=data[_ORIGINAL],
        shown=data[_SHOWN],
        caption=caption,
        by=chosen.by,
        at=chosen.at,
        task=task.task,
    )
    return _Told(task.task, "corrected", correction, disagreement)


def _read_annotation(annotation: Mapping[str, Any], task: _Exported, path: Path) -> _Annotation:
    when = annotation.get("updated_at") or annotation.get("created_at")
    try:
        at = datetime.fromisoformat(str(when))
    except ValueError as error:
        raise NotAnExport(f"{path}: the annotation of task {task.task} has no time (updated_at is {when!r})") from error
    if task.minimal:
        texts, by = _texts_of(annotation.get(CONTROL)), annotation.get("annotator")
    else:
        results = [one for one in _list_of_dicts(annotation.get("result")) if one.get("from_name") == CONTROL]
        texts = [text for one in results for text in _texts_of(one.get("value"))]
        by = annotation.get("completed_by")
    return _Annotation(
        texts=tuple(dict.fromkeys(line for text in texts if (line := _one_line(text)))),
        by=_person(by),
        at=at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC),
        ground_truth=bool(annotation.get("ground_truth")),
    )


def _texts_of(value: Any) -> list[str]:
    """Texts of a TextArea in any of the forms that exports have: a text, a list of texts, ``{"text": …}``."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return _texts_of(value.get("text"))
    return [text for one in value for text in _texts_of(one)] if isinstance(value, list) else []


def _list_of_dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _person(value: Any) -> str:
    """Who annotated: the number, or of a whole person the e-mail address."""
    if isinstance(value, dict):
        return str(value.get("email") or value.get("id") or "unknown")
    return str(value) if value not in (None, "") else "unknown"


def _one_line(text: str) -> str:
    return " ".join(text.split())
