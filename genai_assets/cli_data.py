"""``genai data``: look at the data, search it, mend it, release what was kept back.

Belongs here: commands and their arguments. What they do is in ``datasets`` and ``stages``.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genai_assets.cli_captions import captions
from genai_assets.console import make_console, read_settings, say, table_of, table_of_counts

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from genai_assets.artifacts import Artifact
    from genai_assets.datasets.contact_sheet import Group
    from genai_assets.settings import Settings

_Sheet = Annotated[Path | None, typer.Option(help="Draw the pictures into this PNG.")]
_Page = Annotated[Path | None, typer.Option("--html", help="Write the pictures to this HTML page.")]

data = typer.Typer(no_args_is_help=True, help="Look at the data, and release what was kept back.")
data.add_typer(captions, name="captions")


@data.command("release")
def data_release(category: Annotated[str, typer.Argument(help="One of splits.later_categories.")]) -> None:
    """Release a category that was kept back: from the next run on it is trained on."""
    from genai_assets.datasets.release import release_category

    settings = read_settings()
    released = release_category(settings.paths, category, settings)
    make_console().print(f"Released: {', '.join(sorted(released))}. Next: genai train, or wait for Dagster's sensor.")


@data.command("show")
def data_show() -> None:
    """Count the newest records by style, split and licence, and say why some are in quarantine."""
    from genai_assets import stages
    from genai_assets.datasets.records import read_manifest

    settings, console = read_settings(), make_console()
    store = stages.artifact_store(settings)
    raw, validated, split = (store.newest(kind) for kind in ("raw_data", "validated_data", "splits"))
    if raw is None:
        raise ValueError(f"there is no data in {settings.home} yet: run `genai prepare`")
    for refused in raw.summary["refused"]:
        count = refused["count"]
        how_many = "all pictures" if count is None else "1 picture" if count == 1 else f"{count:,} pictures"
        text = f"Refused: {refused['source']} ({how_many}): {refused['reason']}"
        say(console, text, "yellow")
    if validated is None:
        console.print(table_of_counts("licence", raw.summary["by_licence"]))
        say(console, "Not validated yet: genai prepare.")
        return
    records = read_manifest(validated.file("manifest.parquet"))
    if split is None:
        console.print(table_of_counts("style", records["style"].value_counts()))
        say(console, "Not split yet: genai prepare.")
    else:
        rows = stages.read_splits(split)
        counts = rows.groupby(["style", "split"]).size().unstack(fill_value=0)
        table = table_of("style", *(str(name) for name in counts.columns), title="Records by style and split")
        for style, row in counts.iterrows():
            table.add_row(str(style), *(f"{count:,}" for count in row))
        console.print(table)
    console.print(table_of_counts("licence", records["licence"].value_counts()))
    kept, quarantined = validated.summary["kept"], validated.summary["quarantined"]
    say(console, f"{kept:,} records are in use, {quarantined:,} in quarantine.")
    if quarantined:
        console.print(table_of_counts("reason for quarantine", validated.summary["quarantined_by_reason"]))
    say(console, f"Data Docs: {validated.summary['data_docs']}")
    if report := store.newest("data_readiness_report"):
        say(console, f"{report.summary['verdict']}: {report.file('readiness.html')}")


@data.command("batches")
def data_batches() -> None:
    """List the batches that raw data came in by; their names are Dagster's partition keys."""
    from genai_assets import stages

    settings = read_settings()
    found = stages.batches(settings)
    if not found:
        raise ValueError(f"there is no data in {settings.home} yet: run `genai prepare`")
    columns = ("records", "added", "changed", "removed")
    table = table_of("batch", *columns)
    for batch in found:
        table.add_row(batch.summary["batch"], *(f"{batch.summary[name]:,}" for name in columns))
    make_console().print(table)


@data.command("search")
def data_search(
    text: Annotated[str, typer.Argument(help="What to look for, in the language of the captions.")] = "",
    picture: Annotated[Path | None, typer.Option(help="Find the pictures nearest to this one.")] = None,
    by: Annotated[
        Literal["caption", "picture"], typer.Option(help="Compare a text with captions, or with the pictures' looks.")
    ] = "caption",
    style: Annotated[str | None, typer.Option(help="Only this style.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many records.")] = 24,
    sheet: _Sheet = None,
    html: _Page = None,
) -> None:
    """Find records by a text or by a picture; pictures that were removed are never found."""
    from genai_assets.datasets.contact_sheet import Group, Tile
    from genai_assets.datasets.records import read_manifest
    from genai_assets.evaluation import search
    from genai_assets.evaluation.feature_index import FeatureTable, open_feature_index, vector_of_file

    if bool(text.strip()) == (picture is not None):
        raise ValueError("say what to look for: a text, or --picture FILE")
    settings, console = read_settings(), make_console()
    raw, validated = _newest(settings, "raw_data"), _newest(settings, "validated_data")
    features, split = _newest(settings, "image_features"), _maybe_newest(settings, "splits")
    living = search.living_records(
        read_manifest(validated.file("manifest.parquet")),
        read_manifest(raw.file("manifest.parquet")),
        _read_splits(split),
    )
    living = living if style is None else living[living["style"] == style]
    index = open_feature_index(settings)
    if picture is not None:
        hits = search.by_picture(vector_of_file(picture, index, settings), living, index, count=count)
    else:
        hits = search.by_text(text, living, index, FeatureTable.read(features.path), count=count, by=by)
    title = f"Nearest to {picture.name if picture else text}"
    table = _table_of_text("caption", "style", "split", "distance", "looks", "picture", title=title)
    for hit in hits:
        figures = ("" if math.isnan(number) else f"{number:.3f}" for number in (hit.distance, hit.looks))
        table.add_row(hit.caption, hit.style, hit.split, *figures, hit.id[:12])
    console.print(table)

    def groups(thumbnail: "Callable[[str], bytes]") -> "list[Group]":
        return [Group("", (Tile(thumbnail(hit.id), (hit.caption, hit.style, hit.split, hit.id[:12])),)) for hit in hits]

    _show(settings, groups, title, (), sheet, html)


