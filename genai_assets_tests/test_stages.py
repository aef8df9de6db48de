"""The stages on a team's own folder: what a user sees when the folder is good, half good, or no good at all."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image, ImageDraw

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.datasets.records import Record, read_manifest, to_frame
from genai_assets.datasets.sources.source import SourceUnreadable
from genai_assets.datasets.splits import SPLITS, training_rows
from genai_assets.diffusion.base_model import BaseModelError
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.diffusion.training_cache import TrainingCache
from genai_assets.registry.champion import ChampionPointer, ModelVersion
from genai_assets.settings import Settings
from genai_assets_tests.tiny_pipeline import save_tiny_pipeline

PICTURES = 12


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Twelve good pictures and a corrupt one, in a folder of the team's."""
    root = tmp_path_factory.mktemp("team")
    folder = root / "pictures"
    folder.mkdir()
    for number in range(PICTURES):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 20 + 3 * number, 50), fill=(20 * number, 90, 160))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"shape number {number}")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    (folder / "broken.txt").write_text("a broken file")
    return Settings(
        home=root / "home",
        dataset={"folder": folder, "house_style": "acme"},
        splits={"held_out_share": 0.45, "later_categories": []},
    )


def test_a_corrupt_picture_is_quarantined_as_undecodable_and_the_rest_goes_on(team: Settings):
    raw = stages.raw_data(team)
    validated = stages.validated_data(team, raw)
    assert raw.summary["records"] == PICTURES + 1
    assert validated.summary["kept"] == PICTURES
    quarantine = read_manifest(validated.file("quarantine.parquet"))
    assert quarantine["caption"].tolist() == ["a broken file"]
    assert quarantine["reason"].iloc[0].startswith("undecodable")
    assert Path(validated.summary["data_docs"]).is_file()


def test_nothing_is_worked_on_twice_and_a_new_picture_is_new_data(team: Settings):
    again = stages.raw_data(team)
    assert again.reused
    folder = team.dataset.folder
    assert folder is not None
    Image.new("RGB", (64, 64), "red").save(folder / "new.png")
    (folder / "new.txt").write_text("a red square")
    try:
        assert not stages.raw_data(team).reused
    finally:
        (folder / "new.png").unlink()
        (folder / "new.txt").unlink()


