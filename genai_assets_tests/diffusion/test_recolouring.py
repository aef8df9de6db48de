"""Recoloured pictures: the thing stays, its main colour is another one, and the caption says so."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from genai_assets.diffusion.recolouring import (
    COLOURS,
    main_colour,
    recolour,
    recoloured_ids,
    recoloured_reader,
    takes_a_colour,
)

SIDE = 64


def thing(fill: str, outline: str = "#222222") -> np.ndarray:
    """A disc with an outline, a white spot and a small blue part."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((6, 6, 57, 57), fill=fill, outline=outline, width=3)
    draw.ellipse((24, 24, 32, 32), fill="white")
    draw.rectangle((36, 36, 41, 41), fill="#1040ff")
    return np.asarray(image)


def recoloured(picture: np.ndarray, colour: str) -> np.ndarray:
    found = main_colour(picture)
    assert found is not None
    return recolour(picture, found, colour)


MAIN, OUTLINE, SPOT, PART, PAPER = (16, 32), (32, 7), (28, 28), (38, 38), (2, 2)


def at(picture: np.ndarray, place: tuple[int, int]) -> tuple[int, ...]:
    return tuple(int(value) for value in picture[place[1], place[0]])


def test_a_red_thing_becomes_green_and_nothing_else_of_it_changes():
    before = thing("#e02020")
    after = recoloured(before, "green")
    red, green, blue = at(after, MAIN)
    assert green > 120 > max(red, blue)
    for place in (OUTLINE, SPOT, PART, PAPER):
        assert at(after, place) == at(before, place)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_new_colour_is_the_one_that_was_asked_for(colour):
    after = recoloured(thing("#30a030"), colour)
    hue, saturation, value = at(np.asarray(Image.fromarray(after).convert("HSV")), MAIN)
    wanted_hue, wanted_saturation, wanted_value = COLOURS[colour]
    assert abs(saturation / 255 - wanted_saturation) < 0.1
    assert abs(value / 255 - wanted_value) < 0.1
    if wanted_saturation > 0.3:
        assert abs((hue * 360 / 256 - wanted_hue + 180) % 360 - 180) < 10


def test_a_grey_thing_is_recoloured_whole():
    after = recoloured(thing("#a8a8a8"), "purple")
    red, green, blue = at(after, MAIN)
    assert blue > red > green + 30
    assert at(after, PAPER) == (255, 255, 255)


def test_a_white_thing_is_told_from_the_paper_around_it():
    after = recoloured(thing("#ffffff"), "blue")
    assert at(after, MAIN) != (255, 255, 255)
    assert at(after, PAPER) == (255, 255, 255)


def test_shades_of_the_main_colour_stay_apart():
    before = thing("#e02020")
    before = before.copy()
    before[10:20, 25:40] = (150, 15, 15)
    after = recoloured(before, "blue")
    assert sum(at(after, (30, 15))) < sum(at(after, MAIN)) - 60


def test_what_has_no_main_colour_is_left_out():
    many = np.asarray(Image.new("RGB", (SIDE, SIDE), "white")).copy()
    for number, row in enumerate(range(0, SIDE, 8)):
        many[row : row + 8] = Image.new("HSV", (1, 1), (number * 32, 255, 220)).convert("RGB").getpixel((0, 0))
    assert main_colour(many) is None
    assert main_colour(np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)) is None


def test_a_colour_that_is_not_known_is_an_error():
    with pytest.raises(KeyError, match="mauve"):
        recoloured(thing("#e02020"), "mauve")


@given(seed=st.integers(0, 2**32 - 1), colour=st.sampled_from(sorted(COLOURS)))
def test_any_picture_keeps_its_shape_and_its_paper(seed, colour):
    picture = np.random.default_rng(seed).integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    picture[:3] = 255
    found = main_colour(picture)
    if found is not None:
        after = recolour(picture, found, colour)
        assert (after.shape, after.dtype) == (picture.shape, np.uint8)
        assert (after[:3] == 255).all()


@pytest.mark.parametrize(
    "caption", ["red heart", "Green salad", "grey cat", "rainbow", "coloured pencils", "dark moon"]
)
def test_a_caption_that_speaks_of_colours_takes_no_other(caption):
    assert not takes_a_colour(caption)


@pytest.mark.parametrize("caption", ["cat", "hundred points", "bored face", "reddish-looking"])
def test_any_other_caption_takes_one(caption):
    assert takes_a_colour(caption)


def test_recoloured_pictures_are_listed_with_their_captions_and_read_by_their_ids():
    pictures = {"a": thing("#e02020"), "b": thing("#30a030"), "empty": np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)}
    captions = {"a": "ball", "b": "green ball", "empty": "nothing"}
    listed = list(recoloured_ids(captions, pictures.__getitem__, 3, "seed"))
    assert [own for _, own, _ in listed] == ["a", "a", "a"]
    assert all(caption.endswith(" ball") and caption.split()[0] in COLOURS for *_, caption in listed)
    assert listed == list(recoloured_ids(captions, pictures.__getitem__, 3, "seed"))
    assert listed != list(recoloured_ids(captions, pictures.__getitem__, 3, "another"))

    read = recoloured_reader(lambda record_id, size: pictures[record_id])
    assert read("a", (SIDE, SIDE)) is pictures["a"]
    for record_id, own, caption in listed:
        assert (read(record_id, (SIDE, SIDE)) == recoloured(pictures[own], caption.split()[0])).all()


def test_the_colours_of_a_picture_are_read_from_one_look_at_it():
    looked: list[str] = []

    def otherwise(record_id: str, size: tuple[int, int]) -> np.ndarray:
        looked.append(record_id)
        return thing("#e02020")

    read = recoloured_reader(otherwise)
    pictures = [read(f"a#{colour}", (SIDE, SIDE)) for colour in ("blue", "green", "pink")]
    assert looked == ["a"]
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_reading_a_recoloured_picture_that_was_never_listed_is_a_clear_error():
    read = recoloured_reader(lambda record_id, size: np.full((SIDE, SIDE, 3), 255, dtype=np.uint8))
    with pytest.raises(ValueError, match="the picture empty cannot be recoloured"):
        read("empty#red", (SIDE, SIDE))
