"""`genai data captions`: from a messy folder to corrected captions in the manifest, by way of Label Studio's files."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from genai_assets import stages
from genai_assets.cli_data import data
from genai_assets.datasets.corrections import CAPTION_BY, CAPTION_ORIGINAL
from genai_assets.datasets.records import from_frame, read_manifest
from genai_assets.datasets.splits import split
from genai_assets.settings import Settings
from genai_assets.stages.captions import captions_in_force
from genai_assets_tests.datasets.test_auto_captions import save_tiny
from genai_assets_tests.datasets.test_label_studio import annotation

CAPTIONS = [
    "a red cup",
    "IMG_1234.jpg",
    "cafÃ© table",
    "call +49 30 901820, a blue hat",
    "",
    *["a green sofa", "a bowl"],
]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the raw data of seven pictures, one of them without a caption."""
    root = tmp_path_factory.mktemp("captions")
    folder = root / "pictures"
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 20 + 5 * number, 50), fill=(30 * number, 90, 160))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    stages.raw_data(Settings(home=root / "home", dataset={"folder": folder}))
    return root


@pytest.fixture
def home(ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in a working folder of its own, with its settings in genai.toml."""
    for name in [name for name in os.environ if name.startswith("GENAI_")]:
        monkeypatch.delenv(name)
    shutil.copytree(ingested / "home", tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_settings(tmp_path, ingested / "pictures")
    return tmp_path


def write_settings(home: Path, folder: Path, more: str = "") -> None:
    (home / "genai.toml").write_text(f'home = "home"\n[dataset]\nfolder = {str(folder)!r}\n[captions]\n{more}\n')


def run(*arguments: str) -> str:
    done = CliRunner().invoke(data, ["captions", *arguments])
    if done.exception:
        raise done.exception
    return done.output


def manifest_of(settings: Settings, *, ask_model: bool = True) -> pd.DataFrame:
    raw = stages.artifact_store(settings).newest("raw_data")
    assert raw is not None
    return captions_in_force(settings).apply(read_manifest(raw.file("manifest.parquet")), ask_model=ask_model)


def annotate(tasks: Path, texts: dict[str, str], minute: int = 1, by: int = 7) -> Path:
    """What Label Studio exports when a person changed these captions and confirmed the others."""
    export = []
    for number, task in enumerate(json.loads(tasks.read_text()), start=1):
        text = texts.get(task["data"]["caption"], task["data"]["caption"])
        made = [annotation(text, minute, by=by)] if text else []
        export.append({"id": number, "data": task["data"], "annotations": made, "predictions": []})
    path = tasks.with_name(f"export-{minute}-{by}.json")
    path.write_text(json.dumps(export))
    return path


def test_check_counts_every_kind_of_problem_and_shows_no_number(home: Path):
    told = run("check")
    assert "4 of 7 records have a caption to look at" in told
    for kind in ("boilerplate", "mojibake", "telephone number", "too short"):
        assert kind in told
    assert "IMG_1234.jpg" in told and "a café table" not in told and "café table" in told
    assert "901820" not in told and "+4… (10 digits)" in told


def test_a_correction_goes_out_comes_back_and_changes_neither_concept_nor_split(home: Path):
    settings = Settings()
    before = manifest_of(settings)
    assert captions_in_force(settings).inputs() == {}
    assert "4 tasks" in run("export", "--out", "tasks.json", "--problems-only")
    assert (home / "tasks.xml").read_text().startswith("<View>")

    export = annotate(home / "tasks.json", {"IMG_1234.jpg": "a yellow lamp", "cafÃ© table": "a café table"})
    told = run("import", str(export))
    assert "2 corrections taken in" in told and "confirmed as they are: 1" in told and "nobody has looked at: 1" in told
    after = manifest_of(settings)
    assert len(after) == len(before)
    corrected = {one.provenance[CAPTION_ORIGINAL]: one for one in from_frame(after) if CAPTION_BY in one.provenance}
    assert {one: corrected[one].caption for one in corrected} == {
        "IMG_1234.jpg": "a yellow lamp",
        "cafÃ© table": "a café table",
    }
    concepts = {one.id: one.concept for one in from_frame(before)}
    assert {one.id: one.concept for one in from_frame(after)} == concepts
    assert splits_of(settings, before, home / "before") == splits_of(settings, after, home / "after")

    version = captions_in_force(settings).inputs()
    assert version.keys() == {"corrections"}, "whatever is made of the corrected data is made anew"
    assert "0 corrections taken in; 2 were known already" in run("import", str(export))
    assert captions_in_force(settings).inputs() == version, "and only then"

    assert "2 tasks" in run("export", "--out", "tasks.json", "--problems-only"), "what is mended is not asked again"
    assert run("log").count("counts") >= 2
    picture = corrected["IMG_1234.jpg"].id
    assert "1 correction of picture" in run("forget", picture[:12])
    assert "IMG_1234.jpg" in manifest_of(settings)["caption"].tolist()
    run("forget", corrected["cafÃ© table"].id)
    assert manifest_of(settings).equals(before), "all taken back, everything is as the source has it"
    assert captions_in_force(settings).inputs() == {}


def splits_of(settings: Settings, manifest: pd.DataFrame, out: Path) -> dict[str, str]:
    """The split of every picture; of the captioned ones, as the others are quarantined."""
    out.mkdir()
    rules = settings.model_copy(update={"splits": settings.splits.model_copy(update={"held_out_share": 0.45})})
    split(manifest[manifest["concept"] != ""], rules, frozenset(), out)
    table = pd.read_parquet(out / "splits.parquet")
    return dict(zip(table["id"], table["split"], strict=True))


def test_two_people_who_did_not_see_each_others_captions_are_told_and_the_last_one_counts(home: Path):
    run("export", "--out", "tasks.json")
    one = annotate(home / "tasks.json", {"a bowl": "a wooden bowl"}, minute=5, by=7)
    other = annotate(home / "tasks.json", {"a bowl": "a soup bowl"}, minute=3, by=8)
    run("import", str(one))
    told = run("import", str(other))
    assert "Two people captioned picture" in told and "“a wooden bowl” counts" in told
    assert "a wooden bowl" in manifest_of(Settings())["caption"].tolist()


def test_a_missing_caption_is_written_by_a_model_and_never_a_given_one(home: Path, ingested: Path, tmp_path: Path):
    model = save_tiny("git", tmp_path / "tiny")
    write_settings(home, ingested / "pictures", f"model = {str(model)!r}\nmax_new_tokens = 4")
    settings = Settings()
    before = manifest_of(settings, ask_model=False)
    assert "" in before["caption"].tolist(), "looking at the data asks no model"
    after = manifest_of(settings)
    by_model = [one for one in from_frame(after) if one.provenance.get(CAPTION_BY, "").startswith("model tiny@")]
    assert len(by_model) == 1 and by_model[0].caption and by_model[0].concept
    assert set(CAPTIONS) - {""} <= set(after["caption"])
    assert manifest_of(settings, ask_model=False).equals(after), "what it said once is known"
    assert captions_in_force(settings).inputs().keys() == {"caption_model"}
    run("export", "--out", "tasks.json")
    run("import", str(annotate(home / "tasks.json", {by_model[0].caption: "by a person"})))
    (person,) = (one for one in from_frame(manifest_of(settings)) if one.id == by_model[0].id)
    assert (person.caption, person.concept) == ("by a person", by_model[0].concept)


def test_whole_pictures_go_into_a_folder_that_label_studio_can_serve(home: Path):
    told = run("export", "--out", "tasks.json", "--pictures", "files", "--limit", "2")
    assert "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED" in told
    tasks = json.loads((home / "tasks.json").read_text())
    assert len(tasks) == 2
    for task in tasks:
        picture = home / task["data"]["image"].removeprefix("/data/local-files/?d=")
        with Image.open(picture) as image:
            assert image.size == (64, 64)
        assert picture.stat().st_nlink == 1, "no link into the store of pictures"


@pytest.mark.parametrize("out", ["tasks.xml", "tasks", "tasks.jsonl"])
def test_tasks_go_into_a_json_file_so_that_the_labelling_interface_takes_no_others_place(home: Path, out: str):
    with pytest.raises(ValueError, match=rf"--out is {out}; .*\.json"):
        run("export", "--out", out)
    assert not (home / out).exists() and not (home / "tasks.xml").exists()


def test_only_records_of_a_split_are_written_when_it_is_asked_for(home: Path):
    with pytest.raises(ValueError, match="nothing is split yet"):
        run("export", "--out", "tasks.json", "--split", "train")
    assert not (home / "tasks.json").exists()


def test_no_data_no_file_and_no_export_are_told_and_nothing_is_kept(home: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="export from Label Studio"):
        run("import", "nothing.json")
    (home / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="no list of tasks"):
        run("import", "bad.json")
    assert "the log has 0 entries" in run("log")
    with pytest.raises(ValueError, match="no correction of a picture"):
        run("forget", "0123456789")
    assert not (home / "home" / "corrections.sqlite").exists()
    shutil.rmtree(home / "home" / "artifacts")
    with pytest.raises(ValueError, match="genai prepare"):
        run("check")
