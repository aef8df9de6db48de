"""Making a base: what it learns from, and where it begins."""

import io
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from genai_assets.diffusion import pretraining
from genai_assets.diffusion.base_model import BaseModelError, load_pipeline
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.diffusion.families import family_of
from genai_assets.diffusion.pretraining import pretrain, pretraining_config, trains_eagerly, with_recoloured
from genai_assets.diffusion.training import StepReport
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache
from genai_assets.settings import Settings
from genai_assets_tests.datasets.test_sources import close_batch
from genai_assets_tests.diffusion.drawings import drawn_picture

RED = np.full((16, 16, 3), 255, dtype=np.uint8)
RED[4:12, 4:12] = (220, 30, 30)


def test_things_of_any_colour_are_learnt_in_four_more_named_in_their_captions():
    rows = pd.DataFrame(
        [
            {"id": "cat", "caption": "cat", "category": "animals-nature", "variant": False},
            {"id": "face", "caption": "grinning face", "category": "smileys-emotion", "variant": False},
            {"id": "apple", "caption": "red apple", "category": "food-drink", "variant": False},
            {"id": "hand", "caption": "hand with ball", "category": "activities", "variant": True},
            {
                "id": "cat",
                "caption": "cat",
                "category": "animals-nature",
                "variant": False,
            },  # the same in another style
        ]
    )
    rows["keywords"] = [["fur"], [], [], [], []]
    made = with_recoloured(rows, lambda record_id, size: RED, 16)
    assert made.iloc[:5]["id"].tolist() == rows["id"].tolist()
    new = made.iloc[5:]
    assert len(new) == 4 == new["id"].nunique()
    assert new["caption"].str.fullmatch(r"\w+ cat").all()
    assert new["caption"].nunique() == 4
    assert (new["category"] == "animals-nature").all()
    assert new["variant"].all()
    assert new["keywords"].tolist() == [[]] * 4


def test_a_base_never_learns_what_people_liked_of_the_house_style(tmp_path: Path, package_cache: Path, monkeypatch):
    monkeypatch.setattr(pretraining, "PRETRAINING_SETS", ("streamline-emojis",))
    package_cache.mkdir(parents=True, exist_ok=True)
    home = tmp_path / "home"
    home.mkdir()
    (home / "packages").symlink_to(package_cache)
    settings = Settings(home=home, dataset={"limit": 4, "background": "#000000"})  # type: ignore[arg-type]
    liked = io.BytesIO()
    Image.fromarray(RED).resize((64, 64)).save(liked, format="PNG")
    close_batch(settings, "batch.parquet", liked.getvalue())
    rows = TrainingCache.open(pretraining.pretraining_cache(settings).path).rows
    assert set(rows["style"]) == {"streamline"}
    assert len(rows) >= 4
    assert pretraining.pretraining_cache(settings).reused


@pytest.fixture
def settings(rows, tiny_pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """With the drawn pictures in the place of thousands of icons."""
    folder = tmp_path / "cache"
    folder.mkdir()
    build_training_cache(
        rows.assign(category=["objects"] * (len(rows) - 1) + ["flags"]),
        lambda record_id, size: drawn_picture(record_id),
        family_of(tiny_pipeline),
        folder,
        resolution=64,
        prompt_template="{caption}, {style} style",
    )
    monkeypatch.setattr(
        pretraining, "pretraining_cache", lambda *_, **__: SimpleNamespace(path=folder, data_version="1")
    )
    return Settings(home=tmp_path / "home", device="cpu")


def test_a_run_can_begin_with_another_base(settings, tiny_base):
    config = pretraining_config(steps=2, batch_size=2).model_copy(update={"validate_every": 0})
    pipeline, result = pretrain(settings, DenoiserConfig(), config, start=tiny_base, compiled=False)
    assert result.steps == 2
    before = load_pipeline(tiny_base).transformer.state_dict()
    after = pipeline.transformer.state_dict()
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert moved, "it learnt"
    assert max((after[name] - before[name]).abs().max().item() for name in moved) < 0.02, "from there"


def test_a_base_that_the_icons_do_not_fit_is_refused_before_they_are_read(settings, tiny_base, tmp_path: Path):
    def changed(name: str, file: str, **values: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_base, folder)
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
        return folder

    other_family = changed("family", "model_index.json", _class_name="StableDiffusionPipeline")
    larger = changed("larger", "model_index.json", default_sample_size=128)
    other_words = changed("words", "model_index.json")
    encoder = AutoModel.from_pretrained(other_words / "text_encoder")
    encoder.embeddings.word_embeddings.weight.data += 1
    encoder.save_pretrained(other_words / "text_encoder")
    config = pretraining_config(steps=1, batch_size=2)
    for start, said in ((other_family, "is a StableDiffusion"), (larger, "128 pixels"), (other_words, "than MiniLM")):
        with pytest.raises(BaseModelError, match=said):
            pretrain(settings, DenoiserConfig(), config, start=start, compiled=False)


def test_a_run_from_nothing_does_not_go_on_from_one_that_began_with_a_base(settings, tiny_base):
    tiny = DenoiserConfig(hidden_size=64, depth=2, num_heads=2, axes_dim=(16, 16), bottleneck_size=16)
    config = pretraining_config(steps=1, batch_size=2).model_copy(update={"validate_every": 0})
    pretrain(settings, tiny, config, start=tiny_base, compiled=False)
    pipeline, result = pretrain(settings, tiny, config, compiled=False)
    assert result.steps == 1
    assert len(pipeline.transformer.blocks) == 2


def test_a_run_goes_on_from_its_own_checkpoints_and_begins_with_another_base_anew(settings, tiny_base, tmp_path: Path):
    config = pretraining_config(steps=2, batch_size=2).model_copy(update={"validate_every": 0})
    done: list[int] = []

    def run(start: Path, steps: int) -> object:
        wanted = config.model_copy(update={"steps": steps})
        pipeline, _ = pretrain(
            settings,
            DenoiserConfig(),
            wanted,
            start=start,
            compiled=False,
            on_step=lambda report: done.append(report.step),
        )
        return pipeline

    run(tiny_base, 2).save_pretrained(tmp_path / "further")  # type: ignore[attr-defined]
    run(tiny_base, 3)
    run(tmp_path / "further", 2)
    assert done == [1, 2, 3, 1, 2]


def test_a_second_run_of_the_same_base_waits_and_takes_what_the_first_trained(settings, tiny_base):
    config = pretraining_config(steps=2, batch_size=2).model_copy(update={"validate_every": 0})
    done: list[tuple[str, int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def run(name: str) -> None:
        def on_step(report: StepReport) -> None:
            done.append((name, report.step))
            begun.set()
            go_on.wait(30)

        pretrain(settings, DenoiserConfig(), config, start=tiny_base, compiled=False, on_step=on_step)

    first, second = (threading.Thread(target=run, args=(name,)) for name in ("first", "second"))
    first.start()
    assert begun.wait(30)
    second.start()
    second.join(1)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert not second.is_alive()
    assert done == [("first", 1), ("first", 2)]
    assert not list(settings.paths.checkpoints.glob(".*.turn"))


def test_a_machine_without_a_compiler_trains_eagerly(settings, monkeypatch):
    monkeypatch.setattr(pretraining, "can_compile", lambda: False)
    assert trains_eagerly(settings)
    monkeypatch.setattr(pretraining, "can_compile", lambda: True)
    assert not trains_eagerly(settings)
