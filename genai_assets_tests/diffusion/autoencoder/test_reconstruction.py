"""Rendering and measuring: PSNR by hand, halves that never meet their twins, and a sheet."""

import numpy as np
import pytest
import torch
from PIL import Image

from genai_assets.diffusion.autoencoder.pictures import to_model_range, to_pixels
from genai_assets.diffusion.autoencoder.reconstruction import distance_of_halves, psnr, reconstruct, save_sheet
from genai_assets_tests.diffusion.autoencoder.tiny_autoencoder import SIDE, drawn_pictures, tiny_autoencoder

CPU = torch.device("cpu")


def test_psnr_is_as_computed_by_hand_and_each_pictures_own():
    originals = np.full((3, 4, 4, 3), 100, np.uint8)
    others = originals.copy()
    others[1] += 10
    others[2] -= 1  # uint8 must not wrap round
    assert psnr(originals, others)[1:] == pytest.approx([10 * np.log10(255**2 / 100), 20 * np.log10(255)])


def test_psnr_of_equal_pictures_is_that_of_one_value_off_by_one():
    originals = np.full((1, 4, 4, 3), 100, np.uint8)
    nearly = originals.copy()
    nearly[0, 0, 0, 0] += 1
    assert psnr(originals, originals)[0] == psnr(originals, nearly)[0]


def test_pixels_survive_the_way_to_the_models_range_and_back():
    values = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    model = to_model_range(values)
    assert model.min() == -1 and model.max() == 1
    assert np.array_equal(to_pixels(model), values)
    assert to_pixels(torch.tensor([-5.0, 5.0]).view(2, 1, 1, 1)).flatten().tolist() == [0, 255]


def test_reconstructions_are_what_the_stock_autoencoder_gives():
    autoencoder, pictures = tiny_autoencoder().eval(), drawn_pictures("train")
    with torch.inference_mode():
        stock = autoencoder(to_model_range(pictures)).sample
    found = reconstruct(autoencoder, pictures, CPU)
    assert found.shape == pictures.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - to_pixels(stock)).max() <= 1, "batches of another size may round differently"


def test_an_autoencoder_that_renders_what_is_not_a_number_is_noticed():
    autoencoder = tiny_autoencoder()
    with torch.no_grad():
        autoencoder.decoder.conv_out.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        reconstruct(autoencoder, drawn_pictures("validation"), CPU)


def test_no_picture_is_compared_with_its_own_reconstruction():
    originals = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    meetings: list[set[int]] = []

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        assert not set(one.flatten()) & set(other.flatten() - 100)
        meetings.append(set(one.flatten()))
        return float(len(one))

    assert distance_of_halves(originals, originals + 100, distance) == 3.5
    assert set.union(*meetings) == set(range(7))


def test_the_sheet_shows_each_picture_in_its_column_enlarged(tmp_path):
    pictures = drawn_pictures("train")[:2]
    save_sheet(tmp_path / "sheet.png", [("original", pictures), ("after", 255 - pictures)])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    cell = 128
    assert sheet.shape[1] == 2 * cell
    body = sheet[-2 * cell :][:: cell // SIDE, :: cell // SIDE]
    assert np.array_equal(body[:SIDE, :SIDE], pictures[0])
    assert np.array_equal(body[SIDE:, SIDE:], 255 - pictures[1])
    assert sheet[: -2 * cell].min() < 100, "the columns have names"
