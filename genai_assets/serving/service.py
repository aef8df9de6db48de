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

from genai_assets.serving.packaging import MODEL_FOLDER_VARIABLE, MODEL_NAME

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
        logger.info("serving the model of %s", folder)
        self._log = RequestLog(settings.database_url)
        self._room = DrawingRoom(
            lambda: PictureGenerator.load(folder, settings), max_waiting=settings.serving.max_waiting
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
    if named := os.environ.get(MODEL_FOLDER_VARIABLE):
        folder = Path(named).absolute()
        if not folder.is_dir():
            raise ValueError(f"{MODEL_FOLDER_VARIABLE} is {named!r}, which is not a folder")
        return folder
    bento = cast(Any, ImageGenerationService).bento  # the decorator made it a bentoml.Service
    for model in bento.info.all_models if bento else ():
        if model.tag.name == MODEL_NAME:
            return Path(bentoml.models.get(model.tag).path)
    raise ValueError(f"no model to serve: set {MODEL_FOLDER_VARIABLE} to a model folder, or serve a Bento that has one")
