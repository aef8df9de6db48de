"""Drawing for the service: the model of this process, loaded once, one drawing at a time.

Belongs here: the user's prompt into the model's prompt, seeds, PNG bytes, the bounded queue in front of the model, and
whether the model is ready. How pictures come out of noise is ``diffusion.sampling``; HTTP is ``endpoints``.
"""

import asyncio
import io
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from genai_assets.datasets.captions import without_style

if TYPE_CHECKING:
    from PIL.Image import Image

    from genai_assets.settings import Settings

logger = logging.getLogger("genai_assets.serving")

_Result = TypeVar("_Result")


class QueueFull(RuntimeError):
    """As many requests are waiting as may wait. ``retry_after``: seconds until one will have been drawn, a guess."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests are waiting already")
        self.retry_after = retry_after


class DrawingTimeout(TimeoutError):
    """The pictures were not ready in the time a request may take."""


class Drawer(Protocol):
    """What the service needs of ``diffusion.sampling``."""

    def draw(
        self,
        prompts: list[str],
        *,
        seeds: list[int],
        steps: int,
        guidance_scale: float,
        on_step: Callable[..., None] | None = None,
    ) -> "list[Image]":
        """Draw one picture a prompt and seed; ``on_step`` is called after every step and may raise to give up."""
        ...


class DrawnAs(BaseModel):
    """How a model wants to be drawn: a few-step student says so, for other ways it cannot."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=1)


