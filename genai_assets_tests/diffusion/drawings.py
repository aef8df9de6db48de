"""Simple pictures with captions: discs and squares in a few colours. No torch, so that a child process starts fast."""

import zlib

import numpy as np
import pandas as pd

_COLOURS = {"red": (220, 40, 40), "green": (40, 180, 70), "blue": (50, 80, 220), "yellow": (240, 210, 60)}
_SHAPES = ("disc", "square", "ring")


def drawn_rows() -> pd.DataFrame:
    """Twelve pictures of one style; every shape's yellow one is validation, every green one a variant."""
    return pd.DataFrame(
        [
            {
                "id": f"{colour}-{shape}",
                "caption": f"{colour} {shape}",
                "keywords": ["round", "toy", shape] if shape != "square" else [],
                "concept": f"{colour}-{shape}",
                "style": "plain",
                "variant": colour == "green",
                "split": "validation" if colour == "yellow" else "train",
            }
            for shape in _SHAPES
            for colour in _COLOURS
        ]
    )


def drawn_picture(record_id: str) -> np.ndarray:
    """The picture of an id: uint8 [64, 64, 3] RGB."""
    colour, shape = record_id.split("-")
    across, down = np.meshgrid(np.arange(64), np.arange(64))
    nudge = zlib.crc32(record_id.encode()) % 9 - 4  # not symmetric, so that a mirrored picture is another one
    distance = np.hypot(across - 32 - nudge, down - 32)
    inside = {
        "disc": distance < 20,
        "ring": (distance > 12) & (distance < 22),
        "square": (abs(across - 32 - nudge) < 16) & (abs(down - 32) < 16),
    }[shape]
    picture = np.full((64, 64, 3), 255, dtype=np.uint8)
    picture[inside] = _COLOURS[colour]
    return picture
