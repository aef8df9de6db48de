"""The service over HTTP: a real `bentoml serve` with a tiny random model."""

import asyncio
import base64
import contextlib
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from genai_assets import durable
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.serving.client import ServiceError
from genai_assets.serving.endpoints import Figures, Parts, build_app
from genai_assets.serving.generator import DrawingRoom, PictureGenerator
from genai_assets.serving.request_log import RequestLog
from genai_assets_tests.serving.tiny_service import STUDENT, VERSION, Service, make_settings

pytest_plugins = ["genai_assets_tests.serving.tiny_service"]

GENERATE = "/v1/images/generations"


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        return picture.size


def refused(service: Service, body, *, headers: dict[str, str] | None = None, path: str = GENERATE):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | (headers or {})
    response = httpx.post(service.url + path, content=content, headers=headers)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error


def test_an_answer_has_the_shape_of_the_images_api_and_its_pictures_decode(service: Service):
    response = httpx.post(service.url + GENERATE, json={"prompt": "a red car", "n": 2, "user": "someone"})
    assert response.status_code == 200
    answer = response.json()
    assert answer["created"] > 1_700_000_000 and answer["model_version"] == VERSION
    pngs = [base64.b64decode(picture["b64_json"], validate=True) for picture in answer["data"]]
    assert [size_of(png) for png in pngs] == [(64, 64)] * 2 and pngs[0] != pngs[1]


def test_a_generation_is_in_the_log_and_its_pictures_in_the_store_when_it_is_answered(service: Service):
    with service.client() as client, service.log() as log:
        answer = client.generate("  a blue boat ", n=2, seed=11)
        rows = log.requests()
    row = rows[rows["id"] == answer.request_id].iloc[0]
    assert (row["prompt"], row["n"], row["size"], row["seed"]) == ("a blue boat", 2, "64x64", 11)
    assert (row["model_version"], row["status"]) == (VERSION, 200)
    assert row["latency_ms"] == answer.latency_ms > 0
    assert list(row["picture_ids"]) == answer.picture_ids
    store = PictureStore(service.settings.paths.drawn)
    assert [store.read(picture) for picture in answer.picture_ids] == answer.pictures


