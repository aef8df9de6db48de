"""``genai data captions``: look at captions, hand them to people to correct, and take their corrections in.

Belongs here: arguments, tables and words. The rules are ``datasets/caption_quality``, Label Studio's formats
``datasets/label_studio``, the log ``datasets/corrections``.
"""

import json
import shutil
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genai_assets.console import make_console, read_settings, say, styled

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from rich.console import Console

    from genai_assets.datasets.label_studio import Annotations, Task
    from genai_assets.settings import Settings

captions = typer.Typer(no_args_is_help=True, help="Check captions, and let people correct them in Label Studio.")

_TOLD = 5  # conflicts and the like, before "and more"


class Pictures(StrEnum):
    """How Label Studio gets to see the pictures."""

    EMBED = "embed"
    FILES = "files"


@captions.command("check")
def check_captions(
    examples: Annotated[int, typer.Option(min=0, help="Captions shown for each kind of problem.")] = 2,
) -> None:
    """Count what is wrong with captions, by kind, with examples; personal data is masked. Changes nothing."""
    from rich.table import Table

    from genai_assets.datasets.caption_quality import caption_problems, masked_caption

    settings, console = read_settings(), make_console()
    manifest = _manifest(settings)
    counts: Counter[str] = Counter()
    shown: dict[str, list[str]] = {}
    wrong = 0
    for caption in manifest["caption"].fillna(""):
        problems = caption_problems(caption, settings.captions)
        wrong += bool(problems)
        for kind in {problem.kind for problem in problems}:
            counts[kind] += 1
        for problem in problems:
            told = f"“{_short(masked_caption(caption, settings.captions))}”: {problem.detail}"
            if told not in shown.setdefault(problem.kind, []) and len(shown[problem.kind]) < examples:
                shown[problem.kind].append(told)
    say(console, f"{wrong:,} of {len(manifest):,} records have a caption to look at.", "yellow" if wrong else "green")
    if wrong:
        table = Table(header_style="bold")
        table.add_column("problem")
        table.add_column("records", justify="right")
        table.add_column("for example", overflow="fold")
        for kind, count in counts.most_common():
            table.add_row(kind, f"{count:,}", styled("\n".join(shown.get(kind, []))))
        console.print(table)
        say(console, "To let people correct them: genai data captions export --out tasks.json --problems-only")
    concepts = manifest.groupby("caption")["concept"].nunique()
    if shared := int((concepts > 1).sum()):
        say(
            console,
            f"{shared:,} captions are given to pictures of several concepts, so prompts cannot tell these apart.",
        )


@captions.command("export")
def export_captions(
    out: Annotated[Path, typer.Option(help="The JSON file to write; the labelling interface goes beside it as .xml.")],
    problems_only: Annotated[bool, typer.Option("--problems-only", help="Only captions with a problem.")] = False,
    split: Annotated[str | None, typer.Option(help="Only records of this split.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many tasks.")] = None,
    pictures: Annotated[
        Pictures, typer.Option(help="embed: thumbnails within the file; files: whole pictures in a folder beside it.")
    ] = Pictures.EMBED,
) -> None:
    """Write captions as tasks for Label Studio, each with its picture and the caption of now to edit."""
    from genai_assets import durable
    from genai_assets.datasets.label_studio import LABELLING_CONFIG, write_tasks

    if out.suffix != ".json":
        raise ValueError(f"--out is {out}; tasks are written as JSON: let its name end in .json")
    settings, console = read_settings(), make_console()
    manifest = _with_splits(settings, _manifest(settings), split)
    left_out: Counter[str] = Counter()
    count = write_tasks(out, _tasks(settings, manifest, out, problems_only, limit, pictures, left_out))
    config = out.with_suffix(".xml")
    durable.write_text(config, LABELLING_CONFIG)
    say(console, f"{count:,} tasks: {out}", "green" if count else "yellow")
    for why, number in left_out.items():
        say(console, f"{number:,} left out: {why}", "yellow")
    say(console, f"Labelling interface of the project: {config} (Settings, Labeling Interface, Code)")
    if pictures is Pictures.FILES:
        say(
            console,
            "Label Studio must be started with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={out.absolute().parent}, and the folder {_folder_of(out).name} "
            "added to the project as local storage.",
        )
    say(console, "Back again: export there as JSON or JSON-MIN, then genai data captions import FILE")