class ModelFacts(BaseModel):
    """What ``model.json`` of a model folder says that drawing needs.

    Attributes:
        model_version: digest that names the model.
        style: the house style it has learnt.
        prompt_template: how captions became prompts in training; has ``{caption}``, may have ``{style}``.
        resolution: pixels a side.
        sampling: how it wants to be drawn; None: as the settings say.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    model_version: str = Field(min_length=1)
    style: str
    prompt_template: str
    resolution: int = Field(ge=1)
    sampling: DrawnAs | None = None

    def prompt(self, asked: str) -> str:
        """The prompt the model was trained to understand, from what a person typed.

        A prompt that ends with the style already ("a cat, fluent style") is left as it is.
        """
        if without_style(asked, self.prompt_template, self.style) != asked:
            return asked
        return self.prompt_template.format(caption=asked, style=self.style)


class PictureGenerator:
    """A loaded model and how the service draws with it.

    Args:
        drawer: draws pictures of ``facts.resolution`` pixels a side.
        facts: of the drawer's model.
        steps: sampling steps.
        guidance_scale: strength of classifier-free guidance.
        student: draws in its place where low quality is asked for, in a few steps; None: there is none.
    """

    def __init__(
        self,
        drawer: Drawer,
        facts: ModelFacts,
        *,
        steps: int,
        guidance_scale: float,
        student: "PictureGenerator | None" = None,
    ):
        self.facts = facts
        self.student = student
        self.steps = steps
        self.guidance_scale = guidance_scale
        self._drawer = drawer

    @classmethod
    def load(cls, model_folder: Path, settings: "Settings", few_steps: Path | None = None) -> "PictureGenerator":
        """Load a model folder and draw one picture with it, so that the first user does not wait for warm-up.

        With ``few_steps``, the folder of its student, that one is loaded as well.

        Raises:
            ValueError: the folder is no complete model; the message says what is missing.
        """
        from genai_assets.diffusion import sampling

        facts = read_facts(model_folder)
        drawer = sampling.load(
            model_folder, device=settings.device, backend=settings.sampling.backend, cache=settings.paths.converted
        )
        sampler = facts.sampling or settings.sampling
        drawer.make_ready(settings.serving.max_pictures, guidance_scale=sampler.guidance_scale)
        student = cls.load(few_steps, settings) if few_steps else None
        generator = cls(drawer, facts, steps=sampler.steps, guidance_scale=sampler.guidance_scale, student=student)
        generator.draw(facts.style or "warm-up", n=1, seed=0, side=facts.resolution)
        return generator

    def of_quality(self, quality: str) -> "PictureGenerator":
        """Who draws a quality: the student ``"low"``, if there is one; else this model."""
        return self.student if quality == "low" and self.student else self

    def draw(self, asked: str, *, n: int, seed: int, side: int, deadline: float = math.inf) -> list[bytes]:
        """Draw ``n`` pictures of one prompt.

        Args:
            asked: what the user typed.
            n: number of pictures; picture ``i`` is drawn from seed ``seed + i``, whatever ``n`` is.
            seed: of the first picture.
            side: pixels a side of the result; more than the model draws is enlarged (Lanczos).
            deadline: on the clock of ``time.monotonic``.

        Returns:
            list[bytes]: PNG files.

        Raises:
            DrawingTimeout: the deadline passed between two steps.
        """
        from PIL import Image

        def stop_when_late(*_: Any, **__: Any) -> None:
            if time.monotonic() > deadline:
                raise DrawingTimeout("the pictures were not ready in time")

        stop_when_late()
        pictures = self._drawer.draw(
            [self.facts.prompt(asked)] * n,
            seeds=[seed + index for index in range(n)],
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            on_step=stop_when_late,
        )
        files = []
        for picture in pictures:
            picture = picture.convert("RGB")
            if picture.size != (side, side):
                picture = picture.resize((side, side), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            picture.save(file, format="PNG")
            files.append(file.getvalue())
        return files


class DrawingRoom:
    """The model of this process and the queue in front of it: one drawing at a time, in the order of arrival.

    The model is loaded in the drawing thread, so the service can say at once that it is alive and not ready yet.

    Args:
        load: loads the generator; an exception makes the room ``failed`` for good.
        max_waiting: drawings that may wait for the one at work.
    """

    def __init__(self, load: Callable[[], PictureGenerator], *, max_waiting: int):
        self.generator: PictureGenerator | None = None
        self.failure: str | None = None
        self._max_waiting = max_waiting
        self._pending = 0  # at work and waiting; touched by the event loop only
        self._usual_seconds = 1.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drawing")
        self._thread.submit(self._load, load)

    @property
    def waiting(self) -> int:
        """Drawings at work and waiting."""
        return self._pending

    def _load(self, load: Callable[[], PictureGenerator]) -> None:
        try:
            self.generator = load()
        except Exception as error:  # reported by /healthz and in the log; the process has nothing else to do
            self.failure = f"{type(error).__name__}: {error}"
            logger.exception("the model could not be loaded")

    async def run(self, draw: Callable[[], _Result], *, timeout: float) -> _Result:
        """Run ``draw`` in the drawing thread, after those that came before.

        Raises:
            QueueFull: too many are waiting; nothing was queued.
            DrawingTimeout: it was not ready after ``timeout`` seconds.
            Exception: what ``draw`` raised.
        """
        if self._pending > self._max_waiting:
            raise QueueFull(self._pending - 1, math.ceil(max(1.0, self._usual_seconds * self._pending)))
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        future = self._thread.submit(draw)
        self._pending += 1

        def leave(_: Future[_Result]) -> None:
            # A drawing that timed out still occupies the thread until its next step: it counts until it is over.
            loop.call_soon_threadsafe(self._left)

        future.add_done_callback(leave)
        try:
            result = await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        except TimeoutError as error:
            raise DrawingTimeout("the pictures were not ready in time") from error
        self._usual_seconds += 0.2 * ((time.monotonic() - started) / max(1, self._pending) - self._usual_seconds)
        return result

    def _left(self) -> None:
        self._pending -= 1

    def close(self) -> None:
        """Take no more drawings; the ones that wait are given up."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def read_facts(model_folder: Path) -> ModelFacts:
    """Read ``model.json`` of a model folder.

    Raises:
        ValueError: there is none, or it lacks a field; the message says which.
    """
    from genai_assets.diffusion.base_model import model_facts

    try:
        return ModelFacts.model_validate(model_facts(model_folder))
    except ValueError as error:
        raise ValueError(f"{model_folder} cannot be served: {error}") from error
