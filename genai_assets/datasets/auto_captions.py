"""Captions by a model that the team names, for pictures that came without one. Off unless a model is set.

Belongs here: which model that may be, running it, and keeping what it said by picture and model, so that each picture
is looked at once. What a model says is marked as such in the record's provenance (``corrections``) and never takes the
place of a caption that was given.

The models are those of transformers that need a picture and nothing else: BLIP, GIT, and an encoder of pictures joined
to a decoder of text (``VisionEncoderDecoderModel``). A chat model, which wants a conversation, is refused. Only
safetensors are read and no code of a model's own is run.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from genai_assets import durable
from genai_assets.database import Database
from genai_assets.datasets.corrections import AutoCaption

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL_TYPES = ("blip", "git", "vision-encoder-decoder")
"""What ``config.json`` may call the model's type."""

_VERSION = 1  # raise it when the same model and picture would be given another caption
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class ModelUnfit(ValueError):
    """The model is not here, or is none that describes pictures; the message says what to do."""


def find_model(name: str, *, download: bool) -> Path:
    """The folder of a model.

    Args:
        name: a folder, or a name on the hub, which is looked for in the hub's cache on this machine.
        download: whether what is not in the cache may be fetched.

    Raises:
        ModelUnfit: it is not here.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith("."):
        raise ModelUnfit(f"there is no folder {name}; set captions.model to a folder of an image-to-text model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=not download, allow_patterns=list(_MODEL_FILES)))
    except LocalEntryNotFoundError as error:
        mend = "" if download else ", or set captions.download to let it be fetched"
        raise ModelUnfit(
            f"the model {name!r} is neither a folder nor in the hub's cache on this machine; fetch it once "
            f"(`hf download {name}`){mend}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelUnfit(f"the hub has no model {name!r} for us: {error}") from error


class Captioner:
    """An image-to-text model and how it is asked: greedily, so that a picture always gets the same caption.

    Args:
        folder: of the model: ``config.json``, safetensors, its image processor and tokenizer.
        name: what it is called in provenance.
        max_new_tokens: of one caption.
        device: for torch.

    Raises:
        ModelUnfit: not an image-to-text model of :data:`MODEL_TYPES`, or files are missing.
    """

    def __init__(self, folder: Path, *, name: str = "", max_new_tokens: int = 40, device: str = "cpu"):
        self.folder = folder
        self._max_new_tokens = max_new_tokens
        self._device = device
        self._loaded: tuple[Any, Any, Any] | None = None
        kind = _model_type(folder)
        if kind not in MODEL_TYPES:
            raise ModelUnfit(
                f"{folder} is of the type {kind!r}, which is not asked here; use one of {', '.join(MODEL_TYPES)}"
            )
        digest = model_digest(folder)
        self.version = durable.digest_json([_VERSION, digest, max_new_tokens])[:16]
        self.name = f"{name or folder.name}@{digest[:12]}"

    def describe(self, pictures: "Sequence[Image]") -> list[str]:
        """A caption for each RGB picture, one line; empty where the model says nothing."""
        import torch

        model, images, tokenizer = self._load()
        pixels = images(images=list(pictures), return_tensors="pt")["pixel_values"].to(self._device)
        with torch.no_grad():
            told = model.generate(
                pixel_values=pixels, max_new_tokens=self._max_new_tokens, do_sample=False, num_beams=1
            )
        return [" ".join(text.split()) for text in tokenizer.batch_decode(told, skip_special_tokens=True)]

    def _load(self) -> tuple[Any, Any, Any]:
        """Model, image processor and tokenizer; loaded when the first picture comes."""
        if self._loaded is None:
            from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

            try:
                images = AutoImageProcessor.from_pretrained(self.folder, local_files_only=True, backend="pil")
                tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
                model: Any = AutoModelForImageTextToText.from_pretrained(
                    self.folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
                )
            except (OSError, ValueError, KeyError) as error:
                raise ModelUnfit(
                    f"{self.folder} cannot be loaded: {error}. It needs config.json, safetensors, "
                    "preprocessor_config.json and a tokenizer, as save_pretrained writes them"
                ) from error
            self._loaded = (model.eval().to(self._device), images, tokenizer)
        return self._loaded


def model_digest(folder: Path) -> str:
    """SHA-256 over the files of a model that decide what it says."""
    files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelUnfit(f"{folder} has no safetensors; convert the model (save_pretrained) before you use it")
    return durable.digest_json({path.name: durable.digest_file(path) for path in files})


_metadata = sa.MetaData()

_captions = sa.Table(
    "auto_captions",
    _metadata,
    sa.Column("picture", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(16), primary_key=True),
    sa.Column("caption", sa.Text, nullable=False),
)


class AutoCaptionStore(Database):
    """What models said of pictures, by picture and version of the model. Removing its file costs only time.

    Args:
        url: SQLAlchemy URL.
    """

    def __init__(self, url: str):
        super().__init__(url, _metadata)

    def known(self, pictures: Sequence[str], model: str) -> dict[str, str]:
        """What a model said of these pictures, as far as it was asked; empty where it said nothing.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the store is there and cannot be read.
        """
        rows = self._rows(sa.select(_captions).where(_captions.c.model == model))
        wanted = set(pictures)
        return {row.picture: row.caption for row in rows if row.picture in wanted}

    def keep(self, captions: Mapping[str, str], model: str) -> None:
        """Keep what a model said; what another process kept meanwhile stays."""
        self._create_tables()
        try:
            with self._engine.begin() as connection:
                already = {
                    row.picture
                    for row in connection.execute(
                        sa.select(_captions.c.picture).where(
                            _captions.c.model == model, _captions.c.picture.in_(list(captions))
                        )
                    )
                }
                rows = [
                    {"picture": picture, "model": model, "caption": caption}
                    for picture, caption in captions.items()
                    if picture not in already
                ]
                if rows:
                    connection.execute(_captions.insert(), rows)
        except exc.IntegrityError:  # written by another process in between, with the same answer
            return


def caption_pictures(
    pictures: Sequence[str],
    read: "Callable[[str], Image]",
    captioner: Captioner,
    store: AutoCaptionStore,
    *,
    batch_size: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, AutoCaption]:
    """What the model says of pictures; asked once for each, and kept batch by batch.

    Args:
        pictures: ids.
        read: gives the RGB picture of an id.
        captioner: the model.
        store: where answers are kept.
        batch_size: pictures at a time.
        on_progress: told (done, in all).

    Returns:
        By picture; without those of which the model says nothing.
    """
    wanted = list(dict.fromkeys(pictures))
    found = store.known(wanted, captioner.version)
    missing = [picture for picture in wanted if picture not in found]
    for batch in _batches(missing, batch_size):
        said = dict(zip(batch, captioner.describe([read(picture) for picture in batch]), strict=True))
        store.keep(said, captioner.version)
        found |= said
        if on_progress:
            on_progress(len(found), len(wanted))
    return {picture: AutoCaption(found[picture], captioner.name) for picture in wanted if found[picture]}


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnfit(f"{folder} has no config.json that names a model_type: it is no transformers model") from error
