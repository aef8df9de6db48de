"""Links in Dagster's metadata: each opens where the pages are served, and its file's path stands beside it."""

import contextlib
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from playwright.sync_api import expect, sync_playwright

from genai_assets.artifacts import Artifact
from genai_assets.defs.narration import page, result
from genai_assets.pages import make_server
from genai_assets.settings import PagesSettings, Settings
from genai_assets_tests.defs.test_batches import Graph
from genai_assets_tests.ui.test_page import ARGUMENTS


def metadata_of(outcome: dg.ExecuteInProcessResult, asset: str) -> dict[str, dg.MetadataValue]:
    [event] = outcome.asset_materializations_for_node(asset)
    return dict(event.metadata)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", pages=PagesSettings(port=4567))


def materialize(settings: Settings, files: dict[str, str]) -> dict[str, dg.MetadataValue]:
    """The metadata of an asset whose artifact has these files, each told of by the name before its ending."""
    folder = settings.paths.artifacts / "told" / "0123"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)

    @dg.asset
    def told(settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Artifact]:
        artifact = Artifact("told", "0123", "4567", settings.paths.artifacts / "told" / "0123")
        return result(artifact, {name.partition(".")[0]: page(artifact.file(name)) for name in files} | {"rows": 3})

    io_manager = dg.mem_io_manager
    return metadata_of(dg.materialize([told], resources={"settings": settings, "io_manager": io_manager}), "told")


def test_a_page_is_told_of_by_its_address_and_its_path(settings: Settings):
    told = materialize(settings, {"report.html": "<h1>Report</h1>"})
    file = settings.paths.artifacts / "told" / "0123" / "report.html"
    assert told["report"] == dg.MetadataValue.url("http://127.0.0.1:4567/artifacts/told/0123/report.html")
    assert told["report_file"] == dg.MetadataValue.path(str(file))
    assert told["rows"].value == 3


def test_a_file_that_is_not_served_is_told_of_by_its_path_alone(settings: Settings):
    told = materialize(settings, {"table.parquet": "rows"})
    assert told["table"] == dg.MetadataValue.path(str(settings.paths.artifacts / "told" / "0123" / "table.parquet"))
    assert "table_file" not in told


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    """Files of a folder over HTTP, without a word."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(server: http.server.ThreadingHTTPServer) -> Iterator[int]:
    """Its port, while it serves."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_data_docs_open_at_a_click_on_a_page_of_another_port(tmp_path: Path):
    executable = os.environ.get("GENAI_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        told = "no chromium: install it (apt-get install chromium) or set GENAI_CHROMIUM to the executable"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    with dg.DagsterInstance.ephemeral() as instance:
        graph = Graph(tmp_path, instance)
        outcome = graph.run("raw_data")
        assert outcome.success
        told = metadata_of(graph.run("validated_data"), "validated_data")
    link, file = told["data_docs"].value, told["data_docs_file"].value
    assert Path(str(file)).is_relative_to(graph.settings.home)

    origin = tmp_path / "origin"
    origin.mkdir()
    elsewhere = functools.partial(QuietFiles, directory=str(origin))
    with (
        serving(make_server(graph.settings, 0)) as port,
        serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), elsewhere)) as dagster_port,
        sync_playwright() as playwright,
    ):
        address = str(link).replace(f":{graph.settings.pages.port}/", f":{port}/")  # a free one in tests
        (origin / "index.html").write_text(
            f'<a id="http" href="{address}" target="_blank" rel="noreferrer">Data Docs</a>'
        )
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{dagster_port}/index.html")
        with page.expect_popup() as opened:
            page.click("#http")
        complaints: list[str] = []
        opened.value.on("console", lambda message: complaints.append(message.text))
        expect(opened.value.get_by_role("link", name="validated_manifest").first).to_be_visible()
        opened.value.get_by_role("link", name="validated_manifest").first.click()
        expect(opened.value.get_by_text("Expectation Validation Result")).to_be_visible()
        assert "/validations/" in opened.value.url
        assert not [text for text in complaints if "Content Security" in text]
        browser.close()
