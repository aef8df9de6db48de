"""Sheets to look at: what a model makes of twelve common things, and of words that combine, for a person to count.

Belongs here: which prompts, and how drawn pictures are laid out. No figure is computed here: whether a picture shows
what was asked is for eyes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from genai_assets import durable
from genai_assets.diffusion.sampling import Drawer
from genai_assets.settings import Settings

THINGS = (
    "pizza",
    "grinning face",
    "red heart",
    "dog face",
    "automobile",
    "bomb",
    "crown",
    "globe",
    "ghost",
    "strawberry",
    "robot",
    "soccer ball",
)
COMBINATIONS = (
    "a blue car",
    "a green apple",
    "a purple cat",
    "a red hat",
    "a yellow house",
    "a pink flower",
    "a black bird",
    "a white rabbit",
    "a green ball",
    "an orange fish",
    "a blue heart",
    "a red guitar",
)
_CELL, _GAP, _MARGIN, _LABEL = 80, 4, 12, 84
_LINE = 13
_PAPER, _INK = (255, 255, 255), (40, 40, 44)


def draw_sheet(
    drawer: Drawer, captions: Sequence[str], styles: Sequence[str], settings: Settings, path: Path, *, seed: int = 0
) -> None:
    """Draw every caption in every style and write the sheet, a row a style.

    The same caption has the same noise in all styles, so that only the word for the style differs. One picture each: no
    choosing among several.

    Args:
        drawer: the model.
        captions: what to draw; the settings' template makes prompts of them.
        styles: names of styles as the template takes them.
        settings: steps, guidance scale and template.
        path: a PNG file.
        seed: of the first caption; each further one has the next.
    """
    prompts = [settings.fine_tune.prompt(caption, style) for style in styles for caption in captions]
    drawn = drawer.draw(
        prompts,
        seeds=[seed + number for _ in styles for number in range(len(captions))],
        steps=settings.sampling.steps,
        guidance_scale=settings.sampling.guidance_scale,
    )
    rows = {style: drawn[number * len(captions) :][: len(captions)] for number, style in enumerate(styles)}
    write_sheet(rows, captions, path)


def write_sheet(rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], path: Path) -> None:
    """Lay pictures out as :func:`lay_out` does, and write them as a PNG file."""
    # 256 colours do for a look, at a third of the size: sheets go into the docs and the model's card.
    sheet = lay_out(rows, captions).quantize(256, dither=Image.Dither.NONE)
    with durable.replacing(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def lay_out(rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """Pictures in rows, the row's name before each and the captions above.

    Raises:
        ValueError: a row has another number of pictures than there are captions.
    """
    if odd := [name for name, pictures in rows.items() if len(pictures) != len(captions)]:
        raise ValueError(f"there are {len(captions)} captions, but not as many pictures in {', '.join(odd)}")
    step = _CELL + _GAP
    width = 2 * _MARGIN + _LABEL + len(captions) * step - _GAP
    top = _MARGIN + 2 * _LINE + _GAP
    sheet = Image.new("RGB", (width, top + len(rows) * step - _GAP + _MARGIN), _PAPER)
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, caption in enumerate(captions):
        place = (_MARGIN + _LABEL + column * step + _CELL / 2, _MARGIN + 2 * _LINE)
        canvas.multiline_text(place, _in_two_lines(caption), _INK, font=font, anchor="md", align="center", spacing=2)
    for row, (name, pictures) in enumerate(rows.items()):
        y = top + row * step
        canvas.text((_MARGIN, y + _CELL / 2), name, _INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            cell = picture.resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (_MARGIN + _LABEL + column * step, y))
    return sheet


def _in_two_lines(caption: str) -> str:
    """A caption broken at its last space when it is too long for its column."""
    head, _, tail = caption.rpartition(" ")
    return f"{head}\n{tail}" if head and len(caption) > 12 else caption
