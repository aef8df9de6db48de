"""A tiny random PRX model and a real `bentoml serve` of it, started once for the tests of HTTP and of the page.

A pytest plugin (``pytest_plugins = ["genai_assets_tests.serving.tiny_service"]``), so that all modules share one.
PYTEST_DONT_REWRITE: the first module that names it has imported it already; there are no assertions here.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.serving.client import ServiceClient
from genai_assets.serving.packaging import running_service
from genai_assets.serving.request_log import RequestLog
from genai_assets.settings import SamplingSettings, ServingSettings, Settings
from genai_assets_tests.tiny_pipeline import save_tiny_pipeline

TINY = DenoiserConfig(
    patch_size=8, hidden_size=64, mlp_ratio=2, num_heads=2, depth=1, axes_dim=(16, 16), bottleneck_size=32
)
VERSION = "tiny-0123456789abcdef"
STUDENT = "student-0123456789abcdef"


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
        sampling=SamplingSettings(steps=steps, guidance_scale=2.0, backend="eager"),  # HTTP is tested, not backends
        serving=ServingSettings(**serving),
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny_pipeline(folder, TINY)
    facts = {
        "model_version": VERSION,
        "style": "fluent",
        "prompt_template": "{caption}, {style} style",
        "resolution": 64,
    }
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def student_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as its own few-step student, to be drawn in one step."""
    folder = tmp_path_factory.mktemp("tiny") / "student"
    shutil.copytree(model_folder, folder)
    facts = json.loads((model_folder / "model.json").read_text())
    told = {"model_version": STUDENT, "sampling": {"steps": 1, "guidance_scale": 1.0}}
    (folder / "model.json").write_text(json.dumps(facts | told))
    return folder


@pytest.fixture(scope="session")
def service(model_folder: Path, student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = make_settings(tmp_path_factory.mktemp("served"), max_waiting=1)
    with running_service(model_folder, settings, few_steps=student_folder) as url:
        yield Service(url, settings)
