"""The race of alternatives: other shapes of the embedded base and other ways to train it, each for the same CPU time.

All begin from nothing, learn the pictures of ``genai pretrain``, and draw the same prompts from the same noise with
their EMA weights. What one alternative changes is all that it changes, but for what makes its parameters about as many.
Time is CPU time of training; compiling, drawing and what is calculated once for all runs (vectors of prompts and
pictures) are not in it. Training the autoencoder of the latent model is.

    python -m benchmarks.quality.alternatives                        all, one after another: hours
    python -m benchmarks.quality.alternatives default patch_4        the named ones
    python -m benchmarks.quality.alternatives --table                what was found so far, and the sheet

Belongs here: what the alternatives are, and how they are held against each other. What came out is in
docs/experiments.md; a winner moves into ``genai_assets.diffusion``. Results lie below the home; one that is there is
not run again.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.quality import sheets
from benchmarks.race import Racer, pictures_of
from genai_assets import durable
from genai_assets.console import make_console, read_settings, say, table_of
from genai_assets.diffusion.base_model import new_pipeline
from genai_assets.diffusion.batches import BatchSource
from genai_assets.diffusion.compilation import can_compile
from genai_assets.diffusion.config import DenoiserConfig, TrainingConfig
from genai_assets.diffusion.devices import keep_freed_memory
from genai_assets.diffusion.families.prx import PRXPixel
from genai_assets.diffusion.pretraining import RESOLUTION, learnt_rows, pretraining_cache, pretraining_config
from genai_assets.diffusion.training_cache import TrainingCache, to_model_range
from genai_assets.evaluation import metrics
from genai_assets.evaluation.features import PictureFeatures, picture_network
from genai_assets.settings import Settings

DECAY_SHARE = 0.3
POINTS = (1 / 3, 2 / 3, 1.0)
DRAWN, REAL, GUIDANCE = 240, 1500, 3.0
SHEET_STYLE = "noto"
_VALIDATED = 192


class Entrant(Racer):
    """A model in training whose rate falls to zero over the last part of its CPU time."""

    family_class: type[PRXPixel] = PRXPixel

    def __init__(
        self,
        alternative: "Alternative",
        cache: TrainingCache,
        rows: np.ndarray,
        config: TrainingConfig,
        seconds: float,
        compiled_code: Path | None,
    ):
        self.alternative, self.budget = alternative, seconds
        super().__init__(self.family_class, self.make, cache, rows, config, compiled_code)

    def make(self) -> Any:
        """The random pipeline; the same at every call."""
        return new_pipeline(self.alternative.denoiser, resolution=RESOLUTION, seed=0)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        left = (1 - self.seconds / self.budget) / DECAY_SHARE
        return self.config.learning_rate_at(self.step) * min(1.0, max(0.0, left))


class WithPlainPrompts(Entrant):
    """Every picture has its label alone, without keywords."""

    def new_source(self, cache: TrainingCache, rows: np.ndarray) -> BatchSource:
        """As ever, with the first prompt of each picture only."""
        labels = cache.rows.assign(prompts=[own[:1] for own in cache.rows["prompts"]])
        return BatchSource(replace(cache, rows=labels), self.family, rows, self.config)


class ConvolutionalStem(nn.Module):
    """Three convolutions, each halving the picture, in the place of the linear layers on patches of 8 pixels.

    Early convolutions help transformers to see (Xiao et al. 2021). The tokens are as many, and as wide.
    """

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 48, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(48, 96, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(96, width, 3, stride=2, padding=1),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens [B, T, width] of patches [B, T, 3 * 8 * 8]."""
        side = int(patches.shape[1] ** 0.5)
        picture = functional.fold(patches.transpose(1, 2), (side * 8, side * 8), kernel_size=8, stride=8)
        return self.layers(picture).flatten(2).transpose(1, 2)


