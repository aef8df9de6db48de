"""The HTTP side of the service: an ASGI application over the drawing room, the picture store and the request log.

Belongs here: routes, reading bodies within bounds, the order of commit and answer, headers, figures for Prometheus.
What a body may say is ``schemas``; BentoML, which runs this application, is ``service``.

A generation is acknowledged only after its pictures are in the picture store and its row is in the request log.
"""

import asyncio
import base64
import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genai_assets import ui
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.loopback import asks_for_loopback, is_loopback
from genai_assets.serving.generator import DrawingRoom, DrawingTimeout, PictureGenerator, QueueFull
from genai_assets.serving.request_log import FeedbackEvent, LogUnavailable, RequestEntry, RequestLog, UnknownRequest
from genai_assets.serving.schemas import (
    MAX_SEED,
    ApiError,
    Generation,
    Limits,
    parse_feedback,
    parse_generation,
)
from genai_assets.settings import ServingSettings

logger = logging.getLogger("genai_assets.serving")

_Committed = TypeVar("_Committed")

BODY_SECONDS = 10.0
DRAIN_BYTES = 1 << 20

_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}


class Figures:
    """What Prometheus reads. Labels come from fixed sets only, so that no request can add a series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "genai_http_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=self.registry
        )
        self.pictures = Counter("genai_pictures", "Pictures drawn and acknowledged", registry=self.registry)
        self.feedback = Counter("genai_feedback", "Ratings by direction", ["rating"], registry=self.registry)
        self.latency = Histogram(
            "genai_generation_seconds",
            "Successful generations, from the body to the answer",
            buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, math.inf),
            registry=self.registry,
        )
        self.waiting = Gauge("genai_drawings_pending", "Drawings at work and waiting", registry=self.registry)


@dataclass(frozen=True)
class Parts:
    """What the application works with."""

    room: DrawingRoom
    store: PictureStore
    log: RequestLog
    settings: ServingSettings
    figures: Figures


def build_app(parts: Parts) -> ASGIApp:
    """The application: page, generation, feedback, model facts, figures; every error in OpenAI's shape.

    While ``serving.host`` is loopback, a request that names another host is refused with 421 (see ``loopback``).
    """
    endpoints = _Endpoints(parts)
    routes = [
        Route("/", endpoints.page, methods=["GET"]),
        Route("/v1/images/generations", endpoints.generate, methods=["POST"]),
        Route("/v1/feedback", endpoints.rate, methods=["POST"]),
        Route("/v1/model", endpoints.model, methods=["GET"]),
        Route("/metrics", endpoints.metrics, methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_exception,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_unexpected,
        },
    )
    guarded = _ForThisMachine(app) if is_loopback(parts.settings.host) else app
    return _Counted(guarded, parts.figures, {route.path for route in routes})


class _Endpoints:
    def __init__(self, parts: Parts):
        self._room = parts.room
        self._store = parts.store
        self._log = parts.log
        self._settings = parts.settings
        self._figures = parts.figures

    async def page(self, _: Request) -> Response:
        headers = {"content-security-policy": ui.content_security_policy()}
        return Response(ui.page(), media_type="text/html; charset=utf-8", headers=headers)

    async def metrics(self, _: Request) -> Response:
        self._figures.waiting.set(self._room.waiting)
        return Response(generate_latest(self._figures.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def model(self, _: Request) -> Response:
        generator = self._generator()
        limits = self._limits(generator)
        return JSONResponse(
            {
                "model_version": generator.facts.model_version,
                "style": generator.facts.style,
                "prompt_template": generator.facts.prompt_template,
                "resolution": generator.facts.resolution,
                "sizes": limits.sizes,
                "max_pictures": limits.max_pictures,
                "max_prompt_length": limits.max_prompt_length,
                "steps": generator.steps,
                "guidance_scale": generator.guidance_scale,
                "few_steps": generator.student
                and {"model_version": generator.student.facts.model_version, "steps": generator.student.steps},
            }
        )

    async def generate(self, request: Request) -> Response:
        body = await self._read_json(request)
        started = time.perf_counter()
        generator = self._generator()
        wanted = parse_generation(body, self._limits(generator))
        generator = generator.of_quality(wanted.quality)
        seed = secrets.randbelow(MAX_SEED + 1) if wanted.seed is None else wanted.seed
        entry = partial(
            RequestEntry,
            prompt=wanted.prompt,
            n=wanted.n,
            size=wanted.size,
            seed=seed,
            model_version=generator.facts.model_version,
        )
        try:
            pictures = await self._draw(generator, wanted, seed)
            picture_ids = await self._keep(pictures)
        except ApiError as error:
            await self._commit(partial(self._log.record_request, entry(status=error.status, error_code=error.code)))
            raise
        seconds = time.perf_counter() - started
        done = entry(status=200, latency_ms=round(seconds * 1000, 1), picture_ids=picture_ids)
        await self._commit(partial(self._log.record_request, done))
        self._figures.pictures.inc(len(pictures))
        self._figures.latency.observe(seconds)
        return JSONResponse(
            {
                "created": int(datetime.now(UTC).timestamp()),
                "data": [
                    {"b64_json": base64.b64encode(png).decode("ascii"), "picture_id": picture_id}
                    for png, picture_id in zip(pictures, picture_ids, strict=True)
                ],
                "request_id": done.id,
                "model_version": done.model_version,
                "quality": wanted.quality,
                "steps": generator.steps,
                "seed": seed,
                "size": done.size,
                "drawn_size": f"{generator.facts.resolution}x{generator.facts.resolution}",
                "latency_ms": done.latency_ms,
            }
        )

    async def rate(self, request: Request) -> Response:
        body = await self._read_json(request)
        opinion = parse_feedback(body, max_caption_length=self._settings.max_prompt_length)

        def record() -> FeedbackEvent:
            picture_id = opinion.picture_id
            if picture_id is None:
                drawn = self._log.pictures_of(opinion.request_id)
                assert opinion.picture_index is not None
                if opinion.picture_index >= len(drawn):
                    raise UnknownRequest(f"request {opinion.request_id!r} drew {len(drawn)} pictures")
                picture_id = drawn[opinion.picture_index]
            event = FeedbackEvent(
                request_id=opinion.request_id,
                picture_id=picture_id,
                rating=opinion.rating,
                comment=opinion.comment,
                better_caption=opinion.better_caption,
            )
            self._log.record_feedback(event)
            return event

        try:
            event = await self._commit(record)
        except UnknownRequest as error:
            raise ApiError(404, str(error), code="request_not_found", param="request_id") from error
        rating = "up" if event.rating == 1 else "down"
        self._figures.feedback.labels(rating).inc()
        return JSONResponse(
            {
                "feedback_id": event.id,
                "request_id": event.request_id,
                "picture_id": event.picture_id,
                "rating": rating,
            },
            status_code=201,
        )

    def _generator(self) -> PictureGenerator:
        if self._room.generator is not None:
            return self._room.generator
        if self._room.failure is not None:
            raise ApiError(503, "the model could not be loaded; the service's log says why", code="model_unavailable")
        raise ApiError(503, "the model is being loaded; try again soon", code="model_loading", retry_after=2)

    def _limits(self, generator: PictureGenerator) -> Limits:
        return Limits(
            max_prompt_length=self._settings.max_prompt_length,
            max_pictures=self._settings.max_pictures,
            resolution=generator.facts.resolution,
            model_version=generator.facts.model_version,
        )

    async def _draw(self, generator: PictureGenerator, wanted: Generation, seed: int) -> list[bytes]:
        timeout = self._settings.request_timeout_seconds
        draw = partial(
            generator.draw,
            wanted.prompt,
            n=wanted.n,
            seed=seed,
            side=wanted.side,
            deadline=time.monotonic() + timeout,
        )
        try:
            return await self._room.run(draw, timeout=timeout)
        except QueueFull as error:
            message = f"the service is busy ({error}); try again in about {error.retry_after} s"
            raise ApiError(
                429, message, code="rate_limit_exceeded", kind="rate_limit_error", retry_after=error.retry_after
            ) from error
        except DrawingTimeout as error:
            message = f"no picture was ready within {timeout:g} s; ask for fewer pictures or try again later"
            raise ApiError(503, message, code="timeout", retry_after=math.ceil(timeout)) from error
        except Exception as error:
            logger.exception("drawing failed")
            raise ApiError(500, "drawing failed; the service's log says why", code="drawing_failed") from error

    async def _keep(self, pictures: list[bytes]) -> list[str]:
        try:
            return await to_thread.run_sync(lambda: [self._store.put(png) for png in pictures])
        except OSError as error:
            logger.exception("a picture could not be stored")
            raise ApiError(503, "the pictures could not be stored", code="storage_unavailable") from error

    async def _commit(self, write: Callable[[], _Committed]) -> _Committed:
        try:
            return await to_thread.run_sync(write)
        except LogUnavailable as error:
            logger.exception("the request log cannot be written")
            message = "the request could not be written to the request log, so it is not acknowledged; try again later"
            raise ApiError(503, message, code="log_unavailable", retry_after=5) from error

    async def _read_json(self, request: Request) -> bytes:
        """The body, read within bounds of bytes and time, whatever the headers claim."""
        media_type, _, parameters = request.headers.get("content-type", "").partition(";")
        charset = parameters.strip().lower().removeprefix("charset=").strip('"')
        if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
            raise ApiError(
                415, "send the body as content-type application/json", code="unsupported_media_type", close=True
            )
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "send the body uncompressed", code="unsupported_content_encoding", close=True)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await _read_bounded(request, self._settings.max_body_bytes)
        except TimeoutError as error:
            message = f"the body was not complete after {BODY_SECONDS:g} s"
            raise ApiError(408, message, code="request_timeout", close=True) from error


async def _read_bounded(request: Request, limit: int) -> bytes:
    body = bytearray()
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read <= limit:
            body += chunk
        elif read > limit + DRAIN_BYTES:
            break  # a little more was read so that an honest client sees the answer rather than a reset connection
    if read > limit:
        message = f"the body is larger than {limit} bytes"
        raise ApiError(413, message, code="request_too_large", close=True)
    return bytes(body)


class _ForThisMachine:
    """Refuses what asks for another host than this machine: it comes from another site's page."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or asks_for_loopback(Headers(scope=scope).get("host")):
            await self._app(scope, receive, send)
            return
        message = "this service is for its own machine: ask localhost or a loopback address, or set serving.host"
        told = ApiError(421, message, code="misdirected_request", close=True)
        answer = await _answer_api_error(Request(scope), told)
        await answer(scope, receive, send)


class _Counted:
    """Counts answers by endpoint and status, and adds the headers every answer has."""

    def __init__(self, app: ASGIApp, figures: Figures, endpoints: set[str]):
        self._app = app
        self._figures = figures
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = scope["path"] if scope["path"] in self._endpoints else "other"

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._figures.requests.labels(endpoint, str(message["status"])).inc()
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_counted)


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.close:
        headers["connection"] = "close"
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        told = ApiError(404, "there is nothing at this address", code="not_found")
    elif error.status_code == 405:
        told = ApiError(405, f"{request.method} is not allowed here", code="method_not_allowed")
    else:
        told = ApiError(error.status_code, error.detail, code="http_error")
    return JSONResponse(told.body(), status_code=told.status, headers=error.headers)


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # the client has gone; this is for the access log


async def _answer_unexpected(_: Request, __: Exception) -> Response:
    told: dict[str, Any] = ApiError(500, "an unexpected error; the service's log says more", code="internal").body()
    return JSONResponse(told, status_code=500)