@captions.command("import")
def import_captions(
    file: Annotated[Path, typer.Argument(help="An export of Label Studio, JSON or JSON-MIN.")],
    details: Annotated[bool, typer.Option("--details", help="Tell of every task that is passed over.")] = False,
) -> None:
    """Take in what people corrected. The records' own captions stay in their provenance; nothing is overwritten."""
    from genai_assets import durable, stages
    from genai_assets.datasets.caption_quality import caption_problems
    from genai_assets.datasets.label_studio import read_export
    from genai_assets.stages.captions import correction_log

    settings, console = read_settings(), make_console()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; export from Label Studio as JSON or JSON-MIN")
    told = read_export(file, on_skip=(lambda text: say(console, text, "dim")) if details else None)
    with correction_log(settings) as log:
        added = log.add(told.corrections, import_digest=durable.digest_file(file))
    known = f"; {added.known:,} were known already" if added.known else ""
    say(console, f"{added.added:,} corrections taken in{known}.", "green" if added.added else "")
    _tell_rest(console, told)
    for conflict in added.conflicts[:_TOLD]:
        say(
            console,
            f"Two people captioned picture {conflict.used.picture[:12]} without having seen each other's: "
            f"“{_short(conflict.used.caption)}” counts (made last, task {conflict.used.task}), "
            f"“{_short(conflict.unused.caption)}” does not (task {conflict.unused.task}).",
            "yellow",
        )
    if len(added.conflicts) > _TOLD:
        say(console, f"… and {len(added.conflicts) - _TOLD:,} more such pictures.", "yellow")
    if bad := sum(bool(caption_problems(one.caption, settings.captions)) for one in told.corrections):
        say(console, f"{bad:,} of the corrected captions have problems themselves: genai data captions check", "yellow")
    raw = stages.newest_raw_data(settings)
    if raw is not None and told.corrections:
        from genai_assets.datasets.records import read_manifest

        there = set(read_manifest(raw.file("manifest.parquet"))["id"])
        if gone := sum(one.picture not in there for one in told.corrections):
            say(console, f"{gone:,} are of pictures that are not in the data now; they are kept, and wait.", "yellow")
    if added.added:
        say(console, "Next: genai prepare, or materialize validated_data.")


@captions.command("log")
def show_log(
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
) -> None:
    """Show the corrections, newest first, and which of them count."""
    from rich.table import Table

    from genai_assets.datasets.caption_quality import masked_caption
    from genai_assets.datasets.corrections import effective, told_person
    from genai_assets.stages.captions import correction_log

    settings, console = read_settings(), make_console()
    with correction_log(settings) as log:
        entries = log.entries()
    counting = {one.key for one in effective(entries).values()}
    say(console, f"{len(counting):,} corrections count; the log has {len(entries):,} entries.")
    if not entries:
        return
    table = Table(header_style="bold")
    for column in ("picture", "from", "to", "by", ""):
        table.add_column(column, overflow="fold")
    for entry in entries[::-1][:limit]:
        if one := entry.correction:
            cells = (
                one.picture[:12],
                _short(masked_caption(one.original, settings.captions)),
                _short(masked_caption(one.caption, settings.captions)),
                told_person(one),
                "counts" if one.key in counting else "does not count",
            )
        else:
            cells = (entry.picture[:12], "", "", "", f"forgotten, {entry.logged_at:%Y-%m-%d}")
        table.add_row(*(styled(cell) for cell in cells))
    console.print(table)


@captions.command("forget")
def forget_corrections(
    picture: Annotated[str, typer.Argument(help="The picture's id, or its first eight digits or more.")],
) -> None:
    """Let a picture's corrections no longer count: its source's caption stands again. The log keeps them."""
    from genai_assets.stages.captions import correction_log

    settings, console = read_settings(), make_console()
    with correction_log(settings) as log:
        whole, count = log.forget(picture)
    corrections = "1 correction" if count == 1 else f"{count} corrections"
    say(console, f"{corrections} of picture {whole[:12]} forgotten. Next: genai prepare.", "green")


