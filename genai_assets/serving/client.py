"""A small client of the service, for the demo, the command line and tests.

Belongs here: what a Python program says to a running service, and its answers as values.
"""

import base64
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import httpx


class ServiceError(RuntimeError):
    """The service answered with an error.

    Attributes:
        status: HTTP status; 0 when the service could not be reached.
        code: the error's code.
        param: the field to blame, if one is.
        retry_after: seconds after which to try again, if that makes sense.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


@dataclass(frozen=True)
class Generated:
    """What came back for a prompt.

    Attributes:
        request_id: names the request in feedback.
        model_version: the model that drew.
        steps: denoising steps it took.
        pictures: PNG files.
        picture_ids: their ids in the picture store.
        seed: of the first picture.
        latency_ms: as measured by the service, milliseconds.
    """

    request_id: str
    model_version: str
    steps: int
    pictures: list[bytes]
    picture_ids: list[str]
    seed: int
    latency_ms: float


class ServiceClient:
    """Speaks to one service.

    Args:
        base_url: for example ``http://127.0.0.1:3111``.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, base_url: str, *, timeout: float = 150.0):
        self._http = httpx.Client(base_url=base_url, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self,
        prompt: str,
        *,
        n: int = 1,
        size: str | None = None,
        seed: int | None = None,
        quality: Literal["auto", "high", "low"] | None = None,
    ) -> Generated:
        """Have pictures drawn; in ``"low"`` quality by the champion's few-step student, where it has one.

        Raises:
            ServiceError: the service refused, failed or could not be reached.
        """
        wanted: dict[str, Any] = {"prompt": prompt, "n": n, "size": size, "seed": seed, "quality": quality}
        wanted["response_format"] = "b64_json"
        answer = self._call(
            "POST", "/v1/images/generations", {name: value for name, value in wanted.items() if value is not None}
        )
        return Generated(
            request_id=answer["request_id"],
            model_version=answer["model_version"],
            steps=answer["steps"],
            pictures=[base64.b64decode(picture["b64_json"], validate=True) for picture in answer["data"]],
            picture_ids=[picture["picture_id"] for picture in answer["data"]],
            seed=answer["seed"],
            latency_ms=answer["latency_ms"],
        )

    def rate(
        self,
        request_id: str,
        picture: int | str,
        rating: Literal["up", "down"],
        *,
        comment: str = "",
        better_caption: str | None = None,
    ) -> str:
        """Rate one picture, named by its place in the answer or by its id; return the feedback event's id.

        Raises:
            ServiceError: the service refused, failed or could not be reached.
        """
        place = {"picture_index": picture} if isinstance(picture, int) else {"picture_id": picture}
        told: dict[str, Any] = {"request_id": request_id, "rating": rating, "comment": comment, **place}
        if better_caption is not None:
            told["better_caption"] = better_caption
        return self._call("POST", "/v1/feedback", told)["feedback_id"]

    def model(self) -> dict[str, Any]:
        """What the service says of its model: version, style, sizes, limits.

        Raises:
            ServiceError: the service refused, failed or could not be reached.
        """
        return self._call("GET", "/v1/model")

    def _call(self, method: str, path: str, json: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=json)
        except httpx.HTTPError as error:
            message = f"no answer from the service at {self._http.base_url}: {error}"
            raise ServiceError(0, "unreachable", message) from error
        if response.is_success:
            return response.json()
        try:
            told = response.json()["error"]
            code, message, param = told["code"], told["message"], told["param"]
        except (ValueError, KeyError, TypeError):  # not from the service itself: a proxy, or BentoML
            code, message, param = "http_error", f"HTTP {response.status_code}: {response.text[:200]}", None
        retry_after = response.headers.get("retry-after", "")
        wait = int(retry_after) if retry_after.isdigit() else None
        raise ServiceError(response.status_code, code, message, param, wait)