class WithConvolutions(Entrant):
    """A shallow convolutional stem."""

    def make(self) -> Any:
        """With the stem in place."""
        pipeline = super().make()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipeline.transformer.img_in = ConvolutionalStem(self.alternative.denoiser.hidden_size)
        return pipeline


def _forward_of_blocks(self: Any, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **told: Any):
    """PRX's own forward pass, with the two places that alternatives need: around the middle blocks, and after one.

    ``self.route`` has numbers of tokens that alone pass the middle blocks, or None; the tokens after block
    ``ALIGNED_BLOCK`` are left in ``self.seen``.
    """
    from diffusers.models.transformers.transformer_prx import get_image_ids, img2seq, seq2img

    text, tokens = self.txt_in(encoder_hidden_states), self.img_in(img2seq(hidden_states, self.patch_size))
    count, _, height, width = hidden_states.shape
    places = self.pe_embedder(
        get_image_ids(count, height, width, patch_size=self.patch_size, device=hidden_states.device)
    )
    level = self._compute_timestep_embedding(timestep, dtype=tokens.dtype)
    routed = self.route is not None and torch.is_grad_enabled()
    whole, own_places = tokens, places
    for number, block in enumerate(self.blocks):
        if routed and number == 1:
            whole, tokens = tokens, tokens[:, self.route]
            own_places = places.index_select(places.ndim - 4, self.route)
        tokens = block(
            hidden_states=tokens,
            encoder_hidden_states=text,
            temb=level,
            image_rotary_emb=own_places,
            attention_mask=told.get("attention_mask"),
        )
        if routed and number == len(self.blocks) - 2:
            tokens, own_places = whole.index_copy(1, self.route, tokens.to(whole.dtype)), places
        if number == ALIGNED_BLOCK:
            self.seen = tokens
    shape: Any = hidden_states.shape  # as diffusers itself passes it, for what it declares a tensor
    return (seq2img(self.final_layer(tokens, level), self.patch_size, shape),)


ALIGNED_BLOCK = 2
ROUTED_SHARE = 0.5


