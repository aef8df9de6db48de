"""`genai data search` and `genai data duplicates`: what they find, show and write; and the graph's part of it."""

import io
import os
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from genai_assets import cli, stages
from genai_assets.artifacts import Artifact
from genai_assets.datasets import splits as splitting
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import Record, to_frame, write_manifest
from genai_assets.settings import Settings
from genai_assets_tests.evaluation.drawings import CAPTIONS, draw

COPIED, COPY_OF_A_HELD_OUT = "red circle", "a copy of a held-out one"


def as_bytes(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=92)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with 24 drawings, two copies of them as JPEG, and a picture that the newest raw data lacks."""
    folder = tmp_path_factory.mktemp("cli") / "home"
    settings = Settings.model_validate({"home": folder, **SPLITS})
    store = PictureStore(settings.paths.pictures)
    held_out = next(one for one in CAPTIONS if splitting.concept_split(one, settings.splits) == "held_out")
    trained = next(
        name
        for name in (f"{COPY_OF_A_HELD_OUT} {number}" for number in range(1000))
        if splitting.concept_split(name, settings.splits) == "train"
    )
    drawn = [(caption, as_bytes(draw(caption))) for caption in CAPTIONS]
    drawn += [("a removed circle", as_bytes(draw(COPIED, shift=1)))]
    drawn += [(f"{COPIED} again", as_bytes(draw(COPIED), "JPEG")), (trained, as_bytes(draw(held_out), "JPEG"))]
    records = to_frame(
        Record(
            id=store.put(data), caption=caption, concept=caption, style="fluent", source="folder:x", licence="MIT",
            width=48, height=48, category="shapes",
        )
        for caption, data in drawn
    )  # fmt: skip
    artifacts = stages.artifact_store(settings)

    def keep(kind: str, rows: pd.DataFrame) -> Artifact:
        def make(out: Path) -> dict[str, object]:
            write_manifest(out / "manifest.parquet", rows)
            return {}

        return artifacts.build(kind, {"made": "by hand"}, make)

    keep("raw_data", records[records["caption"] != "a removed circle"])
    validated = keep("validated_data", records)
    features = stages.image_features(settings, validated)
    duplicates = stages.duplicate_clusters(settings, validated, features)
    stages.splits(settings, validated, duplicates)
    return folder


SPLITS = {"splits": {"held_out_share": 0.3, "later_categories": []}, "device": "cpu"}


@pytest.fixture
def genai(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in a working folder of its own."""
    for name in [name for name in os.environ if name.startswith("GENAI_") and name != "GENAI_TEST_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "220")
    (tmp_path / "genai.toml").write_text(
        f'home = "{home}"\ndevice = "cpu"\n[splits]\nheld_out_share = 0.3\nlater_categories = []\n'
    )

    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(cli.app, list(arguments))
        assert done.exit_code == status, done.output + str(done.exception)
        return done.output

    return run


def test_a_text_finds_captions_and_the_sheet_shows_them(genai) -> None:
    told = genai("data", "search", "a circle that is red", "--count", "2", "--sheet", "s.png", "--html", "s.html")
    rows = [line for line in told.splitlines() if "fluent" in line]
    assert len(rows) == 2 and all("red circle" in row for row in rows)
    with Image.open("s.png") as sheet:
        assert sheet.width > 500
    html = Path("s.html").read_text()
    assert html.count("data:image/") == 2 and "red circle again" in html


def test_a_picture_finds_its_copy_and_nothing_that_was_removed(genai) -> None:
    Path("query.png").write_bytes(as_bytes(draw(COPIED)))
    told = genai("data", "search", "--picture", "query.png", "--count", "27")
    rows = [line for line in told.splitlines() if "fluent" in line]
    assert len(rows) == 26, "everything that is alive"
    assert "red circle" in rows[0] and "0.000" in rows[0] and "red circle again" in rows[1]
    assert "a removed circle" not in told
    listed = genai("data", "search", "a removed circle", "--count", "27").splitlines()[1:]
    assert len([line for line in listed if "fluent" in line]) == 26
    assert not any("a removed circle" in line for line in listed)


def test_looks_are_compared_when_asked_for_and_a_style_is_chosen(genai) -> None:
    assert "circle" in genai("data", "search", "red circle", "--by", "picture", "--count", "3")
    assert "fluent" not in genai("data", "search", "red circle", "--style", "noto").replace("looks", "")


def test_what_cannot_be_searched_is_told(genai, tmp_path: Path) -> None:
    for arguments in ((), ("text", "--picture", "x.png")):
        assert "say what to look for" in genai("data", "search", *arguments, status=2)
    Path("no.png").write_text("no picture")
    assert "no.png: not a picture" in genai("data", "search", "--picture", "no.png", status=2)
    (tmp_path / "genai.toml").write_text('home = "nowhere"\n')
    assert "run `genai prepare`" in genai("data", "search", "cat", status=2)
    assert "run `genai prepare`" in genai("data", "duplicates", status=2)


def test_duplicates_are_shown_with_why_they_were_joined(genai) -> None:
    told = genai("data", "duplicates", "--sheet", "d.png", "--html", "d.html")
    assert "Policy (curation.keep): all" in told
    assert "red circle again" in told and "centre of the cluster" in told
    assert "hash: " in told or "features: " in told
    assert "set aside" in told, "the copy of a held-out picture is not trained on"
    assert Path("d.html").read_text().count("data:image/") >= 4
    assert Path("d.png").stat().st_size > 0
    assert "red circle again" not in genai("data", "duplicates", "--by", "content")
    assert "more; --count shows them" in genai("data", "duplicates", "--count", "1")


# The graph's part.


def materialized(home: Path, *assets: dg.AssetsDefinition) -> dg.ExecuteInProcessResult:
    settings = Settings.model_validate({"home": home, **SPLITS})
    newest = {kind: stages.artifact_store(settings).newest(kind) for kind in ("validated_data", "image_features")}

    def given(kind: str) -> dg.AssetsDefinition:
        @dg.asset(name=kind)
        def handed_on():
            return newest[kind]

        return handed_on

    @dg.asset
    def downstream(splits: Artifact) -> None:
        assert splits.kind == "splits"

    return dg.materialize(
        [given("validated_data"), given("image_features"), *assets, downstream],
        instance=dg.DagsterInstance.ephemeral(),
        resources={"settings": settings, "io_manager": dg.mem_io_manager},
        raise_on_error=False,
    )


def test_the_graph_makes_clusters_and_splits_and_claims_that_nothing_leaks(home: Path) -> None:
    from genai_assets.defs.assets.curation import duplicate_clusters, splits

    result = materialized(home, duplicate_clusters, splits)
    assert result.success
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert checks["splits_do_not_leak"].passed and checks["shares_are_as_asked_for"].passed


def test_a_leak_blocks_everything_downstream(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genai_assets.defs.assets.curation import duplicate_clusters, splits

    assign = splitting.assign
    monkeypatch.setattr(splitting, "assign", lambda manifest, settings, released, *near: assign(
        manifest, settings, released
    ))  # fmt: skip
    another = tmp_path / "home"
    another.mkdir()
    for name in ("artifacts", "pictures", "features.lance", "inspections.sqlite", "thumbnails"):
        if (home / name).exists() and name != "artifacts":
            (another / name).symlink_to(home / name)
    (another / "artifacts").mkdir()
    for kind in ("raw_data", "validated_data", "image_features"):
        (another / "artifacts" / kind).symlink_to(home / "artifacts" / kind)

    result = materialized(another, duplicate_clusters, splits)
    assert not result.success
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert not checks["splits_do_not_leak"].passed
    assert "near duplicate" in str(checks["splits_do_not_leak"].metadata["first"].value)
    assert not result.asset_materializations_for_node("downstream")
