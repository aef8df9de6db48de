"""What the service accepts and answers, in the shape of the OpenAI Images API and its errors.

Belongs here: parsing one request body into a checked value, bounds, and the error that says in plain words what is
wrong with it. How bodies are read and answers are sent is ``endpoints``.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_SIDE = 512
MAX_SEED = 2**32 - 1
MAX_COMMENT_LENGTH = 2_000
ANY_MODEL = ("champion", "genai_champion")
QUALITIES = ("auto", "high", "low")

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class ApiError(Exception):
    """An answer that is not a success.

    Attributes:
        status: HTTP status.
        message: what is wrong and how to mend it, for people.
        code: for programs.
        param: the field of the request that is to blame, if one is.
        kind: ``type`` of OpenAI's error object.
        retry_after: seconds after which a retry makes sense, if it does.
        close: end the connection after the answer (the rest of the body was not read).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.retry_after = retry_after
        self.close = close

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """Bounds of a generation request.

    Attributes:
        max_prompt_length: characters.
        max_pictures: pictures a request.
        resolution: pixels a side that the model draws.
        model_version: the model that is served.
    """

    max_prompt_length: int
    max_pictures: int
    resolution: int
    model_version: str

    @property
    def sizes(self) -> list[str]:
        """Sizes that may be asked for: the model's own, and whole multiples of it up to 512 pixels a side."""
        sides = range(self.resolution, max(MAX_SIDE, self.resolution) + 1, self.resolution)
        return [f"{side}x{side}" for side in sides]


@dataclass(frozen=True)
class Generation:
    """A checked generation request.

    Attributes:
        prompt: without spaces around it, otherwise as typed.
        n: number of pictures.
        side: pixels a side.
        seed: seed of the first picture, or None.
        quality: ``"low"`` for the champion's few-step student where there is one; all others mean the champion.
    """

    prompt: str
    n: int
    side: int
    seed: int | None
    quality: Literal["high", "low"] = "high"

    @property
    def size(self) -> str:
        """``"64x64"``."""
        return f"{self.side}x{self.side}"


@dataclass(frozen=True)
class Opinion:
    """A checked feedback request; exactly one of ``picture_index`` and ``picture_id`` is given."""

    request_id: str
    picture_index: int | None
    picture_id: str | None
    rating: Literal[-1, 1]
    comment: str
    better_caption: str | None


class _Body(BaseModel):
    # Strict: "3" is not 3 and true is not 1. Unknown names are refused, so that a typo is not silently ignored.
    model_config = ConfigDict(strict=True, extra="forbid")


class _GenerationBody(_Body):
    prompt: str
    n: int | None = None
    size: str | None = None
    response_format: str | None = None
    seed: int | None = None
    model: str | None = None
    quality: str | None = None
    user: str | None = None  # part of OpenAI's shape; neither used nor logged


class _FeedbackBody(_Body):
    request_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    picture_index: int | None = Field(None, ge=0)
    picture_id: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    rating: Literal["up", "down"]
    comment: str | None = None
    better_caption: str | None = None


def parse_generation(body: bytes, limits: Limits) -> Generation:
    """Check the body of ``POST /v1/images/generations``.

    Raises:
        ApiError: 400; it names the field, what is wrong and what would be right.
    """
    wanted = _parse(_GenerationBody, body)
    prompt = _text(wanted.prompt, "prompt", limits.max_prompt_length)
    if not prompt:
        raise _bad("prompt", "the prompt is empty; say what the picture should show", "empty_prompt")
    n = 1 if wanted.n is None else wanted.n
    if not 1 <= n <= limits.max_pictures:
        raise _bad("n", f"n must be from 1 to {limits.max_pictures}, not {n}", "invalid_value")
    if wanted.seed is not None and not 0 <= wanted.seed <= MAX_SEED:
        raise _bad("seed", f"seed must be from 0 to {MAX_SEED}", "invalid_value")
    if wanted.response_format == "url":
        message = "response_format 'url' is not offered: pictures come inline; ask for 'b64_json'"
        raise _bad("response_format", message, "unsupported_value")
    if wanted.response_format not in (None, "b64_json"):
        raise _bad("response_format", "response_format must be 'b64_json'", "unsupported_value")
    if wanted.model not in (None, limits.model_version, *ANY_MODEL):
        message = f"this service serves the model {limits.model_version!r} only; leave 'model' out or say 'champion'"
        raise ApiError(404, message, param="model", code="model_not_found")
    if wanted.quality not in (None, *QUALITIES):
        message = f"quality must be one of {', '.join(QUALITIES)}; 'low' is drawn in few steps, the others are alike"
        raise _bad("quality", message, "invalid_value")
    quality = "low" if wanted.quality == "low" else "high"
    return Generation(prompt, n, _side(wanted.size, limits), wanted.seed, quality)


def parse_feedback(body: bytes, *, max_caption_length: int) -> Opinion:
    """Check the body of ``POST /v1/feedback``.

    Raises:
        ApiError: 400; it names the field, what is wrong and what would be right.
    """
    given = _parse(_FeedbackBody, body)
    if (given.picture_index is None) == (given.picture_id is None):
        raise _bad("picture_index", "name the picture by either picture_index or picture_id", "invalid_value")
    return Opinion(
        request_id=given.request_id,
        picture_index=given.picture_index,
        picture_id=given.picture_id,
        rating=1 if given.rating == "up" else -1,
        comment=_text(given.comment or "", "comment", MAX_COMMENT_LENGTH, lines=True),
        better_caption=_text(given.better_caption or "", "better_caption", max_caption_length) or None,
    )


def _side(size: str | None, limits: Limits) -> int:
    if size in (None, "auto"):
        return limits.resolution
    if size not in limits.sizes:
        shown = f", not {size}" if _SIZE.fullmatch(size) else ""
        message = (
            f"size must be one of {', '.join(limits.sizes)}{shown}; "
            f"the model draws {limits.sizes[0]}, larger sizes are enlarged"
        )
        raise _bad("size", message, "invalid_value")
    return int(size.partition("x")[0])


def _text(value: str, name: str, max_length: int, *, lines: bool = False) -> str:
    """``value`` without spaces around it, if it is printable text of bounded length."""
    value = value.strip()
    if len(value) > max_length:
        message = f"{name} has {len(value)} characters; at most {max_length} are allowed"
        raise _bad(name, message, "string_above_max_length")
    allowed = "\n\r\t" if lines else ""
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in allowed for letter in value):
        raise _bad(name, f"{name} contains control characters (line breaks count); remove them", "invalid_value")
    return value


_AnyBody = TypeVar("_AnyBody", bound=_Body)


def _parse(shape: type[_AnyBody], body: bytes) -> _AnyBody:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        # Only the place and the kind: pydantic's own text would repeat the input, which may be long or private.
        first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "json_invalid":
            raise ApiError(400, f"the body is not valid JSON in UTF-8: {first['msg']}", code="invalid_json")
        case "model_type":
            raise ApiError(400, "the body must be a JSON object", code="invalid_json")
        case "missing":
            raise _bad(place, f"the field {place!r} is missing", "missing_required_parameter")
        case "extra_forbidden":
            place = place[:64]
            known = ", ".join(shape.model_fields)
            raise _bad(place, f"unknown field {place!r}; known are {known}", "unknown_parameter")
        case _:
            raise _bad(place, f"{place}: {first['msg']}", "invalid_value")


def _bad(param: str, message: str, code: str) -> ApiError:
    return ApiError(400, message, param=param, code=code)
