"""A converted denoiser computes what the eager one does, and its kept code is found again, whole or not at all."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genai_assets.diffusion.drawing import openvino_denoiser
from genai_assets.diffusion.drawing.openvino_denoiser import ConversionFailed, ConvertedDenoiser

pytest.importorskip("openvino")

LEVELS = [0.999, 0.873, 0.4, 0.03]


def call(rows: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)
    mask = torch.ones(rows, 20, dtype=torch.bool)
    mask[:, 7:] = False
    return {
        "hidden_states": torch.randn(rows, 3, 64, 64, generator=generator),
        "timestep": torch.tensor(LEVELS)[:rows],
        "encoder_hidden_states": torch.randn(rows, 20, 384, generator=generator),
        "attention_mask": mask,
        "return_dict": False,
    }


@pytest.fixture
def denoiser(tiny_pipeline) -> Any:
    return tiny_pipeline.transformer.eval()


def computed(converted: ConvertedDenoiser, arguments: dict[str, Any]) -> Tensor:
    runner = converted.runner((), arguments, convert=True)
    assert runner is not None
    return runner((), arguments)[0]


@pytest.fixture(scope="module")
def filled(tiny_pipeline, tmp_path_factory) -> Path:
    """A cache with the code of one call."""
    folder = tmp_path_factory.mktemp("converted")
    computed(ConvertedDenoiser(tiny_pipeline.transformer.eval(), folder), call())
    return folder


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_it_computes_what_eager_torch_does_at_every_noise_level(denoiser, filled):
    with torch.no_grad():
        exact = denoiser(**call())[0]
    found = computed(ConvertedDenoiser(denoiser, filled), call())
    assert found.dtype == exact.dtype
    for row in range(len(LEVELS)):
        assert (found - exact)[row].norm() / exact[row].norm() < 0.02


def test_sines_and_cosines_are_computed_apart_in_fp32(denoiser, monkeypatch):
    parts = {}
    compile_part = openvino_denoiser._compile

    def remember(model: Any, configs: Any, precision: str | None) -> bytes:
        kinds = {node.get_type_name() for node in model.get_ordered_ops()}
        parts[model.get_friendly_name()] = (kinds & {"Sin", "Cos", "MatMul"}, precision)
        return compile_part(model, configs, precision)

    monkeypatch.setattr(openvino_denoiser, "_compile", remember)
    computed(ConvertedDenoiser(denoiser), call(1))
    assert parts == {"waves": ({"Sin", "Cos"}, "fp32"), "rest": ({"MatMul"}, None)}


def test_code_is_read_from_the_cache_and_not_made_twice(denoiser, filled, monkeypatch):
    fresh = computed(ConvertedDenoiser(denoiser, filled), call())
    monkeypatch.setattr(ConvertedDenoiser, "_convert", lambda *_: pytest.fail("it was converted again"))
    assert torch.equal(computed(ConvertedDenoiser(denoiser, filled), call()), fresh)


def test_other_weights_are_never_served_by_the_code_of_before(denoiser, filled, tiny_pipeline):
    import copy

    other = copy.deepcopy(denoiser)
    with torch.no_grad():
        next(iter(other.parameters())).flatten()[0] += 1
    assert ConvertedDenoiser(other, filled).runner((), call(), convert=False) is None
    assert ConvertedDenoiser(denoiser, filled).runner((), call(), convert=False) is not None


def test_another_shape_flag_or_version_is_another_code(denoiser, filled, monkeypatch):
    assert ConvertedDenoiser(denoiser, filled).runner((), call(2), convert=False) is None
    flag = call() | {"return_dict": True}
    assert ConvertedDenoiser(denoiser, filled).runner((), flag, convert=False) is None
    import openvino

    monkeypatch.setattr(openvino, "__version__", "1999.1")
    assert ConvertedDenoiser(denoiser, filled).runner((), call(), convert=False) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_file_is_passed_over_and_written_anew(denoiser, filled, tmp_path, damage, caplog):
    whole = only_file(filled).read_bytes()
    place = tmp_path / only_file(filled).name
    broken = {"cut": whole[:-100], "changed": whole[:-100] + bytes(100), "emptied": b""}[damage]
    place.write_bytes(broken)
    assert ConvertedDenoiser(denoiser, tmp_path).runner((), call(), convert=False) is None
    assert "is damaged" in caplog.text


def test_a_writer_that_is_killed_leaves_no_file_that_is_read(denoiser, filled, tmp_path):
    place = tmp_path / only_file(filled).name
    program = (
        "import os, signal, sys; from pathlib import Path; import safetensors.numpy as numpy\n"
        "from genai_assets.diffusion.drawing import openvino_denoiser as here\n"
        "compiled = here._read(Path(sys.argv[1])); save = numpy.save_file\n"
        "def save_half(parts, path, metadata):\n"
        "    save(parts, path, metadata); os.truncate(path, 1000); os.kill(os.getpid(), signal.SIGKILL)\n"
        "numpy.save_file = save_half; here._write(compiled, Path(sys.argv[2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(only_file(filled)), str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not place.exists()
    assert ConvertedDenoiser(denoiser, tmp_path).runner((), call(), convert=False) is None


def test_two_writers_of_one_file_leave_a_whole_one(filled, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    compiled = openvino_denoiser._read(only_file(filled))
    assert compiled is not None
    place = tmp_path / "code.safetensors"
    with ThreadPoolExecutor(4) as writers:
        for written in [writers.submit(openvino_denoiser._keep, compiled, place) for _ in range(8)]:
            written.result()
            assert openvino_denoiser._read(place) == compiled
    assert only_file(tmp_path) == place


def test_the_oldest_files_go_when_the_cache_is_full(filled, tmp_path, monkeypatch):
    compiled = openvino_denoiser._read(only_file(filled))
    assert compiled is not None
    size = only_file(filled).stat().st_size
    monkeypatch.setattr(openvino_denoiser, "_MOST_BYTES", int(2.5 * size))
    for number in range(3):
        place = tmp_path / f"{number}.safetensors"
        openvino_denoiser._keep(compiled, place)
        os.utime(place, (number, number))
    openvino_denoiser._keep(compiled, tmp_path / "newest.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.safetensors", "newest.safetensors"]


def test_what_cannot_be_converted_is_a_clear_error():
    class Spectrum(torch.nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return torch.linalg.eigvalsh(value)

    with pytest.raises(ConversionFailed, match="Spectrum cannot be converted for OpenVINO"):
        ConvertedDenoiser(Spectrum()).runner((torch.eye(3),), {}, convert=True)
    with pytest.raises(ConversionFailed, match=r"called with a .*Path"):
        ConvertedDenoiser(Spectrum()).runner((Path(),), {}, convert=True)


def test_one_thread_does_not_end_the_process():
    """A gated feed-forward layer whose width is a multiple of 256, in a process of its own: it might be killed."""
    program = (
        "import torch; torch.set_num_threads(1)\n"
        "from genai_assets.diffusion.base_model import new_pipeline\n"
        "from genai_assets.diffusion.config import DenoiserConfig\n"
        "from genai_assets.diffusion.sampling import Drawer\n"
        "pipeline = new_pipeline(DenoiserConfig(depth=1), resolution=64, seed=0)\n"
        "drawer = Drawer(pipeline, torch.device('cpu'), dtype=torch.bfloat16, backend='openvino')\n"
        "drawer.draw(['a cat'], seeds=[1], steps=1, guidance_scale=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_converting_leaves_the_root_logger_alone(denoiser):
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    computed(ConvertedDenoiser(denoiser), call(1))
    assert (root.level, root.filters, root.handlers) == before


def test_converting_makes_no_telemetry(tiny_base, tmp_path):
    program = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse\n"
        "from pathlib import Path\n"
        "from genai_assets.diffusion import sampling\n"
        "drawer = sampling.load(Path(sys.argv[1]), backend='openvino')\n"
        "drawer.draw(['a cat'], seeds=[1], steps=1, guidance_scale=1)\n"
        "assert drawer.computes.startswith('OpenVINO'), drawer.computes\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "assert used.tm.__name__ == 'openvino.tools.ovc.telemetry_stub', used.tm\n"
        "loaded = [name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module]\n"
        "assert not loaded, loaded\n"
        "assert not list(Path.home().iterdir()), list(Path.home().iterdir())\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_base)],
        env=os.environ | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
