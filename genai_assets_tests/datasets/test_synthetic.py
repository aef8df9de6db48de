"""Synthetic pictures: for thin classes only, within a share, never of what is measured with, and never any drawing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import SYNTHETIC_SOURCE, Record, read_manifest, to_frame
from genai_assets.datasets.splits import assign, training_rows
from genai_assets.datasets.synthetic import (
    Wish,
    Yardstick,
    draw,
    is_own_drawing,
    plan,
    room_for,
    thin_categories,
)
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.registry.champion import ChampionPointer, ModelVersion
from genai_assets.settings import Settings
from genai_assets_tests.tiny_pipeline import save_tiny_pipeline

START = datetime(2026, 1, 1, tzinfo=UTC)


def record(number: int, category: str, **more: Any) -> Record:
    told: dict[str, Any] = {
        "id": f"{number:064x}",
        "caption": f"{category} {number}",
        "concept": f"{category}-{number}",
        "style": "acme",
        "source": "folder:a",
        "licence": "MIT",
        "width": 64,
        "height": 64,
        "category": category,
        "added_at": START + timedelta(hours=number),
    }
    return Record(**told | more)


def world(**synthetic: Any) -> tuple[pd.DataFrame, pd.DataFrame, Settings]:
    """Three full categories of ten concepts, a thin one of two; another style has four concepts of the thin one."""
    numbers = iter(range(1, 1000))
    found = [record(next(numbers), category) for category in ("tools", "food", "toys") for _ in range(10)]
    found += [record(next(numbers), "birds") for _ in range(2)]
    found += [record(next(numbers), "birds", style="noto") for _ in range(4)]
    table = to_frame(found).assign(split="train")
    settings = Settings(dataset={"house_style": "acme"}, synthetic={"max_share": 0.3, **synthetic})
    return table, table[table["style"] == "acme"], settings


def test_a_category_is_thin_below_a_share_of_the_median_and_lacks_what_the_median_has():
    _, trained_on, _ = world()
    assert thin_categories(trained_on, 0.5) == {"birds": 8}
    assert thin_categories(trained_on, 0.1) == {}
    drawn = to_frame([record(900 + n, "birds", source=SYNTHETIC_SOURCE, synthetic=True) for n in range(5)])
    with_drawn = pd.concat([trained_on, drawn.assign(split="train")])
    assert thin_categories(with_drawn, 0.5) == {"birds": 3}
    assert thin_categories(trained_on[trained_on["category"] == "birds"], 0.5) == {}


def test_concepts_that_the_house_style_lacks_come_first_then_further_pictures_of_its_own():
    table, trained_on, settings = world()
    wishes = plan(table, trained_on, settings)
    assert len(wishes) == 8
    new = set(table.loc[table["style"] == "noto", "concept"])
    assert {wish.concept for wish in wishes[:4]} == new
    assert {wish.concept for wish in wishes[4:6]}.isdisjoint(new)
    assert [wish.number for wish in wishes] == [0] * 6 + [1] * 2
    assert {wish.category for wish in wishes} == {"birds"}


def test_nothing_is_drawn_beyond_the_share_and_the_pictures_that_are_there_count():
    table, trained_on, settings = world(max_share=0.1)
    assert room_for(len(trained_on), 0.1) == 3  # 3 of 35 are less than a tenth, 4 of 36 more
    assert len(plan(table, trained_on, settings)) == 3
    drawn = to_frame([record(900 + n, "birds", source=SYNTHETIC_SOURCE, synthetic=True) for n in range(2)])
    table = pd.concat([table, drawn.assign(split="train")], ignore_index=True)
    assert len(plan(table, table[table["style"] == "acme"], settings)) == 1
    assert (
        plan(
            table,
            trained_on,
            settings.model_copy(update={"synthetic": settings.synthetic.model_copy(update={"max_share": 0.0})}),
        )
        == []
    )


@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_the_room_keeps_the_share_and_wastes_none(real: int, share: float):
    room = room_for(real, share)
    assert room <= share * (real + room) + 1e-6
    assert room + 1 > share * (real + room + 1) - 1e-6


@pytest.mark.parametrize("split", ["validation", "test", "held_out", "later", "set_aside"])
def test_no_concept_and_no_caption_of_another_split_is_drawn(split: str):
    table, trained_on, settings = world()
    noto = table.index[table["style"] == "noto"]
    # One concept is withheld in a third style; another's caption belongs to a withheld picture.
    withheld = to_frame(
        [
            record(901, "birds", style="twemoji", concept=str(table.loc[noto[0], "concept"]).upper(), caption="x"),
            record(902, "birds", concept="other", caption=f" {str(table.loc[noto[1], 'caption']).title()}"),
        ]
    ).assign(split=split)
    wishes = plan(pd.concat([table, withheld], ignore_index=True), trained_on, settings)
    assert {wish.concept for wish in wishes}.isdisjoint({table.loc[noto[0], "concept"], table.loc[noto[1], "concept"]})
    assert {wish.concept for wish in wishes} >= {table.loc[noto[2], "concept"], table.loc[noto[3], "concept"]}


def test_feedback_and_earlier_drawings_are_no_models_to_draw_from():
    table, trained_on, settings = world()
    drawn = to_frame(
        [
            record(910, "birds", source="feedback", concept="feedback:owl", caption="owl"),
            record(911, "birds", source=SYNTHETIC_SOURCE, synthetic=True, concept="emu", caption="emu"),
        ]
    ).assign(split="train")
    wishes = plan(pd.concat([table, drawn], ignore_index=True), trained_on, settings)
    assert {"owl", "emu"}.isdisjoint(wish.caption for wish in wishes)


# The quality bar


SIDE = 16


def shade(level: float) -> np.ndarray:
    """A picture whose features are its angle: half one grey, half another, so that it is not blank."""
    picture = np.full((SIDE, SIDE, 3), 20, np.uint8)
    picture[:, : SIDE // 2] = int(level)
    return picture


def angle(pictures: np.ndarray) -> np.ndarray:
    turn = pictures[:, 0, 0, 0] / 255 * np.pi / 2
    return np.stack([np.cos(turn), np.sin(turn)], 1)


REAL = np.stack([shade(level) for level in (60, 66, 110, 160, 210)])  # two are near each other, as real ones are
YARDSTICK = Yardstick(ids=[f"{n:064x}" for n in range(5)], vectors=angle(REAL), describe=angle)


def drawn_as_levels(*levels: float):
    """Draws these levels for the candidates of each wish, in turn."""

    def pictures(prompts, seeds):
        assert len(set(seeds)) == len(prompts)
        return np.stack([shade(level) for level in levels * (len(prompts) // len(levels))])

    return pictures


def draw_one(tmp_path: Path, *levels: float, wishes: int = 1, **more: Any):
    yardstick = more.pop("yardstick", YARDSTICK)
    settings = Settings(
        home=tmp_path, dataset={"house_style": "acme"}, synthetic={"max_share": 0.1, "candidates": len(levels)}
    )
    return draw(
        [Wish(f"bird {n}", f"bird-{n}", "birds", ("wing",)) for n in range(wishes)],
        settings,
        PictureStore(settings.paths.drawn),
        model_version="m-1",
        draw_pictures=drawn_as_levels(*levels),
        yardstick=yardstick,
        **more,
    )


def test_what_passes_is_a_record_that_is_marked_and_can_be_traced(tmp_path: Path):
    found = draw_one(tmp_path, 85)
    (row,) = found.records.to_dict("records")
    assert (row["synthetic"], row["source"], row["licence"]) == (True, "synthetic", "LicenseRef-own-output")
    assert (row["caption"], row["concept"], row["category"], row["style"]) == ("bird 0", "bird-0", "birds", "acme")
    assert '"model_version": "m-1"' in row["provenance"] and '"prompt": "bird 0, acme style"' in row["provenance"]
    assert '"seed": ' in row["provenance"] and '"nearest": ' in row["provenance"]
    with Image.open(PictureStore(tmp_path / "drawn").path(row["id"])) as picture:
        assert picture.size == (SIDE, SIDE)


def test_a_blank_a_copy_and_a_strange_drawing_are_dropped_each_by_its_reason(tmp_path: Path):
    found = draw_one(tmp_path, 20, 110, 0)
    assert found.records.empty
    assert found.dropped == {"blank": 1, "nearly copies a training picture": 1, "strange": 1}


def test_of_several_that_pass_the_one_that_shows_its_caption_best_is_kept(tmp_path: Path):
    def agree(vectors, captions):
        return vectors[:, 1] - vectors[:, 1].min()  # the brightest best; the darkest not at all

    yardstick = Yardstick(YARDSTICK.ids, YARDSTICK.vectors, angle, agree)
    found = draw_one(tmp_path, 85, 135, 185, yardstick=yardstick)
    assert found.dropped == {"does not show its caption": 1, "not the best of its candidates": 1}
    with Image.open(PictureStore(tmp_path / "drawn").path(found.records["id"].iloc[0])) as picture:
        assert picture.getpixel((0, 0)) == (185, 185, 185)


def test_the_same_wishes_give_the_same_records_whatever_else_is_wished(tmp_path: Path):
    seeds: list[list[int]] = []

    def pictures(prompts, wanted):
        seeds.append(list(wanted))
        return np.stack([shade(85)] * len(prompts))

    settings = Settings(home=tmp_path, synthetic={"max_share": 0.1, "candidates": 2})
    store = PictureStore(settings.paths.drawn)
    wishes = [Wish(f"bird {n}", f"bird-{n}", "birds") for n in range(20)]
    found = [
        draw(part, settings, store, model_version="m", draw_pictures=pictures, yardstick=YARDSTICK)
        for part in (wishes[:1], wishes, wishes[:1])
    ]
    pd.testing.assert_frame_equal(found[0].records, found[2].records)
    assert [len(part) for part in seeds] == [2, 32, 8, 2]
    assert seeds[0] == seeds[1][:2] and len({seed for part in seeds[1:3] for seed in part}) == 40


def test_a_drawing_that_repeats_another_is_dropped(tmp_path: Path):
    found = draw_one(tmp_path, 85, wishes=2)
    assert len(found.records) == 1
    assert found.dropped == {"repeats another drawing": 1}
    again = draw_one(tmp_path, 85, known_vectors=angle(np.stack([shade(85)])))
    assert again.records.empty


def test_too_few_real_pictures_are_an_error_that_says_what_to_do(tmp_path: Path):
    yardstick = Yardstick(YARDSTICK.ids[:3], YARDSTICK.vectors[:3], angle)
    with pytest.raises(ValueError, match=r"3 real training pictures are too few.*max_share = 0"):
        draw_one(tmp_path, 85, yardstick=yardstick)


# The whole way


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Three categories of pictures, one thin; a tiny random model is the champion."""
    root = tmp_path_factory.mktemp("synthetic")
    folder = root / "pictures"
    folder.mkdir()
    lines, number = [], 0
    for category, concepts in (("round", 12), ("square", 12), ("thin", 4)):
        for place in range(concepts):
            image = Image.new("RGB", (64, 64), "white")
            pen = ImageDraw.Draw(image)
            box = (4 + place, 6, 24 + 3 * place, 58 - 2 * place)
            shape = {"round": pen.ellipse, "square": pen.rectangle, "thin": pen.line}[category]
            shape(box, fill=(20 * place, 90 + 10 * place, 250 - 16 * place))
            image.save(folder / f"{number}.png")
            lines.append({"file_name": f"{number}.png", "text": f"{category} shape {place}", "category": category})
            number += 1
    pd.DataFrame(lines).to_json(folder / "metadata.jsonl", orient="records", lines=True)
    save_tiny_pipeline(root / "base", DenoiserConfig(hidden_size=64, depth=1, num_heads=1))
    settings = Settings(
        home=root / "home",
        base_model=str(root / "base"),
        dataset={"folder": folder, "house_style": "acme"},
        splits={"held_out_share": 0.2, "later_categories": []},
        synthetic={"max_share": 0.2, "candidates": 2, "max_strangeness": 1000.0},
        sampling={"steps": 2},
    )
    champion = stages.base_model(settings)
    with ChampionPointer(settings.database_url) as pointer:
        pointer.promote(ModelVersion("m-tiny", champion.path), expected_revision=0, reason="for the test")
    return settings


