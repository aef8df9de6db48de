"""How an asset tells what it did: the result with its metadata, and progress in Dagster's log."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from genai_assets.artifacts import Artifact
from genai_assets.pages import address_of
from genai_assets.settings import Settings
from genai_assets.stages import OnProgress

_LONGEST_LIST = 20


@dataclass(frozen=True)
class Page:
    """A file for people, that :func:`result` tells of by its address and its path."""

    path: Path


def result(
    artifact: Artifact, metadata: dict[str, Any] | None = None, checks: Sequence[dg.AssetCheckResult] = ()
) -> dg.MaterializeResult[Artifact]:
    """An asset's result: its artifact, the content's digest as data version, and its figures as metadata.

    A :func:`page` called ``report`` becomes a link ``report`` and the path ``report_file``.
    """
    figures = {name: _shown(value) for name, value in artifact.summary.items() if value is not None}
    return dg.MaterializeResult(
        value=artifact,
        data_version=dg.DataVersion(artifact.data_version),
        metadata={
            **figures,
            "folder": dg.MetadataValue.path(artifact.path),
            "reused": artifact.reused,
            **_with_links(metadata or {}),
        },
        check_results=list(checks),
    )


def picture(path: Path, *, alt: str) -> dg.MarkdownMetadataValue:
    """A PNG inside the metadata, so that the Dagster UI shows it."""
    import base64

    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})")


def page(path: Path) -> Page:
    """A file for people, to be handed to :func:`result`: a link where `genai_assets.pages` serves it."""
    return Page(path.absolute())


def progress_log(context: dg.AssetExecutionContext) -> OnProgress:
    """Progress as lines in Dagster's log, about every tenth part."""
    told: dict[str, int] = {}

    def tell(what: str, done: int, total: int) -> None:
        part = done * 10 // total if total else done // 1000
        if told.get(what) != part or (total and done == total):
            told[what] = part
            context.log.info(f"{what}: {done}" + (f" of {total}" if total else ""))

    return tell


def _with_links(metadata: dict[str, Any]) -> dict[str, Any]:
    """Each page as two entries; a file that is not served (a table, say) by its path alone: no link is dead."""
    shown: dict[str, Any] = {}
    for name, value in metadata.items():
        if not isinstance(value, Page):
            shown[name] = value
            continue
        settings: Settings = dg.AssetExecutionContext.get().resources.settings  # those of the asset that runs
        path = dg.MetadataValue.path(value.path)
        address = address_of(value.path, settings)
        shown |= {name: path} if address is None else {name: dg.MetadataValue.url(address), f"{name}_file": path}
    return shown


def _shown(value: Any) -> Any:
    if isinstance(value, dict | list | tuple):
        return dg.MetadataValue.json(value if isinstance(value, dict) else list(value)[:_LONGEST_LIST])
    return value