@data.command("duplicates")
def data_duplicates(
    by: Annotated[
        Literal["perceptual", "features", "content"] | None, typer.Option(help="Only clusters with such a pair.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many clusters are shown, the largest first.")] = 50,
    sheet: _Sheet = None,
    html: _Page = None,
) -> None:
    """Show the clusters of near duplicates: how many, why their pictures were joined, and which one stays."""
    import pandas as pd

    from genai_assets.datasets.duplicates import cluster_groups
    from genai_assets.datasets.records import read_manifest

    settings, console = read_settings(), make_console()
    validated, duplicates = _newest(settings, "validated_data"), _newest(settings, "duplicate_clusters")
    clusters = pd.read_parquet(duplicates.file("clusters.parquet"))
    if by is not None:
        clusters = clusters[clusters["cluster"].isin(clusters.loc[_joined_by(clusters, by), "cluster"])]
    summary = duplicates.summary
    facts = (
        f"{summary['pictures_in_clusters']:,} of {summary['pictures']:,} pictures are in {summary['clusters']:,} "
        f"clusters; the largest has {summary['largest']}.",
        f"Pairs: {summary['pairs']['perceptual']:,} by perceptual hash, {summary['pairs']['features']:,} by features "
        f"alone; {summary['shared_by_records']:,} pictures are shared by several records.",
        f"Policy (curation.keep): {summary['keep']}; {summary['not_kept']:,} pictures are not the ones that stay.",
    )
    for fact in facts:
        say(console, fact)
    if not len(clusters):
        return
    manifest, table = read_manifest(validated.file("manifest.parquet")), _read_splits(_maybe_newest(settings, "splits"))
    listing = _table_of_text("cluster", "caption", "style", "split", "joined by", "picture")
    shown = cluster_groups(manifest, clusters, table, count=count)
    for number, members in enumerate(shown, start=1):
        for member in members:
            listing.add_row(str(number), member.caption, member.style, member.split, member.joined, member.id[:12])
    console.print(listing)
    if len(shown) < clusters["cluster"].nunique():
        say(console, f"{clusters['cluster'].nunique() - len(shown):,} more; --count shows them.")

    def groups(thumbnail: "Callable[[str], bytes]") -> "list[Group]":
        from genai_assets.datasets.contact_sheet import Group, Tile

        return [
            Group(
                f"cluster {number}",
                tuple(
                    Tile(thumbnail(of.id), (of.caption, f"{of.style} {of.split}".strip(), of.joined), not of.kept)
                    for of in members
                ),
            )
            for number, members in enumerate(shown, start=1)
        ]

    _show(settings, groups, "Near duplicates", facts, sheet, html)


def _joined_by(clusters: "pd.DataFrame", by: str) -> "pd.Series":
    """Rows that such evidence joined; "content" is several records of one picture, not a cluster's centre."""
    if by != "content":
        return clusters["by"] == by
    return (clusters["by"] == by) & (clusters.groupby("cluster")["id"].transform("size") == 1)


def _show(
    settings: "Settings",
    groups: "Callable[[Callable[[str], bytes]], list[Group]]",
    title: str,
    facts: Sequence[str],
    sheet: Path | None,
    page: Path | None,
) -> None:
    """Write what was asked for, and say where."""
    from genai_assets.datasets.contact_sheet import write_page, write_sheet
    from genai_assets.datasets.inspection import Inspections

    if sheet is None and page is None:
        return
    with Inspections(settings) as inspections:
        shown = groups(inspections.thumbnail)
    if sheet is not None:
        write_sheet(sheet, shown, title=title)
    if page is not None:
        write_page(page, shown, title=title, facts=facts)
    for path in (sheet, page):
        if path is not None:
            say(make_console(), f"Pictures: {path}")


def _table_of_text(*columns: str, title: str | None = None) -> "Table":
    """A table of words, which begin at the left."""
    table = table_of(*columns, title=title)
    for column in table.columns:
        column.justify = "left"
    return table


def _maybe_newest(settings: "Settings", kind: str) -> "Artifact | None":
    from genai_assets import stages

    return stages.artifact_store(settings).newest(kind)


def _newest(settings: "Settings", kind: str) -> "Artifact":
    found = _maybe_newest(settings, kind)
    if found is None:
        raise ValueError(f"there is no {kind} in {settings.home} yet: run `genai prepare`")
    return found


def _read_splits(split: "Artifact | None") -> "pd.DataFrame | None":
    from genai_assets import stages

    return None if split is None else stages.read_splits(split)
