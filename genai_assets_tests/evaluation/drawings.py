"""Small pictures drawn on the spot: real shapes in two styles, so that real features have something to see."""

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "ring", "cross", "bar")
COLOURS = {"red": (214, 48, 49), "green": (39, 154, 80), "blue": (52, 90, 200), "yellow": (240, 190, 30)}
CAPTIONS = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
SIZE = 48


def draw(caption: str, style: str = "flat", shift: int = 0) -> np.ndarray:
    """One picture, uint8 [48, 48, 3]; style "flat" is plain, "outlined" has a grey ground and a black edge."""
    colour, shape = caption.split()
    flat = style == "flat"
    image = Image.new("RGB", (SIZE, SIZE), "white" if flat else (205, 205, 215))
    canvas = ImageDraw.Draw(image)
    low, high, middle = 8 + shift, 38 + shift, 23 + shift
    box = (low, low, high, high)
    look = {"fill": COLOURS[colour], "outline": None if flat else "black", "width": 0 if flat else 3}
    if shape == "circle":
        canvas.ellipse(box, **look)
    elif shape == "square":
        canvas.rectangle(box, **look)
    elif shape == "triangle":
        canvas.polygon([(low, high), (high, high), (middle, low)], **look)
    elif shape == "ring":
        canvas.ellipse(box, **look)
        canvas.ellipse((low + 9, low + 9, high - 9, high - 9), fill="white")
    elif shape == "cross":
        canvas.rectangle((middle - 4, low, middle + 4, high), **look)
        canvas.rectangle((low, middle - 4, high, middle + 4), **look)
    else:
        canvas.rectangle((low, middle - 5, high, middle + 5), **look)
    return np.array(image)


def draw_all(style: str = "flat", shift: int = 0) -> np.ndarray:
    """All captions in one style, uint8 [24, 48, 48, 3]."""
    return np.stack([draw(caption, style, shift) for caption in CAPTIONS])