def prepared(settings: Settings) -> tuple[Artifact, Artifact, Artifact]:
    validated = stages.validated_data(settings, stages.raw_data(settings))
    return validated, stages.splits(settings, validated), stages.image_features(settings, validated)


def test_off_draws_nothing_and_needs_no_champion(tmp_path: Path, team: Settings):
    settings = Settings(home=tmp_path / "home", dataset=team.dataset)
    nowhere = Artifact("validated_data", "f", "v", tmp_path)
    made = stages.synthetic_pictures(settings, nowhere, nowhere, nowhere)
    assert made.summary["pictures"] == 0 and "max_share is 0" in made.summary["reason"]
    assert not settings.paths.synthetic_batches.exists()


def test_the_champions_pictures_become_a_closed_batch_that_comes_back_as_data_within_the_share(team: Settings):
    validated, split, features = prepared(team)
    made = stages.synthetic_pictures(team, validated, split, features)
    drawn = read_manifest(made.file("records.parquet"))
    assert made.summary["pictures"] == len(drawn) > 0, made.summary
    assert set(drawn["category"]) == {"thin"} and drawn["synthetic"].all()
    (batch,) = team.paths.synthetic_batches.glob("*.parquet")
    assert set(read_manifest(batch)["id"]) == set(drawn["id"])
    assert all(picture in PictureStore(team.paths.drawn) for picture in drawn["id"])
    assert stages.synthetic_pictures(team, validated, split, features).reused
    assert [batch] == list(team.paths.synthetic_batches.glob("*.parquet"))

    validated, split, _ = prepared(team)
    manifest = read_manifest(validated.file("manifest.parquet"))
    back = manifest[is_own_drawing(manifest)]
    assert set(back["id"]) == set(drawn["id"]) and back["synthetic"].all()
    parted = stages.read_splits(split)
    assert set(parted.loc[parted["id"].isin(back["id"]), "split"]) <= {"train", "set_aside"}
    rows = training_rows(manifest, parted, team)
    assert set(rows.loc[is_own_drawing(rows), "split"]) == {"train"}
    assert is_own_drawing(rows).sum() <= 0.2 * (rows["split"] == "train").sum()


