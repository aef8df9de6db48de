"""A tiny random PRX model and a real `bentoml serve` of it, started once for the tests of HTTP and of the page.

A pytest plugin (``pytest_plugins = ["genai_assets_tests.serving.tiny_service"]``), so that all modules share one.
PYTEST_DONT_REWRITE: the first module that names it has imported it already; there are no assertions here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from genai_assets.diffusion.base_model import new_pipeline
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.serving.client import ServiceClient
from genai_assets.serving.packaging import running_service
from genai_assets.serving.request_log import RequestLog
from genai_assets.settings import SamplingSettings, ServingSettings, Settings

TINY = DenoiserConfig(
    patch_size=8, hidden_size=64, mlp_ratio=2, num_heads=2, depth=1, axes_dim=(16, 16), bottleneck_size=32
)
VERSION = "tiny-0123456789abcdef"


@dataclass
class Service:
    """A running service: where it listens, and what it works with."""

    url: str
    settings: Settings

    def client(self) -> ServiceClient:
        return ServiceClient(self.url)

    def log(self) -> RequestLog:
        return RequestLog(self.settings.database_url)


def make_settings(home: Path, *, steps: int = 2, **serving) -> Settings:
    return Settings(
        home=home,
        device="cpu",
        sampling=SamplingSettings(steps=steps, guidance_scale=2.0),
        serving=ServingSettings(**serving),
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    pipeline = new_pipeline(TINY, resolution=64, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a new denoiser's gates are zero: without this every prompt gives the same picture
        for weight in pipeline.transformer.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    pipeline.save_pretrained(folder)
    facts = {
        "model_version": VERSION,
        "style": "fluent",
        "prompt_template": "{caption}, {style} style",
        "resolution": 64,
    }
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def service(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = make_settings(tmp_path_factory.mktemp("served"), max_waiting=1)
    with running_service(model_folder, settings) as url:
        yield Service(url, settings)