def _tell_rest(console: "Console", told: "Annotations") -> None:
    """What an export has beside corrections."""
    counts = {
        "Captions confirmed as they are": told.confirmed,
        "Tasks that people skipped": told.skipped,
        "Tasks that nobody has looked at": told.untouched,
        "Tasks submitted without a caption, which change nothing": told.blank,
        "Tasks with several texts, of which none can be chosen": told.several,
        "Tasks that were not made here": told.foreign,
    }
    for what, count in counts.items():
        if count:
            say(console, f"{what}: {count:,}", "" if count == told.confirmed else "yellow")
    for one in told.disagreements[:_TOLD]:
        others = ", ".join(f"“{_short(text)}”" for text in one.others)
        say(console, f"Task {one.task}: people disagree; “{_short(one.used)}” counts, not {others}.", "yellow")
    if len(told.disagreements) > _TOLD:
        say(console, f"… and {len(told.disagreements) - _TOLD:,} more tasks on which people disagree.", "yellow")


def _manifest(settings: "Settings") -> "pd.DataFrame":
    """The newest raw manifest, with the captions that count now; no model is asked.

    Raises:
        ValueError: there is none.
    """
    from genai_assets import stages
    from genai_assets.datasets.records import read_manifest
    from genai_assets.stages.captions import captions_in_force

    raw = stages.newest_raw_data(settings)
    if raw is None:
        raise ValueError(f"there is no data in {settings.home} yet: run `genai prepare`")
    return captions_in_force(settings).apply(read_manifest(raw.file("manifest.parquet")), ask_model=False)


def _with_splits(settings: "Settings", manifest: "pd.DataFrame", wanted: str | None) -> "pd.DataFrame":
    """The manifest with the column ``split`` (empty where none is known), of one split when it is asked for."""
    from genai_assets import stages

    made = stages.artifact_store(settings).newest("splits")
    if made is None:
        if wanted:
            raise ValueError("nothing is split yet: run `genai prepare`")
        return manifest.assign(split="")
    rows = stages.read_splits(made)
    known = sorted(rows["split"].unique())
    if wanted and wanted not in known:
        raise ValueError(f"there is no record in the split {wanted!r}; the splits are {', '.join(known)}")
    of = dict(zip(rows["id"], rows["split"], strict=True))
    manifest = manifest.assign(split=[of.get(picture, "") for picture in manifest["id"]])
    return manifest[manifest["split"] == wanted] if wanted else manifest


def _tasks(
    settings: "Settings",
    manifest: "pd.DataFrame",
    out: Path,
    problems_only: bool,
    limit: int | None,
    pictures: Pictures,
    left_out: "Counter[str]",
) -> "Iterator[Task]":
    """A task for each record that is asked for; ``left_out`` counts those that cannot be shown, by reason."""
    from genai_assets.datasets.caption_quality import caption_problems
    from genai_assets.datasets.corrections import CAPTION_ORIGINAL
    from genai_assets.datasets.inspection import Inspections
    from genai_assets.datasets.label_studio import Task, embedded, local_file
    from genai_assets.datasets.picture_store import PictureStore

    store, folder = PictureStore(settings.paths.pictures), _folder_of(out)
    count = 0
    with Inspections(settings) as inspections:
        for record in manifest.drop_duplicates(["id", "caption"]).to_dict("records"):
            problems = caption_problems(record["caption"] or "", settings.captions)
            if problems_only and not problems:
                continue
            if count == limit:
                return
            found = inspections.of([record["id"]], store)[record["id"]]
            if not found.width:
                left_out[found.fault or "the picture cannot be decoded"] += 1
                continue
            if pictures is Pictures.EMBED:
                image = embedded(inspections.thumbnail(record["id"]))
            else:
                name = f"{record['id']}.{found.format.lower() or 'png'}"
                folder.mkdir(parents=True, exist_ok=True)
                # No link: Label Studio may run as somebody else, and must not change the store's own file.
                shutil.copyfile(store.path(record["id"]), folder / name)
                image = local_file(f"{folder.name}/{name}")
            count += 1
            yield Task(
                picture=record["id"],
                caption=record["caption"] or "",
                original=json.loads(record["provenance"]).get(CAPTION_ORIGINAL, record["caption"] or ""),
                image=image,
                problems="; ".join(f"{problem.kind}: {problem.detail}" for problem in problems),
                about={name: str(record[name]) for name in ("source", "style", "category", "split")},
            )


def _folder_of(out: Path) -> Path:
    """Where the whole pictures of an export lie."""
    return out.with_name(f"{out.stem}_pictures")


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
