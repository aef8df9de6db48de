"""Aspect-ratio buckets: few sizes of about the same cost, and the nearest shape for every picture."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genai_assets.datasets.decoding import to_square
from genai_assets.diffusion.aspect_buckets import LONGEST_RATIO, bucket_sizes, choose_bucket, to_bucket

multiples = st.sampled_from([4, 8, 16, 32, 64])
resolutions = st.integers(1, 16)


@given(steps=resolutions, multiple=multiples)
def test_sides_are_multiples_and_no_bucket_has_more_pixels_than_the_square(steps, multiple):
    resolution = steps * multiple
    sizes = bucket_sizes(resolution, multiple)
    assert sizes[0] == (resolution, resolution) and len(set(sizes)) == len(sizes) <= 16
    for height, width in sizes:
        assert height % multiple == width % multiple == 0 < height * width <= resolution**2
        assert max(height, width) <= LONGEST_RATIO * min(height, width)
        assert (width, height) in sizes and height * width >= 0.75 * resolution**2


def test_the_buckets_of_a_common_resolution():
    tall = [(576, 448), (640, 320), (640, 384)]
    assert set(bucket_sizes(512, 8)) == {(512, 512), *tall, *((width, height) for height, width in tall)}


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_a_picture_goes_to_the_nearest_shape_and_turned_to_the_turned_one(width, height):
    chosen = choose_bucket(width, height, 512, 8)

    def off(size: tuple[int, int]) -> float:
        return abs(math.log(size[1] / size[0]) - math.log(width / height))

    assert off(chosen) == min(off(size) for size in bucket_sizes(512, 8))
    turned = choose_bucket(height, width, 512, 8)
    assert turned[0] * turned[1] == chosen[0] * chosen[1]


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(64, 64, (512, 512)), (30, 31, (512, 512)), (1500, 900, (384, 640))]
)
def test_known_pictures_and_their_buckets(width, height, expected):
    assert choose_bucket(width, height, 512, 8) == expected


def test_sizes_that_cannot_be_are_clear_errors():
    with pytest.raises(ValueError, match=r"the resolution 100 is no multiple of 16.*take 96"):
        bucket_sizes(100, 16)
    with pytest.raises(ValueError, match="has no shape"):
        choose_bucket(0, 5, 64, 8)


def test_a_square_bucket_pads_with_white_as_ever():
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    square = to_bucket(image, 32, 32)
    assert np.array_equal(square, to_square(image, 32))
    assert square[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_any_other_bucket_is_covered_and_cut_evenly(size):
    across = np.zeros((60, 90, 3), dtype=np.uint8)
    across[:, :, 0] = np.linspace(0, 200, 90)[None]
    across[:, :, 1] = np.linspace(0, 200, 60)[:, None]
    picture = to_bucket(Image.fromarray(across), *size)
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    assert picture[:, :, 2].max() == 0, "no white came in"
    for channel, axis in ((0, 1), (1, 0)):
        edge = np.moveaxis(picture[:, :, channel], axis, 0).astype(int)
        assert edge[0].mean() + edge[-1].mean() == pytest.approx(200, abs=3), "what is cut is cut on both sides"
