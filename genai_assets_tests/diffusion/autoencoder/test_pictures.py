"""Pictures by number: from an array, a file, a function; from another process, too."""

import pickle

import numpy as np
import pytest

from genai_assets.diffusion.autoencoder.pictures import Pictures, write_pictures
from genai_assets_tests.diffusion.autoencoder.tiny_autoencoder import drawn_pictures
from genai_assets_tests.diffusion.drawings import drawn_picture


def test_an_array_and_a_file_give_the_same_pictures(tmp_path):
    array = drawn_pictures("train")
    np.save(tmp_path / "pictures.npy", array)
    numbers = np.array([3, 0, 3])
    assert len(Pictures.of_array(array)) == len(Pictures.of_file(tmp_path / "pictures.npy")) == len(array)
    assert np.array_equal(Pictures.of_array(array).take(numbers), array[numbers])
    assert np.array_equal(Pictures.of_file(tmp_path / "pictures.npy").take(numbers), array[numbers])


def test_a_file_goes_to_another_process_by_its_path_and_keeps_its_rows(tmp_path):
    array = drawn_pictures("train")
    np.save(tmp_path / "pictures.npy", array)
    message = pickle.dumps(Pictures.of_file(tmp_path / "pictures.npy", rows=[5, 2]))
    assert len(message) < array[0].nbytes
    sent = pickle.loads(message)
    assert len(sent) == 2 and np.array_equal(sent.take(np.array([1, 0])), array[[2, 5]])


def test_written_pictures_are_in_the_order_of_their_ids(tmp_path):
    pictures = write_pictures(tmp_path / "all.npy", drawn_picture, ["red-disc", "blue-square"], resolution=64)
    assert np.array_equal(pictures.take(np.array([1]))[0], drawn_picture("blue-square"))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 4, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)],
    ids=["type", "not square", "too many"],
)
def test_a_function_that_gives_something_else_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=r"must be uint8 \[1, S, S, 3\]"):
        Pictures(lambda numbers: wrong, 9).take(np.array([0]))
