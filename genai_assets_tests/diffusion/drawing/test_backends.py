"""Every backend draws the same pictures, nearly; the choice among them is what the setting says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genai_assets.diffusion import sampling
from genai_assets.diffusion.drawing import backends
from genai_assets.diffusion.drawing.backends import BackendUnavailable, Eager, choose_backend
from genai_assets.diffusion.drawing.parity import psnr
from genai_assets_tests.diffusion.families import tiny_transformer, tiny_unet

needs_openvino = pytest.mark.skipif(
    backends.openvino_unavailable(torch.device("cpu")) is not None, reason="there is no OpenVINO here"
)
PROMPTS = ["red disc, plain style", "a blue square", ""]


def draw(drawer: sampling.Drawer, prompts: list[str] = PROMPTS, steps: int = 3, guidance_scale: float = 3.0) -> Any:
    seeds = range(5, 5 + len(prompts))
    return drawer.draw(prompts, seeds=seeds, steps=steps, guidance_scale=guidance_scale)


@pytest.fixture(scope="module")
def exact(tiny_base) -> Any:
    return draw(sampling.load(tiny_base, exact=True))


@pytest.fixture(scope="module")
def cache(tiny_base, tmp_path_factory) -> Path:
    """Code for one picture and for four."""
    folder = tmp_path_factory.mktemp("converted")
    if not backends.openvino_unavailable(torch.device("cpu")):
        sampling.load(tiny_base, backend="openvino", cache=folder).make_ready(4, guidance_scale=3.0)
    return folder


@needs_openvino
def test_openvino_is_as_near_to_fp32_as_eager_bf16_is(tiny_base, exact, cache):
    drawer = sampling.load(tiny_base, backend="openvino", cache=cache)
    near = psnr(draw(drawer), exact)
    assert drawer.computes in ("OpenVINO bf16", "OpenVINO fp32")
    assert near > psnr(draw(sampling.load(tiny_base, backend="eager")), exact) - 6
    assert near > 30


@needs_openvino
def test_a_converted_picture_does_not_depend_on_what_fills_its_batch(tiny_base, cache):
    drawer = sampling.load(tiny_base, backend="openvino", cache=cache)
    alone = draw(drawer, PROMPTS[:1])
    in_company = draw(drawer, PROMPTS)
    assert psnr(alone, in_company[:1]) > 40


@needs_openvino
def test_a_small_job_does_not_wait_for_a_conversion_and_a_long_one_does(tiny_base, monkeypatch):
    drawer = sampling.load(tiny_base, backend="auto")
    draw(drawer, PROMPTS[:1])
    assert drawer.computes == "eager bf16"
    monkeypatch.setattr(backends, "_REPAYS_AFTER_ROWS", 6)  # one picture, three steps, guidance
    draw(drawer, PROMPTS[:1])
    assert drawer.computes.startswith("OpenVINO")


@needs_openvino
def test_a_small_job_takes_what_was_converted_before(tiny_base, cache):
    drawer = sampling.load(tiny_base, backend="auto", cache=cache)
    draw(drawer, PROMPTS[:1])
    assert drawer.computes.startswith("OpenVINO")


@needs_openvino
def test_a_pipeline_is_left_as_it_was(tiny_base, cache):
    drawer = sampling.load(tiny_base, backend="openvino", cache=cache)
    draw(drawer)
    denoiser = drawer.family.denoiser
    assert "forward" not in vars(denoiser)
    assert denoiser.forward.__func__ is type(denoiser).forward


@needs_openvino
def test_where_nothing_can_be_written_a_conversion_serves_its_process_and_is_told_once(tiny_base, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder can be made below this")
    drawer = sampling.load(tiny_base, backend="auto", cache=tmp_path / "file" / "converted")
    drawer.make_ready(4, guidance_scale=3.0)
    draw(drawer)
    assert drawer.computes.startswith("OpenVINO")
    (told,) = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert str(tmp_path / "file" / "converted") in told


@needs_openvino
def test_a_file_that_may_only_be_read_is_used_and_not_called_damaged(tiny_base, cache, monkeypatch, caplog):
    def forbidden(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "touch", forbidden)  # the tests' own account may touch everything
    drawer = sampling.load(tiny_base, backend="auto", cache=cache)
    draw(drawer, PROMPTS[:1])
    assert drawer.computes.startswith("OpenVINO")
    assert not caplog.records


STOCK = {
    "Stable Diffusion": tiny_unet.save_stable_diffusion,
    "Flux": tiny_transformer.save_flux,
}


@needs_openvino
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("kind", STOCK)
def test_stock_pipelines_draw_with_a_converted_denoiser(kind, tmp_path):
    STOCK[kind](tmp_path / "model")
    pictures = {}
    for backend in ("eager", "openvino"):
        drawer = sampling.load(tmp_path / "model", backend=backend, resolution=32)
        pictures[backend] = draw(drawer, ["an owl"], steps=2, guidance_scale=1.0)
    assert drawer.computes.startswith("OpenVINO")
    assert psnr(pictures["openvino"], pictures["eager"]) > 25


@needs_openvino
def test_a_denoiser_that_cannot_be_converted_is_told_once_and_drawn_eagerly_or_refused_by_name(tmp_path, caplog):
    """Z-Image's positions are complex numbers, which OpenVINO does not convert."""
    tiny_transformer.save_z_image(tmp_path / "model")
    by_itself = sampling.load(tmp_path / "model", backend="auto", resolution=32)
    by_itself.make_ready(1, guidance_scale=1.0)
    assert len(draw(by_itself, ["an owl"], steps=1, guidance_scale=1.0)) == 1
    assert by_itself.computes == "eager bf16"
    (told,) = [record.getMessage() for record in caplog.records if "eager" in record.getMessage()]
    assert "ZImageTransformer2DModel cannot be converted" in told
    by_name = sampling.load(tmp_path / "model", backend="openvino", resolution=32)
    with pytest.raises(BackendUnavailable, match=r"ZImageTransformer2DModel cannot be converted.*set it to 'auto'"):
        draw(by_name, ["an owl"], steps=1, guidance_scale=1.0)


