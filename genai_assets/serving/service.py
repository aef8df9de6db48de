"""The Bento service: puts the parts together when a worker starts, and lets BentoML run them.

Belongs here: BentoML's decorators and hooks, and where the model folder comes from. HTTP is ``endpoints``.

The application is mounted at ``/`` instead of being written as BentoML APIs, because its errors have OpenAI's shape and
its bodies are bounded while they are read. BentoML's own ``/healthz``, ``/livez`` and ``/readyz`` come before it.
"""

import logging
import os
from pathlib import Path
from typing import Any, cast

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from genai_assets.serving.packaging import (
    FEW_STEPS_FOLDER_VARIABLE,
    FEW_STEPS_NAME,
    MODEL_FOLDER_VARIABLE,
    MODEL_NAME,
)

logger = logging.getLogger("genai_assets.serving")


async def _application(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of the service that this worker started."""
    await bentoml.get_current_service().application(scope, receive, send)


@bentoml.service(
    workers=1,  # one model in memory, one drawing at a time: more pictures a second need more machines or a GPU
    traffic={"timeout": 86_400},  # BentoML's answer is not in OpenAI's shape; `endpoints` keeps its own, shorter time
    metrics={"enabled": False},  # they are labelled by path, so that anyone can add series; `endpoints` has its own
)
@bentoml.asgi_app(_application, path="/")
class ImageGenerationService:
    """Draws pictures in the house style from a prompt, keeps what it drew, and takes ratings."""

    application: ASGIApp

    def __init__(self) -> None:
        # Imported here: BentoML also imports this module in its supervisor and to build, which need none of it.
        from genai_assets.datasets.picture_store import PictureStore
        from genai_assets.serving.endpoints import Figures, Parts, build_app
        from genai_assets.serving.generator import DrawingRoom, PictureGenerator
        from genai_assets.serving.request_log import RequestLog
        from genai_assets.settings import Settings

        settings = Settings()  # pyright: ignore[reportCallIssue] - defaults
        folder = model_folder()
        student = few_steps_folder()
        logger.info("serving the model of %s%s", folder, f" and its few-step student of {student}" if student else "")
        self._log = RequestLog(settings.database_url)
        self._room = DrawingRoom(
            lambda: PictureGenerator.load(folder, settings, student), max_waiting=settings.serving.max_waiting
        )
        self.application = build_app(
            Parts(
                room=self._room,
                store=PictureStore(settings.paths.drawn),
                log=self._log,
                settings=settings.serving,
                figures=Figures(),
            )
        )

    def __is_ready__(self) -> bool:
        """Ready once the model is loaded and has drawn one picture."""
        return self._room.generator is not None

    def __is_alive__(self) -> bool:
        """Not alive when the model cannot be loaded: waiting will not help."""
        return self._room.failure is None

    @bentoml.on_shutdown
    def close(self) -> None:
        """Give up what waits and close the log."""
        self._room.close()
        self._log.close()


def model_folder() -> Path:
    """The model to serve: the folder that ``GENAI_SERVE_MODEL`` names, else the one that came with the Bento.

    Raises:
        ValueError: there is neither, or the folder does not exist.
    """
    if folder := _named(MODEL_FOLDER_VARIABLE) or _packed(MODEL_NAME):
        return folder
    raise ValueError(f"no model to serve: set {MODEL_FOLDER_VARIABLE} to a model folder, or serve a Bento that has one")


def few_steps_folder() -> Path | None:
    """The model's few-step student: the folder that ``GENAI_SERVE_FEW_STEPS`` names, else the Bento's, if it has one.

    A model that is named by ``GENAI_SERVE_MODEL`` is never given the student of the Bento's.

    Raises:
        ValueError: the folder that is named does not exist.
    """
    if (folder := _named(FEW_STEPS_FOLDER_VARIABLE)) or os.environ.get(MODEL_FOLDER_VARIABLE):
        return folder
    return _packed(FEW_STEPS_NAME)


def _named(variable: str) -> Path | None:
    """The folder that a variable names."""
    named = os.environ.get(variable)
    if not named:
        return None
    folder = Path(named).absolute()
    if not folder.is_dir():
        raise ValueError(f"{variable} is {named!r}, which is not a folder")
    return folder


def _packed(name: str) -> Path | None:
    """The folder of a model that came with the Bento."""
    bento = cast(Any, ImageGenerationService).bento  # the decorator made it a bentoml.Service
    for model in bento.info.all_models if bento else ():
        if model.tag.name == name:
            return Path(bentoml.models.get(model.tag).path)
    return None
