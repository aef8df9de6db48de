"""Reports and Data Docs open over HTTP, and nothing else of the home does."""

import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from genai_assets.child_process import environment_of
from genai_assets.pages import address_of, make_server
from genai_assets.settings import PagesSettings, Settings

REPORT = "artifacts/data_readiness_report/0123/readiness.html"
CREDITS = "artifacts/dataset_card/0123/ATTRIBUTION.md"
DRAWING = "artifacts/eval_report/0123/curve.svg"
DOCS = "great_expectations/gx/uncommitted/data_docs/local_site/index.html"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home")
    for place, text in {
        REPORT: "<h1>Ready</h1>",
        DOCS: "<h1>Data Docs</h1>",
        "artifacts/validated_data/0123/manifest.parquet": "records",
        "artifacts/validated_data/.0123.partial/readiness.html": "half",
        "genai.sqlite": "requests",
        "readiness.html": "not an artifact",
        "great_expectations/gx/great_expectations.yml": "settings",
        "great_expectations/gx/uncommitted/config_variables.html": "beside the Data Docs",
        "artifacts/validated_data/0123/artifact.json": "a receipt",
        CREDITS: "# Whom to credit",
        DRAWING: "<svg xmlns='http://www.w3.org/2000/svg'/>",
    }.items():
        path = settings.home / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    (settings.home / "artifacts" / "link.html").symlink_to(secret)
    (settings.home / "artifacts" / "circle.html").symlink_to("circle.html")
    (settings.home / "artifacts" / "folder.html").mkdir()
    return settings


@pytest.fixture
def port(settings: Settings) -> Iterator[int]:
    with make_server(settings, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(
    port: int, place: str, *, method: str = "GET", host: str = "127.0.0.1"
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, place, skip_host=True)
    connection.putheader("Host", f"{host}:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    told = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return told


@pytest.mark.parametrize(("place", "said"), [(REPORT, "Ready"), (DOCS, "Data Docs")])
def test_a_page_opens_at_the_address_that_is_told(settings: Settings, port: int, place: str, said: str) -> None:
    settings = settings.model_copy(update={"pages": PagesSettings(port=port)})
    address = address_of(settings.home / place, settings)
    assert address == f"http://127.0.0.1:{port}/{place}"
    status, body, headers = ask(port, f"/{place}")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert said in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(port, f"/{place}", method="HEAD")[:2] == (200, "")


def test_credits_are_read_as_text_and_a_drawing_by_itself_runs_no_script(port: int) -> None:
    status, body, headers = ask(port, f"/{CREDITS}")
    assert (status, body, headers["Content-Type"]) == (200, "# Whom to credit", "text/plain; charset=utf-8")
    status, _, headers = ask(port, f"/{DRAWING}")
    assert (status, headers["Content-Type"]) == (200, "image/svg+xml")
    assert "script-src" not in headers["Content-Security-Policy"]
    assert "sandbox" in headers["Content-Security-Policy"]


def test_the_first_page_links_what_there_is_to_read_and_nothing_else(port: int) -> None:
    status, body, _ = ask(port, "/")
    links = [part.partition('"')[0] for part in body.split('<a href="')[1:]]
    assert (status, sorted(links)) == (200, sorted([f"/{REPORT}", f"/{DOCS}", f"/{CREDITS}"]))
    for link in links:
        assert ask(port, link)[0] == 200


def test_the_first_page_of_an_empty_home_says_so(tmp_path: Path) -> None:
    with make_server(Settings(home=tmp_path / "nothing"), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        assert "There are none yet" in ask(server.server_address[1], "/")[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "place",
    [
        "/genai.sqlite",
        "/readiness.html",
        "/artifacts/validated_data/0123/manifest.parquet",
        "/artifacts/validated_data/.0123.partial/readiness.html",
        "/artifacts/../../secret.html",
        "/artifacts/%2e%2e/%2e%2e/secret.html",
        "/artifacts/link.html",
        "/artifacts/circle.html",
        "/artifacts/folder.html",
        "/artifacts/validated_data/0123/artifact.json",
        "/artifacts/..%2f..%2fsecret.html",
        "/artifacts/%252e%252e/%252e%252e/secret.html",
        "/artifacts/data_readiness_report/../data_readiness_report/0123/readiness.html",
        "/great_expectations/gx/great_expectations.yml",
        "/great_expectations/gx/uncommitted/config_variables.html",
        "/" + "a" * 5000 + ".html",
        "/artifacts/",
        "/%00",
        "//etc/passwd",
        "/artifacts/nowhere.html",
    ],
)
def test_nothing_else_of_the_home_is_served(settings: Settings, port: int, place: str) -> None:
    assert ask(port, place)[:2] == (404, "There is no such page.\n")


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.rebound.example", "0.0.0.0", ""])
@pytest.mark.parametrize("place", [f"/{REPORT}", "/", "/ready"])
def test_another_sites_name_for_this_machine_is_refused(port: int, host: str, place: str) -> None:
    status, body, _ = ask(port, place, host=host)
    assert (status, body) == (421, "This machine is called otherwise.\n")


def test_localhost_is_this_machine_too(port: int) -> None:
    assert ask(port, f"/{REPORT}", host="localhost")[0] == 200


def test_it_says_when_it_is_ready_and_takes_no_orders(port: int) -> None:
    assert ask(port, "/ready")[0] == 200
    assert ask(port, "/ready", method="POST")[0] == 501


def test_what_is_not_served_has_no_address(settings: Settings) -> None:
    assert address_of(settings.home / "genai.sqlite", settings) is None
    assert address_of(settings.home.parent / "secret.html", settings) is None


def test_when_the_port_is_taken_it_is_told_with_the_setting_to_mend(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        linked = settings.model_copy(update={"pages": PagesSettings(port=taken.getsockname()[1])})
        ended = subprocess.run(
            [sys.executable, "-m", "genai_assets.pages"],
            cwd=tmp_path,
            env=environment_of(linked, PYTHONPATH=str(Path(__file__).parents[1])),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert "set pages.port" in ended.stderr
    assert "Traceback" not in ended.stderr