@pytest.fixture
def no_openvino(monkeypatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda _name: None)


@pytest.mark.usefixtures("no_openvino")
def test_where_openvino_is_missing_auto_is_eager_and_its_name_is_a_clear_error(tiny_pipeline):
    assert isinstance(choose_backend("auto", tiny_pipeline.transformer), Eager)
    with pytest.raises(BackendUnavailable, match="OpenVINO is not installed"):
        choose_backend("openvino", tiny_pipeline.transformer)


def test_with_one_core_openvino_is_left_alone(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(backends, "cores", lambda: 1)
    assert isinstance(choose_backend("auto", tiny_pipeline.transformer), Eager)


class OnCuda:
    """What the choice looks at of a denoiser on a GPU."""

    device, dtype = torch.device("cuda"), torch.bfloat16


def test_on_cuda_auto_is_eager_and_openvino_a_clear_error():
    assert isinstance(choose_backend("auto", OnCuda()), Eager)
    with pytest.raises(BackendUnavailable, match="OpenVINO"):
        choose_backend("openvino", OnCuda())


def test_exact_is_eager_fp32_whatever_the_backend(tiny_base):
    drawer = sampling.load(tiny_base, exact=True, backend="openvino")
    assert drawer.computes == "eager fp32"


def test_compiled_without_a_compiler_is_a_clear_error(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(backends, "can_compile", lambda: False)
    with pytest.raises(BackendUnavailable, match="no C\\+\\+ compiler"):
        choose_backend("compiled", tiny_pipeline.transformer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.skipif(not backends.can_compile(), reason="there is no compiler here")
def test_compiled_is_as_near_to_fp32_as_eager_bf16_is(tiny_base, exact):
    drawer = sampling.load(tiny_base, backend="compiled")
    assert psnr(draw(drawer), exact) > psnr(draw(sampling.load(tiny_base, backend="eager")), exact) - 6
    assert drawer.computes == "torch.compile bf16"