def test_an_empty_folder_is_one_clear_error_and_leaves_nothing_half_made(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    settings = Settings(home=tmp_path / "home", dataset={"folder": tmp_path / "empty"})
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        stages.raw_data(settings)
    assert not list(tmp_path.glob("home/artifacts/raw_data/*"))


def test_a_table_of_captions_without_captions_names_the_columns_it_has(tmp_path: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "one.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "one.png", "colour": "black"}) + "\n")
    settings = Settings(home=tmp_path / "home", dataset={"folder": folder})
    with pytest.raises(SourceUnreadable, match="colour"):
        stages.raw_data(settings)


def test_an_unknown_base_model_is_one_clear_error(tmp_path: Path):
    settings = Settings(home=tmp_path / "home", base_model=str(tmp_path / "nowhere"))
    with pytest.raises(BaseModelError, match="no such folder"):
        stages.base_model(settings)


def test_a_resolution_that_the_base_model_does_not_draw_is_told_before_any_work(tmp_path: Path):
    save_tiny_pipeline(tmp_path / "base", DenoiserConfig(hidden_size=64, depth=1, num_heads=1, patch_size=16))
    settings = Settings(home=tmp_path / "home", base_model=str(tmp_path / "base"), fine_tune={"resolution": 72})
    with pytest.raises(BaseModelError, match=r"multiples of 16 px, but fine_tune\.resolution is 72: leave it unset"):
        stages.base_model(settings)


def test_a_full_disk_is_an_error_that_leaves_no_half_artifact(team: Settings, tmp_path: Path, monkeypatch):
    import errno

    from genai_assets.datasets import ingestion

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = Settings(home=tmp_path / "home", dataset=team.dataset, splits=team.splits)
    monkeypatch.setattr(ingestion.records, "write_manifest", full)
    with pytest.raises(OSError, match="No space left"):
        stages.raw_data(settings)
    assert not list((tmp_path / "home" / "artifacts" / "raw_data").iterdir())


def _feedback_world() -> tuple[pd.DataFrame, pd.DataFrame, Settings]:
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def record(number: int, caption: str, source: str, concept: str) -> Record:
        return Record(
            id=f"{number:064x}",
            caption=caption,
            concept=concept,
            style="fluent",
            source=source,
            licence="MIT",
            width=64,
            height=64,
            added_at=start + timedelta(hours=number),
        )

    real = [record(number, f"thing {number}", "icons:fluent", f"c{number}") for number in range(20)]
    fed_back = [record(100 + number, f"wish {number}", "feedback", f"feedback:wish-{number}") for number in range(10)]
    leak = record(200, "Thing 0", "feedback", "feedback:thing-0")
    manifest = to_frame([*real, *fed_back, leak])
    table = manifest[["id", "caption"]].assign(split="train")
    table.loc[table["caption"] == "thing 0", "split"] = "held_out"
    table.loc[table["caption"] == "wish 1", "split"] = "held_out"
    return manifest, table, Settings(monitoring={"max_feedback_share": 0.2})


def test_feedback_is_trained_on_only_capped_and_never_shows_a_held_out_caption():
    manifest, table, settings = _feedback_world()
    rows = training_rows(manifest, table, settings)
    fed_back = rows[rows["source"] == "feedback"]
    assert set(fed_back["split"]) == {"train"}
    assert "Thing 0" not in set(rows["caption"])
    assert "thing 0" not in set(rows["caption"])
    assert len(fed_back) == 4  # a fifth of all: 19 real ones and 4
    assert fed_back["caption"].tolist() == [f"wish {number}" for number in range(4)]  # the earliest
    assert set(rows["split"]) <= set(SPLITS)


def test_an_evaluation_that_does_not_know_the_champion_promotes_nothing_and_says_so(tmp_path: Path):
    settings = Settings(home=tmp_path / "home")
    model = tmp_path / "model"
    model.mkdir()
    with ChampionPointer(settings.database_url) as pointer:
        pointer.promote(ModelVersion("m-new", model), expected_revision=0, reason="it is there")
    figures = {"kid": 0.1, "recall_at_1": 0.5, "recall_at_5": 0.9, "copied_share": 0.0}
    sound = {"pictures_are_not_blank": True, "pictures_vary": True, "kid_standard_error": 0.01}
    report = stages.artifact_store(settings).build(
        "eval_report",
        {"champion": None},
        lambda out: (
            (out / "metrics.json").write_text(json.dumps({"models": {"fine_tuned": figures | sound}})),
            {"model_version": "m-challenger"},
        )[1],
    )
    decision = stages.gate(settings, report)
    assert not decision.promote
    assert not decision.broken
    assert "m-new" in decision.reason


def test_the_newest_raw_data_is_that_of_the_highest_number_whatever_a_copy_made_of_the_times(tmp_path: Path):
    settings = Settings(home=tmp_path / "home")
    assert stages.newest_raw_data(settings) is None
    store = stages.artifact_store(settings)
    for number in (3, 1, 2):  # in this order they reached the copy
        store.build("raw_data", {"number": number}, lambda out, n=number: {"number": n, "batch": f"batch {n}"})
    newest, found = store.newest("raw_data"), stages.newest_raw_data(settings)
    assert newest is not None and newest.summary["number"] == 2
    assert found is not None and found.summary["number"] == 3


def test_a_model_is_not_promoted_by_the_evaluation_of_another(tmp_path: Path):
    settings = Settings(home=tmp_path / "home")
    store = stages.artifact_store(settings)

    def made(name: str) -> Artifact:
        def make(out: Path) -> dict[str, Any]:
            (out / "weights").write_text(name)
            return {"model_version": name}

        return store.build("fine_tuned_model", {"name": name}, make)

    evaluated, other = made("m-evaluated"), made("m-other")
    report = store.build(
        "eval_report",
        {"model": evaluated.data_version, "champion": None, "few_steps": None},
        lambda out: {"model_version": "m-evaluated"},
    )
    with pytest.raises(ValueError, match=r"of m-evaluated, not of m-other: materialize eval_report"):
        stages.champion_model(settings, other, report)
    with ChampionPointer(settings.database_url) as pointer:
        assert pointer.current() is None


def _with_tiny_base(team: Settings, base: Path, **fine_tune: Any) -> Settings:
    """The team's settings with a tiny base model, saved when it is not there, trained for a step and drawn in one."""
    if not base.is_dir():
        save_tiny_pipeline(base, DenoiserConfig(hidden_size=64, depth=1, num_heads=1))
    wanted = {"max_steps": 1, "batch_size": 4, **fine_tune}
    return team.model_copy(
        update={
            "base_model": str(base),
            "fine_tune": team.fine_tune.model_copy(update=wanted),
            "sampling": team.sampling.model_copy(update={"steps": 1}),
        }
    )


def test_a_champion_is_asked_in_the_words_that_it_was_taught(team: Settings, tmp_path: Path):
    def evaluated(template: str) -> Artifact:
        settings = _with_tiny_base(team, tmp_path / "base", prompt_template=template)
        validated = stages.validated_data(settings, stages.raw_data(settings))
        split, base = stages.splits(settings, validated), stages.base_model(settings)
        model = stages.fine_tuned_model(settings, stages.training_cache(settings, validated, split, base), base)
        report = stages.eval_report(settings, model, base, split, validated, stages.image_features(settings, validated))
        with ChampionPointer(settings.database_url) as pointer:
            if pointer.current() is None:
                version = ModelVersion(model.summary["model_version"], model.path)
                pointer.promote(version, expected_revision=0, reason="it is the first")
        return report

    evaluated("{caption}, {style} style")
    asked = stages.read_metrics(evaluated("icon of {caption}"))["provenance"]["asked_for"]
    assert asked["champion"].endswith(", acme style")
    assert asked["base"] == asked["fine_tuned"] == "icon of " + asked["champion"].removesuffix(", acme style")


def test_prior_pictures_are_drawn_by_the_base_once_and_trained_on_along(team: Settings, tmp_path: Path):
    settings = _with_tiny_base(team, tmp_path / "base", prior_pictures=3, prior_prompts=("a thing", "a drawing"))
    validated = stages.validated_data(settings, stages.raw_data(settings))
    split, base = stages.splits(settings, validated), stages.base_model(settings)
    made = stages.training_cache(settings, validated, split, base)
    cache = TrainingCache.open(made.path)
    prior = cache.rows.iloc[cache.select("prior")]
    assert prior["caption"].tolist() == ["a thing", "a drawing", "a thing"]
    assert (prior["style"] != "acme").all() and set(cache.select("prior")).isdisjoint(cache.select("train"))
    assert stages.prior_pictures(settings, base).reused
    trained = stages.fine_tuned_model(settings, made, base)
    assert trained.summary["training_pictures"] == len(cache.select("train"))


def test_a_base_that_reads_prompts_otherwise_gets_a_cache_of_its_own(team: Settings, tmp_path: Path):
    shapes = []
    for tokens in (20, 5):
        folder = tmp_path / str(tokens)
        save_tiny_pipeline(folder, DenoiserConfig(hidden_size=64, depth=1, num_heads=1))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"prompt_max_tokens": tokens}))
        settings = team.model_copy(update={"base_model": str(folder)})
        validated = stages.validated_data(settings, stages.raw_data(settings))
        made = stages.training_cache(
            settings, validated, stages.splits(settings, validated), stages.base_model(settings)
        )
        shapes.append(TrainingCache.open(made.path).conditions["embeddings"].shape[1])
    assert shapes == [20, 5]