def difference(one: bytes, other: bytes) -> float:
    """Mean absolute difference of two pictures, of 255 levels."""
    pixels = [np.asarray(Image.open(io.BytesIO(png)), dtype=float) for png in (one, other)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def test_a_seed_names_a_picture_whatever_it_is_drawn_with(service: Service):
    # Not byte for byte: in bf16 another batch size may round otherwise.
    with service.client() as client:
        first, second = client.generate("a green tree", n=2, seed=5).pictures
        assert difference(client.generate("a green tree", seed=6).pictures[0], second) < 2
        assert difference(client.generate("a green tree, fluent style", seed=5).pictures[0], first) < 2
        assert client.generate("a green tree", seed=5).pictures == client.generate("a green tree", seed=5).pictures
        assert difference(first, second) > 20
        assert client.generate("a yellow tree", seed=5).pictures != [first]


def test_low_quality_is_drawn_by_the_student_and_the_log_says_which_model_it_was(service: Service):
    with service.client() as client, service.log() as log:
        answers = {asked: client.generate("a lamp", seed=5, quality=asked) for asked in ("low", "high", "auto")}
        drawn_by = log.requests().set_index("id")["model_version"]
        assert client.model()["few_steps"] == {"model_version": STUDENT, "steps": 1}
    assert {asked: (answer.model_version, answer.steps) for asked, answer in answers.items()} == {
        "low": (STUDENT, 1),
        "high": (VERSION, 2),
        "auto": (VERSION, 2),
    }
    assert all(drawn_by[answer.request_id] == answer.model_version for answer in answers.values())
    assert answers["low"].pictures != answers["high"].pictures == answers["auto"].pictures


def test_a_multiple_of_the_models_size_is_enlarged_and_any_other_refused(service: Service):
    with service.client() as client:
        assert size_of(client.generate("a hat", size="192x192").pictures[0]) == (192, 192)
    for size in ("100x100", "64x128", "576x576", "0x0", "64"):
        status, error = refused(service, {"prompt": "a hat", "size": size})
        assert (status, error["param"]) == (400, "size") and "64x64, 128x128" in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": 7}, "prompt", "valid string"),
        ({"prompt": "x" * 301}, "prompt", "301 characters; at most 300"),
        ({"prompt": "a\u0000b"}, "prompt", "control characters"),
        ({"prompt": "a\nb"}, "prompt", "control characters"),
        ({"prompt": "a", "n": 0}, "n", "from 1 to 4, not 0"),
        ({"prompt": "a", "n": 99}, "n", "from 1 to 4, not 99"),
        ({"prompt": "a", "n": "2"}, "n", "valid integer"),
        ({"prompt": "a", "n": True}, "n", "valid integer"),
        ({"prompt": "a", "seed": -1}, "seed", "seed must be from 0"),
        ({"prompt": "a", "seed": 10**40}, "seed", "seed"),
        ({"prompt": "a", "response_format": "url"}, "response_format", "ask for 'b64_json'"),
        ({"prompt": "a", "quality": "ultra"}, "quality", "one of auto, high, low"),
        ({"prompt": "a", "sise": "64x64"}, "sise", "unknown field 'sise'"),
        ([], None, "JSON object"),
        (b"{", None, "not valid JSON"),
        (b'{"prompt": "\xff"}', None, "not valid JSON in UTF-8"),
        (b'{"prompt": "\\ud800"}', None, "not valid JSON"),
        (b'{"prompt": "a", "n": NaN}', "n", "n"),
        (b"[" * 8000, None, "not valid JSON"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(service: Service, body, param, words):
    status, error = refused(service, body)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"] and len(error["message"]) < 300


def test_another_model_is_not_pretended_to(service: Service):
    status, error = refused(service, {"prompt": "a", "model": "dall-e-3"})
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert httpx.post(service.url + GENERATE, json={"prompt": "a", "model": "champion"}).status_code == 200


def test_only_plain_json_is_read(service: Service):
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-encoding": "gzip"},
    ):
        assert refused(service, {"prompt": "a"}, headers=headers)[0] == 415


def test_a_body_is_bounded_while_it_is_read_whether_its_length_is_told_or_not(service: Service):
    limit = service.settings.serving.max_body_bytes
    assert refused(service, b"x" * (limit + 1))[0] == 413

    def endless():
        for _ in range(100):
            yield b" " * 4096

    response = httpx.post(service.url + GENERATE, content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"

    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:  # claims little, then hangs up
        connection.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'content-length: 500\r\n\r\n{"prompt"'
        )
    assert httpx.get(service.url + "/readyz").status_code == 200


def test_unknown_addresses_and_methods_have_the_same_error_shape(service: Service):
    missing = httpx.get(service.url + "/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = httpx.get(service.url + GENERATE)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


def test_too_many_at_once_are_told_to_come_back_and_every_one_is_logged(service: Service):
    def ask(number: int) -> httpx.Response:
        return httpx.post(service.url + GENERATE, json={"prompt": f"crowd {number}", "n": 4}, timeout=60)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    busy = [answer for answer in answers if answer.status_code == 429]
    assert busy and {answer.status_code for answer in answers} == {200, 429}
    for answer in busy:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
    with service.log() as log:
        rows = log.requests()
    crowd = rows[rows["prompt"].str.startswith("crowd ")]
    assert len(crowd) == 12 and (crowd["status"] == 429).sum() == len(busy)
    assert set(crowd["error_code"].dropna()) == {"rate_limit_exceeded"}


def test_a_rating_is_committed_with_its_picture_and_better_caption(service: Service):
    with service.client() as client, service.log() as log:
        answer = client.generate("a cup", n=2)
        by_place = client.rate(answer.request_id, 1, "down", comment="two\nlines", better_caption=" a mug ")
        by_id = client.rate(answer.request_id, answer.picture_ids[0], "up")
        rows = log.feedback().set_index("id")
    assert rows.loc[by_place, "picture_id"] == answer.picture_ids[1]
    assert (rows.loc[by_place, "rating"], rows.loc[by_id, "rating"]) == (-1, 1)
    assert rows.loc[by_place, "better_caption"] == "a mug" and rows.loc[by_id, "better_caption"] is None


def test_a_rating_of_nothing_is_refused(service: Service):
    with service.client() as client:
        answer = client.generate("a cup")
        with pytest.raises(ServiceError, match="drew 1 pictures") as beyond:
            client.rate(answer.request_id, 1, "up")
        with pytest.raises(ServiceError, match="no request"):
            client.rate("0" * 32, 0, "up")
        with pytest.raises(ServiceError, match="drew no picture"):
            client.rate(answer.request_id, durable.digest_bytes(b"another"), "up")
    assert beyond.value.status == 404
    base = {"request_id": answer.request_id, "picture_index": 0, "rating": "up"}
    for change in ({"rating": "maybe"}, {"picture_id": "0" * 64}, {"picture_index": -1}, {"request_id": "x"}):
        assert refused(service, base | change, path="/v1/feedback")[0] == 400


def test_what_cannot_be_logged_is_not_acknowledged_and_later_requests_are(service: Service):
    file = service.settings.paths.database
    with service.client() as client, service.log() as log:
        rated = client.generate("before the failure")
        aside = file.rename(file.with_suffix(".aside"))  # SQLite refuses to write a database that was moved away
        try:
            with pytest.raises(ServiceError, match="could not be written to the request log") as asked:
                client.generate("during the failure")
            with pytest.raises(ServiceError) as told:
                client.rate(rated.request_id, 0, "up")
        finally:
            aside.rename(file)
        assert {asked.value.status, told.value.status} == {503}
        assert {asked.value.code, told.value.code} == {"log_unavailable"}
        client.generate("after the failure")
        prompts = list(log.requests()["prompt"])
        assert rated.request_id not in set(log.feedback()["request_id"])
    assert "before the failure" in prompts and "after the failure" in prompts
    assert "during the failure" not in prompts


def test_health_readiness_and_figures(service: Service):
    with service.client() as client:
        client.generate("a key")
        assert client.model()["sizes"][0] == "64x64"
    assert httpx.get(service.url + "/healthz").status_code == 200
    assert httpx.get(service.url + "/readyz").status_code == 200
    figures = httpx.get(service.url + "/metrics").text
    for name in ('genai_http_requests_total{endpoint="/v1/images/generations",status="200"}', "genai_pictures_total"):
        assert name in figures
    assert "genai_generation_seconds_bucket" in figures
    httpx.get(service.url + "/made-up-by-a-stranger")
    assert "stranger" not in httpx.get(service.url + "/metrics").text


def test_the_page_allows_its_own_script_only(service: Service):
    response = httpx.get(service.url + "/")
    policy = response.headers["content-security-policy"]
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "unsafe" not in policy
    outside = response.text.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in outside and "https://" not in outside


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.rebound.example", "0.0.0.0"])
def test_another_sites_name_for_this_machine_neither_draws_nor_rates(service: Service, host: str):
    port = service.url.rpartition(":")[2]
    with service.client() as client, service.log() as log:
        drawn = client.generate("a cup")
        rating = {"request_id": drawn.request_id, "picture_index": 0, "rating": "up", "better_caption": "poison"}
        before = len(log.requests())
        for path, body in ((GENERATE, {"prompt": "a red car"}), ("/v1/feedback", rating)):
            status, error = refused(service, body, headers={"host": f"{host}:{port}"}, path=path)
            assert (status, error["code"]) == (421, "misdirected_request") and "serving.host" in error["message"]
        assert len(log.requests()) == before and drawn.request_id not in set(log.feedback()["request_id"])
    assert httpx.get(service.url + "/metrics", headers={"host": host}).status_code == 421
    assert httpx.get(service.url, headers={"host": f"localhost:{port}"}).status_code == 200


@pytest.mark.parametrize(("listens", "status"), [("0.0.0.0", 200), ("gpu.internal", 200), ("::1", 421)])
def test_a_service_for_others_answers_to_any_name_as_a_proxy_may_give_it_one(tmp_path, listens: str, status: int):
    settings = make_settings(tmp_path, host=listens)

    def load() -> PictureGenerator:
        raise ValueError("the page needs no model")

    async def ask() -> int:
        with RequestLog(settings.database_url) as log, contextlib.closing(DrawingRoom(load, max_waiting=1)) as room:
            app = build_app(Parts(room, PictureStore(settings.paths.drawn), log, settings.serving, Figures()))
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://pictures.example"
            ) as http:
                return (await http.get("/")).status_code

    assert asyncio.run(ask()) == status


def test_a_client_of_no_service_says_so():
    from genai_assets.serving.client import ServiceClient

    with ServiceClient("http://127.0.0.1:9", timeout=2) as client, pytest.raises(ServiceError, match="no answer"):
        client.generate("a")
