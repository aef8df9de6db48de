"""Captions between raw_data and validated_data: people's corrections, and a model's captions where there are none.

No artifact of its own: what changes a caption is among the inputs of validated_data, and in the records' provenance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets.settings import Settings, sqlite_url
from genai_assets.stages.ground import OnProgress, told_as

if TYPE_CHECKING:
    import pandas as pd

    from genai_assets.datasets.auto_captions import Captioner
    from genai_assets.datasets.corrections import AutoCaption, CorrectionLog, Effective


@dataclass(frozen=True)
class CaptionsInForce:
    """What stands in place of the sources' captions; read once, so that a stage is made of what it says it is made of.

    Attributes:
        settings: ``captions``, and where pictures and answers lie.
        corrections: people's, those that count.
        captioner: the model of ``captions.model``; None when there is none.
    """

    settings: Settings
    corrections: "Effective"
    captioner: "Captioner | None"

    def inputs(self) -> dict[str, Any]:
        """What of it a stage is made from; empty when nobody corrected any caption and no model writes them."""
        from genai_assets.datasets.corrections import corrections_version

        inputs: dict[str, Any] = {}
        if self.corrections:
            inputs["corrections"] = corrections_version(self.corrections)
        if self.captioner:
            inputs["caption_model"] = self.captioner.version
        return inputs

    def apply(
        self, manifest: "pd.DataFrame", *, ask_model: bool = True, on_progress: OnProgress | None = None
    ) -> "pd.DataFrame":
        """A raw manifest with these captions; the very same table when there are none.

        Args:
            manifest: of raw_data.
            ask_model: look at pictures that the model has not seen yet; else only what it said before is used.
            on_progress: told of the model's progress.

        Raises:
            ModelUnfit: the model cannot be loaded.
        """
        from genai_assets.datasets.corrections import apply_captions

        blank = manifest.loc[manifest["caption"].fillna("").str.strip() == "", "id"].tolist()
        auto = self._auto_captions(blank, ask_model, on_progress) if blank else {}
        return apply_captions(manifest, self.corrections, auto) if self.corrections or auto else manifest

    def _auto_captions(
        self, pictures: Sequence[str], ask_model: bool, on_progress: OnProgress | None
    ) -> "dict[str, AutoCaption]":
        """What the model says of those pictures that can be looked at."""
        from genai_assets.datasets import decoding
        from genai_assets.datasets.auto_captions import AutoCaptionStore, caption_pictures
        from genai_assets.datasets.inspection import Inspections
        from genai_assets.datasets.picture_store import PictureStore

        if self.captioner is None:
            return {}
        settings, store = self.settings, PictureStore(self.settings.paths.pictures)
        with AutoCaptionStore(sqlite_url(settings.paths.auto_captions)) as kept:
            if ask_model:
                # What a worker refused is not decoded here; validation quarantines it anyway.
                with Inspections(settings) as inspections:
                    found = inspections.of(pictures, store)
                pictures = [picture for picture in pictures if not (found[picture].fault or found[picture].opt_out)]
            else:
                pictures = list(kept.known(pictures, self.captioner.version))
            return caption_pictures(
                pictures,
                lambda picture: decoding.decode(store.read(picture), max_pixels=settings.dataset.max_pixels),
                self.captioner,
                kept,
                batch_size=settings.captions.batch_size,
                on_progress=told_as("pictures captioned", on_progress),
            )


def captions_in_force(settings: Settings) -> CaptionsInForce:
    """What people corrected so far, and the model that the settings name.

    Raises:
        LogUnreadable: the log of corrections is there and cannot be read.
        ModelUnfit: the model is not here, or is none that describes pictures.
    """
    with correction_log(settings) as log:
        return CaptionsInForce(settings, log.effective(), _captioner(settings))


def correction_log(settings: Settings) -> "CorrectionLog":
    """The log of corrections of the home folder."""
    from genai_assets.datasets.corrections import CorrectionLog

    return CorrectionLog(sqlite_url(settings.paths.corrections))


def _captioner(settings: Settings) -> "Captioner | None":
    from genai_assets.datasets.auto_captions import Captioner, find_model
    from genai_assets.diffusion.devices import choose_device

    wanted = settings.captions
    if not wanted.model:
        return None
    folder = find_model(wanted.model, download=wanted.download and not settings.dataset.offline)
    # A path says something of this machine, a hub's name does not: manifests are handed on.
    name = "" if Path(wanted.model).expanduser().is_dir() else wanted.model
    return Captioner(
        folder, name=name, max_new_tokens=wanted.max_new_tokens, device=str(choose_device(settings.device))
    )