class RoutedPRX(PRXPixel):
    """Half of the tokens, others in each step, pass all blocks but the first and the last by (Krause et al. 2025)."""

    def predict(self, denoiser: Any, noisy: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """As ever, after a choice of tokens that derives from the batch."""
        tokens = (noisy.shape[-1] // self.denoiser.config.patch_size) ** 2
        dice = np.random.default_rng(np.frombuffer(level[:1].numpy().tobytes(), np.uint8).tolist())
        chosen = np.sort(dice.permutation(tokens)[: int(tokens * (1 - ROUTED_SHARE))])
        self.denoiser.route = torch.from_numpy(chosen)
        return super().predict(denoiser, noisy, level, conditions)


class Routed(Entrant):
    """Token routing, in training only."""

    family_class = RoutedPRX

    def make(self) -> Any:
        """With a forward pass that routes."""
        pipeline = super().make()
        pipeline.transformer.route = None
        pipeline.transformer.forward = MethodType(_forward_of_blocks, pipeline.transformer)
        return pipeline


class AlignedPRX(PRXPixel):
    """Tokens in the middle shall tell what the feature extractor sees in the clean picture (REPA; Yu et al. 2024)."""

    weight = 0.5
    side = 4  # of the extractor's map at 128 pixels

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self._network = picture_network()
        self._maps: dict[str, Tensor] = {}

    def losses(
        self,
        denoiser: Any,
        clean: Tensor,
        noise: Tensor,
        level: Tensor,
        conditions: Mapping[str, Tensor],
        config: TrainingConfig,
    ) -> Tensor:
        """And ``weight`` times one less the mean cosine between projected tokens and the extractor's map."""
        losses = super().losses(denoiser, clean, noise, level, conditions, config)
        if not torch.is_grad_enabled():
            return losses
        seen = self.denoiser.seen.float()
        fold = int(seen.shape[1] ** 0.5) // self.side
        seen = seen.unflatten(1, (self.side, fold, self.side, fold)).mean((2, 4)).flatten(1, 2)
        found = self.denoiser.projector(seen)
        return losses + self.weight * (1 - functional.cosine_similarity(found, self.see(clean), dim=-1).mean(1))

    def see(self, clean: Tensor) -> Tensor:
        """The extractor's map of pictures [B, 3, H, W], float32 [B, side * side, 1280]; each looked at once."""
        keys = [durable.digest_bytes(picture.numpy().tobytes()) for picture in clean]
        new = [number for number, key in enumerate(keys) if key not in self._maps]
        if new:
            with torch.no_grad():
                shown = functional.interpolate(
                    clean[new] * 127.5 + 127.5, size=(128, 128), mode="bicubic", antialias=True
                )
                maps = self._network.extract_features((shown.clamp(0, 255) - 127) / 128).flatten(2).transpose(1, 2)
            self._maps.update(zip([keys[number] for number in new], maps.half(), strict=True))
        return torch.stack([self._maps[key].float() for key in keys])


class Aligned(Entrant):
    """Representation alignment."""

    family_class = AlignedPRX
    family: AlignedPRX

    def __init__(self, *given: Any):
        super().__init__(*given)
        # Looked at beforehand, as prompts are encoded beforehand: a long run looks at each picture once, a short one
        # would have to bear it all.
        [codes] = self.source.cache.codes.values()
        slots = np.unique(self.source.cache.rows["slot"].to_numpy()[self.source._buckets[0].learnt.rows])
        for start in range(0, len(slots), 256):
            self.family.see(to_model_range(np.array(codes[slots[start : start + 256]])))

    def make(self) -> Any:
        """With a projector as a part of the denoiser."""
        pipeline = super().make()
        denoiser = pipeline.transformer
        denoiser.route = None
        denoiser.forward = MethodType(_forward_of_blocks, denoiser)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            width = self.alternative.denoiser.hidden_size
            denoiser.projector = nn.Sequential(nn.Linear(width, 768), nn.SiLU(), nn.Linear(768, 1280))
        return pipeline


class Latents:
    """A small stock autoencoder, trained here: 64 x 64 pixels become 8 x 8 latents of 16 channels and unit variance."""

    channels, shrinks, share = 16, 8, 0.25
    """``share``: the part of an alternative's CPU time that the autoencoder is trained for."""

    def __init__(self, codes: np.ndarray, seconds: float):
        from diffusers import AutoencoderTiny

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._network: Any = AutoencoderTiny(
                encoder_block_out_channels=(32,) * 4,
                decoder_block_out_channels=(32,) * 4,
                latent_channels=self.channels,
                num_encoder_blocks=(0, 1, 1, 1),
                num_decoder_blocks=(1, 1, 1, 0),
            ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.mean, self.deviation = torch.zeros(1), torch.ones(1)
        self._train(codes, seconds)
        some = self.encode(codes[:2048])
        self.mean, self.deviation = some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True)

    def _train(self, codes: np.ndarray, seconds: float) -> None:
        """Absolute and squared error; latents get some noise, so that what is decoded need not be exact."""
        optimizer = torch.optim.AdamW(self._network.parameters(), lr=2e-3)
        dice, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        begun = time.process_time()
        while (spent := time.process_time() - begun) < seconds:
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 2 * (1 - spent / seconds))
            clean = self._shown(codes[dice.integers(len(codes), size=64)])
            with torch.autocast("cpu", torch.bfloat16):
                latents = self._network.encode(clean).latents.float()
                spread = latents.detach().std((0, 2, 3), keepdim=True)
                noisy = latents + 0.1 * spread * torch.randn(latents.shape, generator=generator)
                error = self._network.decode(noisy).sample.float() - clean
            (error.square().mean() + error.abs().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

    @staticmethod
    def _shown(codes: np.ndarray) -> Tensor:
        return to_model_range(np.array(codes)).contiguous(memory_format=torch.channels_last)

    def encode(self, codes: np.ndarray) -> Tensor:
        """Latents of uint8 pictures [N, 64, 64, 3], float32 [N, 16, 8, 8]."""
        found = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(codes), 256):
                found.append(self._network.encode(self._shown(codes[start : start + 256])).latents.float())
        return (torch.cat(found).contiguous() - self.mean) / self.deviation

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures float32 [N, 3, 64, 64] of latents."""
        with torch.no_grad():
            return self._network.decode(latents * self.deviation + self.mean).sample

    def postprocess(self, latents: Tensor, output_type: str) -> list[Image.Image]:
        """In the place of a pixel pipeline's own: decoded pictures, PIL whatever is asked."""
        codes = ((self.decode(latents).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(code) for code in codes]


class LatentPRX(PRXPixel):
    """PRX on latents: a latent pixel is a token."""

    def _noise(self, seeds: Sequence[int], side: int) -> Tensor:
        return super()._noise(seeds, side // Latents.shrinks)


class LatentSource(BatchSource):
    """Batches whose clean pictures are latents, made when they are asked for."""

    latents: Tensor

    def _to_clean(self, codes: np.ndarray, rows: np.ndarray) -> Tensor:
        return self.latents[torch.from_numpy(self._slot[rows])]


class OnLatents(Entrant):
    """A latent model in Stable Diffusion's layout; its autoencoder is trained first, within the same CPU time."""

    family_class = LatentPRX

    def __init__(self, alternative: "Alternative", cache: TrainingCache, rows: np.ndarray, *given: Any):
        [codes] = cache.codes.values()
        learnt = np.asarray(codes[np.unique(cache.rows["slot"].to_numpy()[rows])])
        self.latents = Latents(learnt, Latents.share * given[1])
        self._all = self.latents.encode(np.asarray(codes))
        super().__init__(alternative, cache, rows, *given)
        self.seconds = Latents.share * given[1]

    def new_source(self, cache: TrainingCache, rows: np.ndarray) -> BatchSource:
        """Of latents."""
        source = LatentSource(cache, self.family, rows, self.config)
        source.latents = self._all
        return source

    def make(self) -> Any:
        """On 16 channels, with the autoencoder behind it."""
        pipeline = super().make()
        stock = pipeline.transformer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipeline.transformer = type(stock).from_config({**stock.config, "in_channels": Latents.channels})
        pipeline.image_processor = self.latents
        return pipeline


@dataclass(frozen=True)
class Alternative:
    """One way to make a base.

    Attributes:
        what: it changes, in a few words.
        denoiser: its shape.
        training: what of ``pretraining_config`` it changes.
        entrant: how it is built and trained.
    """

    what: str
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    training: Mapping[str, Any] = field(default_factory=dict)
    entrant: type[Entrant] = Entrant


ALTERNATIVES: dict[str, Alternative] = {
    "default": Alternative("as `genai pretrain` has it: Muon, 1.2e-3"),
    "adamw": Alternative("AdamW, 8e-4", training={"optimizer": "adamw", "learning_rate": 8e-4}),
    "plain_prompts": Alternative("prompts without keywords", entrant=WithPlainPrompts),
    "patch_4": Alternative("patches of 4 pixels, 256 tokens", DenoiserConfig(patch_size=4, bottleneck_size=48)),
    "patch_16": Alternative("patches of 16 pixels, 16 tokens", DenoiserConfig(patch_size=16, bottleneck_size=256)),
    "wide": Alternative("width 512, 4 blocks", DenoiserConfig(hidden_size=512, num_heads=8, depth=4, mlp_ratio=2.0)),
    "deep": Alternative("width 256, 14 blocks", DenoiserConfig(hidden_size=256, num_heads=4, depth=14, mlp_ratio=2.5)),
    "stem": Alternative("three convolutions in the place of linear layers on patches", entrant=WithConvolutions),
    "routed": Alternative("half of the tokens pass blocks 2 to 5 by", entrant=Routed),
    "aligned": Alternative("tokens aligned to the feature extractor after block 3", entrant=Aligned),
    "latent": Alternative(
        "8 x 8 latents of an autoencoder that has a quarter of the time",
        DenoiserConfig(patch_size=1, bottleneck_size=16),
        entrant=OnLatents,
    ),
}


class Judge:
    """Draws the same prompts with every model, and holds the pictures against real ones of other concepts."""

    def __init__(self, cache: TrainingCache, rows: np.ndarray):
        table = cache.rows.iloc[rows]
        own = rows[(table["weight"] == 1).to_numpy()]  # no variants
        chosen = np.random.default_rng(0).permutation(own)
        self.asked, real = chosen[:DRAWN], chosen[DRAWN:][:REAL]
        self.prompts = [cache.rows["texts"].iloc[row][0] for row in self.asked]
        self.features = PictureFeatures()
        self.real = self.features.extract(pictures_of(cache, real))
        self.own = self._measured(self.features.extract(pictures_of(cache, self.asked)))
        self.validation = cache.select("validation")[:_VALIDATED]

    def _measured(self, features: np.ndarray) -> np.ndarray:
        """Vectors of one length, every number as unusual as any other."""
        scaled = (features - self.real.mean(0)) / (self.real.std(0) + 1e-3)
        return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)

    def look(self, entrant: Entrant) -> dict[str, float]:
        """CPU seconds, steps, KID, and how often a drawn picture is likest to the real one of its own prompt."""
        drawn = self.features.extract(entrant.draw(self.prompts, guidance_scale=GUIDANCE))
        kid = metrics.kid(self.real, drawn, seed=0)
        likeness = self._measured(drawn) @ self.own.T
        rank = (likeness > likeness.diagonal()[:, None]).sum(1)
        return {
            "seconds": entrant.seconds,
            "steps": entrant.step,
            "kid": kid.mean,
            "error": kid.standard_error,
            "own_first": float((rank == 0).mean()),
            "own_in_five": float((rank < 5).mean()),
        }

    def loss(self, entrant: Entrant) -> float:
        """Of concepts that were not learnt, with the weights that draw; a latent model's is of latents."""
        painter, losses = entrant.painter, []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for batch in entrant.source.validation_batches(self.validation):
                losses += painter.losses(
                    painter.denoiser, batch.clean, batch.noise, batch.level, batch.conditions, entrant.config
                ).tolist()
        return float(np.mean(losses))


def run(
    name: str, minutes: float, cache: TrainingCache, settings: Settings, out: Path, tell: Callable[[str], None]
) -> None:
    """Train one alternative and write ``NAME.json`` and ``NAME.png``."""
    alternative = ALTERNATIVES[name]
    rows = learnt_rows(cache)
    changed = {"batch_size": 64, "decay_share": 0.0, **alternative.training}
    config = pretraining_config(steps=10**6).model_copy(update=changed)
    judge = Judge(cache, rows)
    compiled_code = settings.paths.compiled if can_compile() else None
    entrant = alternative.entrant(alternative, cache, rows, config, minutes * 60, compiled_code)
    tell(f"{name}: {entrant.parameters:,} parameters, compiled in {entrant.compile_seconds:.0f} s")
    points = []
    for share in POINTS:
        entrant.train_until(share * minutes * 60)
        points.append(judge.look(entrant))
        last = points[-1]
        tell(
            f"{name}: {last['seconds']:.0f} CPU s, {entrant.step} steps, KID {last['kid']:.3f} ± {last['error']:.3f}, "
            f"own picture first {last['own_first']:.0%}"
        )
    prompts = [settings.fine_tune.prompt(thing, SHEET_STYLE) for thing in sheets.THINGS]
    shown = entrant.draw(prompts, guidance_scale=GUIDANCE)
    with durable.replacing(out / f"{name}.png") as temporary:
        Image.fromarray(np.concatenate(list(shown), axis=1)).save(temporary, format="PNG")
    durable.write_json(
        out / f"{name}.json",
        {
            "name": name,
            "what": alternative.what,
            "minutes": minutes,
            "parameters": entrant.parameters,
            "gradient_error": entrant.gradient_error,
            "validation_loss": judge.loss(entrant),
            "points": points,
        },
    )


def found(out: Path, minutes: float) -> list[dict[str, Any]]:
    """What alternatives came to that were run for so long, the smallest last KID first."""
    written = [path for name in ALTERNATIVES if (path := out / f"{name}.json").exists()]
    results = [result for path in written if (result := json.loads(path.read_text()))["minutes"] == minutes]
    return sorted(results, key=lambda result: result["points"][-1]["kid"])


COLUMNS = ("", "steps", "loss", "KID, a third", "two thirds", "the end", "own first")


def cells(result: Mapping[str, Any]) -> list[str]:
    """What the table says of one; the last is how often a picture is likest to the real one of its own prompt."""
    points = result["points"]
    kids = [f"{point['kid']:.3f}" for point in points]
    kids[-1] += f" ± {points[-1]['error']:.3f}"
    return [
        result["name"],
        f"{points[-1]['steps']:,}",
        f"{result['validation_loss']:.3f}",
        *kids,
        f"{points[-1]['own_first']:.0%}",
    ]


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """For a page of the docs: the table, and what each alternative is."""
    lines = ["| " + " | ".join((COLUMNS[0], "what", "parameters", *COLUMNS[1:])) + " |"]
    lines += ["|---" * (len(COLUMNS) + 2) + "|"]
    for result in results:
        name, *figures = cells(result)
        lines.append("| " + " | ".join((name, result["what"], f"{result['parameters'] / 1e6:.1f} M", *figures)) + " |")
    return "\n".join(lines) + "\n"


def draw_sheet(results: Sequence[Mapping[str, Any]], out: Path, path: Path) -> None:
    """A row an alternative, as they rank: twelve things in one style."""
    rows = {}
    for result in results:
        strip = Image.open(out / f"{result['name']}.png").convert("RGB")
        side = strip.height
        rows[result["name"]] = [strip.crop((side * i, 0, side * (i + 1), side)) for i in range(strip.width // side)]
    sheets.write_sheet(rows, sheets.THINGS, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named alternatives, or all; then tell what was found so far."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.alternatives", description="The race of alternatives."
    )
    parser.add_argument("names", nargs="*", choices=[[], *ALTERNATIVES], help="which; none: all", metavar="NAME")
    parser.add_argument("--minutes", type=float, default=15.0, help="CPU minutes of training for each")
    parser.add_argument("--table", action="store_true", help="run nothing")
    asked = parser.parse_args(arguments)
    if asked.minutes <= 0:
        parser.error("--minutes must be above 0")
    console, settings = make_console(), read_settings()
    out = settings.home / "quality" / "alternatives"
    out.mkdir(parents=True, exist_ok=True)
    if not asked.table:
        keep_freed_memory()
        cache = TrainingCache.open(pretraining_cache(settings).path)
        for name in asked.names or ALTERNATIVES:
            if name not in {result["name"] for result in found(out, asked.minutes)}:
                run(name, asked.minutes, cache, settings, out, lambda text: say(console, text))
    results = found(out, asked.minutes)
    if not results:
        say(console, f"Nothing was run for {asked.minutes:g} CPU minutes yet.")
        return 0
    table = table_of(*COLUMNS, title=f"The race of alternatives, {asked.minutes:g} CPU minutes each")
    for result in results:
        table.add_row(*cells(result))
    console.print(table)
    draw_sheet(results, out, out / "sheet.png")
    durable.write_text(out / "table.md", markdown(results))
    say(console, f"The table as Markdown: {out / 'table.md'}. Look at {out / 'sheet.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
