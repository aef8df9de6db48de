"""The whole evaluation, on drawn pictures: flat is the house style, a blurred outlined one plays the base model."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from genai_assets.evaluation.evaluate import HeldOut, KnownPictures, evaluate
from genai_assets.evaluation.feature_index import FeatureTable
from genai_assets.evaluation.features import PictureProjection
from genai_assets.evaluation.promotion import Figures, decide
from genai_assets.evaluation.report import FIGURES
from genai_assets.settings import Settings
from genai_assets_tests.evaluation.drawings import CAPTIONS, draw_all

ASKED = list(range(0, 24, 2))
LEARNT = list(range(1, 24, 2))
TRICKY = (
    "<script>alert('caption')</script> & a very long caption that must be wrapped, and in the end cut, to fit the grid"
)


def _blurred(pictures: np.ndarray) -> np.ndarray:
    return np.stack([np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(3))) for picture in pictures])


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    captions = [TRICKY, *(CAPTIONS[index] for index in ASKED[1:])]
    return HeldOut(captions, captions, [f"{caption}, flat style" for caption in captions], draw_all()[ASKED])


@pytest.fixture(scope="module")
def known(picture_features) -> tuple[KnownPictures, KnownPictures]:
    training = [CAPTIONS[index] for index in LEARNT]
    house = KnownPictures(picture_features.extract(draw_all()[LEARNT]), training, training)
    vectors = np.concatenate([picture_features.extract(draw_all("outlined", shift)) for shift in (0, 2)])
    return house, KnownPictures(vectors, CAPTIONS * 2, CAPTIONS * 2)


@pytest.fixture(scope="module")
def report(tmp_path_factory, settings, held_out, known, picture_features, text_features):
    out = tmp_path_factory.mktemp("report")
    drawn = {"base": _blurred(draw_all("outlined"))[ASKED], "fine_tuned": draw_all(shift=1)[ASKED]}
    latency = {"fine_tuned": np.linspace(100, 200, len(ASKED)).tolist()}
    provenance = {"model_version": "abc123", "fine_tune": {"steps": 40, "seed": 0}, "guidance_scale": 3.0}
    result = evaluate(
        drawn, held_out, *known, settings=settings, out=out, latency_ms=latency, provenance=provenance,
        picture_features=picture_features, text_features=text_features,
    )  # fmt: skip
    return out, result


def test_the_model_that_draws_in_the_house_style_scores_better_in_every_figure(report):
    models = report[1]["models"]
    base, tuned, real = models["base"], models["fine_tuned"], models["real"]
    assert tuned["kid"] < base["kid"]
    assert tuned["recall_at_5"] > base["recall_at_5"]
    assert tuned["style_score"] > base["style_score"]
    assert tuned["distance_to_real"] < base["distance_to_real"]
    assert real["distance_to_real"] == pytest.approx(0, abs=1e-6)
    assert tuned["pictures_vary"] and tuned["pictures_are_not_blank"]
    assert tuned["latency_ms"] == 150 and "latency_ms" not in base
    assert report[1]["kid_difference"]["base"]["mean"] == pytest.approx(tuned["kid"] - base["kid"])


def test_the_gate_reads_what_was_written(report, settings):
    out, result = report
    written = json.loads((out / "metrics.json").read_text())
    assert written == result
    assert decide(Figures.from_metrics(written), None, settings.promotion).promote
    assert not decide(Figures.from_metrics(written, "base"), Figures.from_metrics(written), settings.promotion).promote


def test_the_report_is_one_file_that_tells_every_figure_and_escapes_captions(report):
    html = (report[0] / "report.html").read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    addresses = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(addresses) == 3 * len(ASKED) and all(at.startswith("data:image/png;base64,") for at in addresses)
    assert "http" not in html
    assert all(figure.name in html for figure in FIGURES)
    assert "abc123" in html and "fine tune: steps" in html
    assert "prefers-color-scheme: dark" in html


def test_the_grid_shows_every_concept_asked_for(report):
    with Image.open(report[0] / "grid.png") as grid:
        assert grid.format == "PNG" and grid.width > 1000 and grid.height > 4 * 112


def test_the_reference_for_drift_has_a_row_a_picture(report, held_out):
    reference = pd.read_parquet(report[0] / "reference.parquet")
    assert reference["prompt"].tolist() == list(held_out.captions), "as people type them, without the style"
    axes = [f"pic_{number}" for number in range(8)]
    assert list(reference) == ["prompt", "latency_ms", "brightness", "saturation", "contrast", *axes]
    assert np.isfinite(reference[axes].to_numpy()).all()
    assert PictureProjection.load(report[0] / "pca.npz").axes.shape == (8, 1280)


def test_every_concept_of_every_model_has_a_row(report):
    rows = pd.read_parquet(report[0] / "pictures.parquet")
    assert len(rows) == 3 * len(ASKED)
    assert rows["rank"].between(1, len(ASKED)).all()
    assert set(rows["nearest_training"]) <= {CAPTIONS[index] for index in LEARNT}


def test_the_same_evaluation_writes_the_same_files(
    report, tmp_path, settings, held_out, known, picture_features, text_features
):
    drawn = {"base": _blurred(draw_all("outlined"))[ASKED], "fine_tuned": draw_all(shift=1)[ASKED]}
    again = evaluate(
        drawn, held_out, *known, settings=settings, out=tmp_path,
        picture_features=picture_features, text_features=text_features,
    )  # fmt: skip
    first = {name: {k: v for k, v in of.items() if k != "latency_ms"} for name, of in report[1]["models"].items()}
    assert again["models"] == first and again["measured_on"] == report[1]["measured_on"]
    assert (tmp_path / "grid.png").read_bytes() == (report[0] / "grid.png").read_bytes()


def test_with_one_style_only_the_proxy_learns_from_training_and_a_collapsed_model_is_broken(
    tmp_path, settings, held_out, known, picture_features, text_features
):
    drawn = {"fine_tuned": np.full_like(held_out.pictures, 255)}
    result = evaluate(
        drawn, held_out, known[0], None, settings=settings, out=tmp_path,
        picture_features=picture_features, text_features=text_features,
    )  # fmt: skip
    assert result["proxy_taught_on"] == "training split"
    figures = result["models"]["fine_tuned"]
    assert figures["style_score"] is None and figures["variety"] == pytest.approx(0, abs=1e-6)
    assert decide(Figures.from_metrics(result), None, settings.promotion).broken


def test_a_copying_model_is_broken(tmp_path, settings, held_out, known, picture_features, text_features):
    result = evaluate(
        {"fine_tuned": draw_all()[LEARNT]}, held_out, *known, settings=settings, out=tmp_path,
        picture_features=picture_features, text_features=text_features,
    )  # fmt: skip
    assert result["models"]["fine_tuned"]["copied_share"] == 1
    assert "nearly copy" in decide(Figures.from_metrics(result), None, settings.promotion).reason


@pytest.mark.parametrize(
    ("drawn", "latency", "message"),
    [
        ({"base": draw_all()[ASKED]}, {}, "no pictures of the reference model 'fine_tuned'"),
        ({"fine_tuned": draw_all()[:3]}, {}, "pictures of fine_tuned are .3, 48, 48, 3., the real ones .12"),
        ({"fine_tuned": draw_all()[ASKED].astype(np.float32)}, {}, "pictures of fine_tuned must be uint8"),
        ({"fine_tuned": draw_all()[ASKED], "real": draw_all()[ASKED]}, {}, "'real' is the name"),
        ({"fine_tuned": draw_all()[ASKED]}, {"fine_tuned": [1.0]}, "one number for each of its 12"),
    ],
)
def test_what_does_not_fit_together_is_named_and_nothing_is_written(
    tmp_path, settings, held_out, known, drawn, latency, message
):
    with pytest.raises(ValueError, match=message):
        evaluate(drawn, held_out, *known, settings=settings, out=tmp_path, latency_ms=latency)
    assert not list(tmp_path.iterdir())


def test_features_of_pictures_of_another_size_are_refused(tmp_path, settings, held_out, known):
    enlarged = replace(known[0], resolution=64)
    with pytest.raises(ValueError, match=r"features were computed of pictures at 64 px, but pictures are drawn at 48"):
        evaluate({"fine_tuned": draw_all()[ASKED]}, held_out, enlarged, None, settings=settings, out=tmp_path)


def test_known_pictures_are_those_of_the_artifact(known):
    vectors = known[0].vectors[:2].astype(np.float16)
    table = FeatureTable("v", 48, ["a", "b"], vectors, ["red bar"], np.eye(1, 384, dtype=np.float16))
    rows = pd.DataFrame({"id": ["b", "c"], "caption": ["red bar", "left out"]})
    found = KnownPictures.from_rows(rows, table)
    assert found.captions == ["red bar"] and found.resolution == 48
    np.testing.assert_array_equal(found.vectors, vectors[1:].astype(np.float32))
    assert found.caption_vectors is not None and found.caption_vectors.shape == (1, 384)


def test_too_few_concepts_are_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"3 held-out concepts are too few.*splits.held_out_share"):
        HeldOut(["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"], draw_all()[:3])
