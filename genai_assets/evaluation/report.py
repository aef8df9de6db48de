"""The report people read: a grid of pictures, and one HTML file with figures, what they mean, and where they come from.

Belongs here: layout and words. The HTML needs no network and no other file. No figure is computed here.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from genai_assets import durable
from genai_assets.templates import page_template

SHOWN = 24
_CELL = 112
_GAP = 6
_MARGIN = 20
_BLOCKS_A_ROW = 3
_TITLE = 18
_TEXT_LINES = 2
_LINE = 16
_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 34), (120, 120, 126)


@dataclass(frozen=True)
class Figure:
    """How a figure is shown.

    Attributes:
        key: its name in ``metrics.json``.
        name: its name for people.
        better: ``"lower"``, ``"higher"`` or ``""`` when neither is better by itself.
        form: format of the number.
        meaning: one or two plain sentences.
    """

    key: str
    name: str
    better: str
    form: str
    meaning: str


FIGURES = (
    Figure(
        "kid",
        "KID to real pictures",
        "lower",
        "{:.4f}",
        "How far the pictures as a whole are from the real held-out ones: colours, shapes, finish. 0 is "
        "indistinguishable. The real column is the floor: real held-out pictures against real ones of other concepts. "
        "Compare within this table only; another extractor or size gives other numbers.",
    ),
    Figure(
        "recall_at_1",
        "Agreement, R@1",
        "higher",
        "{:.1%}",
        "A linear proxy reads each picture and picks the caption it fits best among all held-out ones: how often that "
        "is the right one. The real column tells how well the proxy reads real pictures. It learnt from other styles, "
        "so a model that draws in those has it easier: compare models of one style by it.",
    ),
    Figure(
        "recall_at_5", "Agreement, R@5", "higher", "{:.1%}", "The same, with the right caption among the five best."
    ),
    Figure(
        "style_score",
        "House style",
        "higher",
        "{:.1%}",
        "Share of pictures that a linear classifier, taught on training pictures and other styles, calls house style.",
    ),
    Figure(
        "distance_to_real",
        "Distance to the real picture",
        "lower",
        "{:.3f}",
        "Feature distance between a drawn picture and the real one of the same concept, median.",
    ),
    Figure(
        "nearest_distance",
        "Nearest training picture",
        "",
        "{:.3f}",
        "Feature distance to the nearest training picture, median. Much below the real column hints at copying, much "
        "above it at pictures outside the style.",
    ),
    Figure(
        "copied_share",
        "Near-copies",
        "lower",
        "{:.1%}",
        "Share of pictures nearer to a training picture than 99 % of real new pictures are. It finds near-copies of a "
        "whole picture; a copied detail or composition passes.",
    ),
    Figure(
        "variety",
        "Variety",
        "",
        "{:.3f}",
        "Mean feature distance between two pictures of the set. Far below the real column, the model draws much the "
        "same for every prompt.",
    ),
    Figure("blank_share", "Blank pictures", "lower", "{:.1%}", "Share of pictures of nearly one colour."),
    Figure(
        "distinct_share", "Distinct pictures", "higher", "{:.1%}", "Share of pictures that no other repeats exactly."
    ),
    Figure("latency_ms", "Time a picture", "lower", "{:.0f} ms", "Median time to draw one picture on this machine."),
)
"""Every figure of the report, in its order."""


def choose_shown(count: int) -> list[int]:
    """Which of ``count`` concepts the grid shows: at most 24, evenly spread, not chosen by how they look."""
    return np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int).tolist()


def write_grid(path: Path, pictures: Mapping[str, np.ndarray], captions: Sequence[str], shown: Sequence[int]) -> None:
    """Draw the grid as PNG: for each concept its caption, and below it one picture of every model side by side.

    Args:
        path: the file; written all or nothing.
        pictures: model name to uint8 [N, H, W, 3].
        captions: N texts.
        shown: indices of the concepts to show.
    """
    names = list(pictures)
    blocks = 2 if len(names) > 3 else _BLOCKS_A_ROW
    block_width = len(names) * (_CELL + _GAP) - _GAP
    block_height = _TEXT_LINES * _LINE + _CELL + _GAP
    rows = -(-len(shown) // blocks)
    width = 2 * _MARGIN + blocks * block_width + (blocks - 1) * 2 * _MARGIN
    height = 2 * _MARGIN + _TITLE + rows * (block_height + _MARGIN)
    image = Image.new("RGB", (width, height), _PAPER)
    canvas = ImageDraw.Draw(image)
    small, bold = ImageFont.load_default(13), ImageFont.load_default(14)
    for block in range(min(blocks, len(shown))):
        for column, name in enumerate(names):
            x = _MARGIN + block * (block_width + 2 * _MARGIN) + column * (_CELL + _GAP)
            canvas.text((x + _CELL / 2, _MARGIN), _people_say(name), _FAINT, font=bold, anchor="ma")
    for place, index in enumerate(shown):
        row, block = divmod(place, blocks)
        x = _MARGIN + block * (block_width + 2 * _MARGIN)
        y = _MARGIN + _TITLE + _GAP + row * (block_height + _MARGIN)
        for number, line in enumerate(reversed(_wrap(captions[index], small, block_width))):
            canvas.text((x, y + (_TEXT_LINES - 1 - number) * _LINE), line, _INK, font=small)
        for column, name in enumerate(names):
            image.paste(_enlarge(pictures[name][index]), (x + column * (_CELL + _GAP), y + _TEXT_LINES * _LINE))
    durable.write_bytes(path, _png(image))


def write_report(
    path: Path,
    result: Mapping[str, Any],
    pictures: Mapping[str, np.ndarray],
    captions: Sequence[str],
    concepts: pd.DataFrame,
    shown: Sequence[int],
) -> None:
    """Write the HTML report: one self-contained file, light and dark.

    Args:
        path: the file; written all or nothing.
        result: what ``evaluate`` found (``metrics.json``).
        pictures: model name to uint8 [N, H, W, 3].
        captions: N texts.
        concepts: one row a model and concept (``pictures.parquet``).
        shown: indices of the concepts shown as pictures.
    """
    html = page_template("genai_assets.evaluation", "report.html.j2", people_say=_people_say).render(
        result=result,
        names=list(pictures),
        figures=_figure_rows(result["models"], list(pictures)),
        differences=result["kid_difference"],
        pairs=[(captions[index], {name: _data_url(of[index]) for name, of in pictures.items()}) for index in shown],
        concepts=_concept_rows(concepts, result["reference"]),
        provenance=_flatten(result["provenance"]),
    )
    durable.write_text(path, html)


def _people_say(name: str) -> str:
    return name.replace("_", "-")


def _figure_rows(models: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for figure in FIGURES:
        values = {name: models[name].get(figure.key) for name in names}
        if all(value is None for value in values.values()):
            continue
        shown = {name: "–" if value is None else figure.form.format(value) for name, value in values.items()}
        if figure.key == "kid":
            shown = {name: f"{text} ± {models[name]['kid_standard_error']:.4f}" for name, text in shown.items()}
        rows.append({"figure": figure, "values": shown})
    return rows


def _concept_rows(concepts: pd.DataFrame, model: str) -> list[dict[str, Any]]:
    chosen = concepts[concepts["model"] == model]
    columns = ["caption", "rank", "distance_to_real", "nearest_distance", "nearest_training"]
    return [{str(name): value for name, value in row.items()} for row in chosen[columns].to_dict("records")]


def _flatten(value: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, inner in value.items():
        label = f"{before}{name}".replace("_", " ")
        rows += _flatten(inner, f"{label}: ") if isinstance(inner, Mapping) else [(label, str(inner))]
    return rows


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """At most two lines no wider than ``width`` pixels; what does not fit ends in an ellipsis."""
    lines, rest = [], " ".join(text.split())
    for last in (False, True):
        line = _longest_start(rest, font, width)
        if last and line != rest:
            line = _longest_start(rest, font, width - font.getlength("…")) + "…"
        lines.append(line)
        rest = rest[len(line) :].lstrip()
        if not rest:
            break
    return lines


def _longest_start(text: str, font: Any, width: float) -> str:
    """As many whole words from the start of ``text`` as fit, or as many letters when not even one word does."""
    if font.getlength(text) <= width:
        return text
    fitting = ""
    for end, letter in enumerate(text):
        if font.getlength(text[:end]) > width:
            break
        if letter == " ":
            fitting = text[:end]
    if fitting:
        return fitting
    end = next(end for end in range(len(text), -1, -1) if font.getlength(text[:end]) <= width)
    return text[: max(end, 1)]


def _enlarge(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture).resize((_CELL, _CELL), Image.Resampling.LANCZOS)


def _data_url(picture: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(Image.fromarray(picture))).decode()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