def test_another_house_style_or_paper_gets_a_training_cache_of_its_own(team: Settings, tmp_path: Path):
    settings = _with_tiny_base(team, tmp_path / "base")
    validated = stages.validated_data(settings, stages.raw_data(settings))
    split, base = stages.splits(settings, validated), stages.base_model(settings)
    made = stages.training_cache(settings, validated, split, base)
    assert stages.training_cache(settings, validated, split, base).reused
    black, outline = (
        settings.model_copy(update={"dataset": settings.dataset.model_copy(update=change)})
        for change in ({"background": "#000000"}, {"house_style": "outline"})
    )
    assert stages.training_cache(black, validated, split, base).fingerprint != made.fingerprint
    with pytest.raises(ValueError, match="no pictures"):  # there are none of that style, but the other's are not taken
        stages.training_cache(outline, validated, split, base)


def test_pictures_of_one_model_are_never_taken_for_those_of_another_with_its_version(team: Settings, tmp_path: Path):
    settings = team.model_copy(update={"sampling": team.sampling.model_copy(update={"steps": 1})})
    drawn = []
    for width in (64, 128):
        save_tiny_pipeline(tmp_path / str(width), DenoiserConfig(hidden_size=width, depth=1, num_heads=width // 64))
        base = stages.base_model(settings.model_copy(update={"base_model": str(tmp_path / str(width))}))
        drawn.append(stages.drawings(settings, base.path, "m-1", ["red disc"]))
    assert not any(artifact.reused for artifact in drawn)
    assert drawn[0].data_version != drawn[1].data_version