# What the splits owe this part: read off as they stand


def test_a_synthetic_record_is_trained_on_or_nothing_and_never_shows_what_is_withheld():
    table, _, settings = world()
    real = table.drop(columns="split")
    parted = assign(real, settings, set())
    withheld = parted[parted["split"].isin(["held_out", "test", "validation"])]
    assert len(withheld) > 0
    spoilt = to_frame(
        [
            record(950, "birds", source=SYNTHETIC_SOURCE, synthetic=True, concept=withheld["concept"].iloc[0]),
            record(951, "birds", source=SYNTHETIC_SOURCE, synthetic=True, caption=withheld["caption"].iloc[0].upper()),
            record(952, "birds", source=SYNTHETIC_SOURCE, synthetic=True),
        ]
    )
    manifest = pd.concat([real, spoilt], ignore_index=True)
    parted = assign(manifest, settings, set())
    splits = dict(zip(parted["id"], parted["split"], strict=True))
    assert [splits[picture] for picture in spoilt["id"]] == ["set_aside", "set_aside", "train"]
    rows = training_rows(manifest, parted, settings)
    assert set(rows["id"]) & set(spoilt["id"]) == {spoilt["id"].iloc[2]}


def test_training_keeps_to_the_share_when_more_pictures_were_drawn_than_it_has_room_for():
    table, _, settings = world(max_share=0.1)
    drawn = to_frame([record(900 + n, "birds", source=SYNTHETIC_SOURCE, synthetic=True) for n in range(20)])
    manifest = pd.concat([table.drop(columns="split"), drawn], ignore_index=True)
    parted = manifest[["id", "caption"]].assign(split="train")
    rows = training_rows(manifest, parted, settings)
    kept = rows[is_own_drawing(rows)]
    assert len(kept) == room_for(32, 0.1) == 3
    assert sorted(kept["id"]) == sorted(drawn["id"])[:3]  # the earliest
    off = settings.model_copy(update={"synthetic": settings.synthetic.model_copy(update={"max_share": 0.0})})
    assert not is_own_drawing(training_rows(manifest, parted, off)).any()
