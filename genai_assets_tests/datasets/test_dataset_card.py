"""The dataset card: Hugging Face reads its header, and every figure in it is the graph's."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import DatasetCard
from PIL import Image, ImageDraw

from genai_assets import durable, stages
from genai_assets.datasets.dataset_card import LIMITS, make_dataset_card, read_figures
from genai_assets.datasets.records import Record, to_frame
from genai_assets.settings import Settings

RAW = {
    "duplicates": 2,
    "refused": [{"source": "icons:openmoji", "licence": "CC-BY-SA-4.0", "reason": "not | allowed", "count": None}],
}
VALIDATED = {
    "quarantined": 4,
    "quarantined_by_reason": {"opted out": 3, "blank": 1},
    "checks": [
        {"name": "captions_are_in_one_language", "passed": False},
        {"name": "manifest_has_records", "passed": True},
    ],
}


def record(number: int, **more: Any) -> Record:
    told: dict[str, Any] = {
        "id": f"{number:064x}",
        "caption": f"thing number {number}",
        "concept": f"thing-{number}",
        "style": "acme",
        "source": "folder:a",
        "licence": "CC-BY-4.0",
        "width": 64,
        "height": 32,
        "category": "things",
        "keywords": ("one", "two"),
        "provenance": {"author": "Ada"},
    }
    return Record(**told | more)


@pytest.fixture
def parts() -> tuple[pd.DataFrame, pd.DataFrame]:
    manifest = to_frame(
        [
            *(record(number) for number in range(6)),
            record(6, style="noto", licence="MIT", source="icons:noto", category=""),
            record(7, source="synthetic", synthetic=True, licence="LicenseRef-own-output", provenance={}),
            record(8, licence="Apache-2.0", provenance={}),
        ]
    )
    splits = manifest[["id", "caption"]].assign(split=["train"] * 6 + ["held_out", "train", "test"])
    return manifest, splits


def make(parts: tuple[pd.DataFrame, pd.DataFrame], out: Path, **settings: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return make_dataset_card(
        *parts,
        Settings(home=out / "home", **{"dataset": {"house_style": "acme"}} | settings),
        out,
        versions={"raw_data": "r1", "validated_data": "v1", "splits": "s1"},
        raw=RAW,
        validated=VALIDATED,
        split_summary={"later_categories": ["animals"]},
        duplicates={"clusters": 5},
    )


def test_hugging_face_reads_the_header_and_the_licences_are_its_own_words(parts, tmp_path: Path) -> None:
    make(parts, tmp_path / "card", governance={"title": "Acme: icons", "creators": ["Team A"], "language": "de"})
    card = DatasetCard.load(tmp_path / "card" / "README.md")
    data = card.data.to_dict()
    assert data["pretty_name"] == "Acme: icons"
    assert data["license"] == ["apache-2.0", "cc-by-4.0", "mit", "other"]
    assert data["license_link"] == "ATTRIBUTION.md"
    assert data["language"] == "de"
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["text-to-image"]
    assert data["configs"] == [{"config_name": "records", "data_files": "manifest.parquet"}]
    assert card.text.lstrip().startswith("# Acme: icons")


def test_the_figures_are_those_of_the_records_and_the_stages(parts, tmp_path: Path) -> None:
    summary = make(parts, tmp_path / "card")
    figures = read_figures(tmp_path / "card")
    assert figures["splits"] == {"held_out": 1, "test": 1, "train": 7}
    assert figures["by_style_and_split"]["noto"] == {"held_out": 1}
    assert figures["licences"] == {"Apache-2.0": 1, "CC-BY-4.0": 6, "LicenseRef-own-output": 1, "MIT": 1}
    assert figures["caption_words"]["median"] == 3
    assert figures["shorter_side"]["most"] == 32 and figures["longer_side"]["least"] == 64
    assert (figures["synthetic"], figures["opted_out"], figures["repeated"]) == (1, 3, 2)
    assert summary["synthetic_share"] == pytest.approx(1 / 9, abs=1e-4)
    assert summary["uncredited"] == 1  # the Apache-2.0 record names nobody
    text = (tmp_path / "card" / "README.md").read_text()
    for said in (
        "| acme | 0 | 1 | 7 | 8 |",
        "| opted out | 3 |",
        "3 pictures were left out because their makers reserve them",
        "icons:openmoji | CC-BY-SA-4.0 | all | not \\| allowed",
        "1 pictures (11.1%) were drawn by a model",
        "Kept back for later: animals.",
        "`captions_are_in_one_language`",
        "Of 1 records it is not known",
        *LIMITS,
    ):
        assert said in text, said


def test_an_opt_out_that_was_kept_by_a_setting_is_said_loudly(parts, tmp_path: Path) -> None:
    manifest, splits = parts
    manifest.loc[0, "opt_out"] = "noai sidecar"
    make((manifest, splits), tmp_path / "card", governance={"honour_opt_outs": False})
    text = (tmp_path / "card" / "README.md").read_text()
    assert "**1 pictures are in it although their makers reserve them from training**" in text
    assert "| noai sidecar | 1 |" in text


def test_a_summary_that_says_less_leaves_figures_out_and_invents_none(parts, tmp_path: Path) -> None:
    (tmp_path / "card").mkdir()
    settings = Settings(home=tmp_path, dataset={"house_style": "acme"})
    make_dataset_card(*parts, settings, tmp_path / "card", versions={}, raw={}, validated={})
    text = (tmp_path / "card" / "README.md").read_text()
    assert "No record is in quarantine." in text
    assert "repeated another's" not in text and "near duplicates" not in text


def test_equal_records_give_equal_files_whatever_their_order(parts, tmp_path: Path) -> None:
    manifest, splits = parts
    make((manifest, splits), tmp_path / "one")
    make((manifest.sample(frac=1, random_state=3), splits.sample(frac=1, random_state=4)), tmp_path / "two")
    one, two = (durable.digest_tree(tmp_path / name) for name in ("one", "two"))
    assert one == two and len(one) == 5


def test_the_stage_makes_a_card_of_a_real_folder_and_does_not_work_twice(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(14):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((4, 4, 10 + 3 * number, 50), fill=(18 * number, 60, 200 - 9 * number))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a shape of number {number}")
    settings = Settings(
        home=tmp_path / "home",
        dataset={"folder": folder, "house_style": "acme"},
        splits={"held_out_share": 0.4, "later_categories": []},
    )
    raw = stages.raw_data(settings)
    validated = stages.validated_data(settings, raw)
    split = stages.splits(settings, validated)
    card = stages.dataset_card(settings, raw, validated, split)
    assert card.summary["records"] == validated.summary["kept"]
    assert card.summary["version"] == validated.data_version
    assert sum(card.summary["splits"].values()) == card.summary["records"]
    assert json.loads(card.file("croissant.json").read_text())["version"] == f"1.0.0+{validated.data_version}"
    assert stages.dataset_card(settings, raw, validated, split).reused
