"""Time to equal KID: our denoiser against a diffusers UNet of as many parameters, both trained from nothing.

Ours is the default PRX pixel transformer, trained as ``genai pretrain`` trains it; in a race of less than half an hour
with values fit for so few steps. The peer is a text-conditioned ``UNet2DConditionModel`` on the same 64-pixel pictures:
three parts in a thousand fewer parameters, attention on its two coarsest levels. All else is the same for both:
pictures, prompts and their embeddings, objective (flow matching with prediction of the clean picture), noise levels,
batch, optimizer, learning rate, EMA, bf16, the compiler and its options; each has the attention that trains fastest for
it. They take turns until both have had as much CPU time.

On the way pictures are drawn with the EMA weights and held against real ones. The ratio is the peer's whole CPU time
over the CPU time from which on ours was at the peer's last KID or below, read off ours' curve between two points; a KID
that an untrained model has, too, counts for nothing. What drawing and compiling cost is in neither.

    python -m benchmarks.race                    a few minutes each: the first pictures at best; may stay undecided
    python -m benchmarks.race --minutes 60       CPU minutes of training for each

Pictures are those of the pre-training cache of the home, when it is built (``genai pretrain --steps 1`` builds it);
else coloured shapes made on the spot, for which no network is needed. The result says which.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.training import floating_point_operations, gradient, multiplications_per_second
from genai_assets.artifacts import ArtifactStore
from genai_assets.diffusion.base_model import new_pipeline
from genai_assets.diffusion.batches import BatchSource
from genai_assets.diffusion.compilation import can_compile
from genai_assets.diffusion.config import DenoiserConfig, TrainingConfig
from genai_assets.diffusion.devices import keep_freed_memory, mixed_precision
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.families.prx import PRXPixel
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.optimizers import build_optimizer
from genai_assets.diffusion.pretraining import RESOLUTION, learnt_rows, pretraining_config
from genai_assets.diffusion.training_cache import TrainingCache, build_training_cache
from genai_assets.evaluation import metrics
from genai_assets.evaluation.features import PictureFeatures
from genai_assets.settings import Settings

GOAL = 4.0
SHARE_OF_PEAK = 0.45
CPU = torch.device("cpu")
# A short race has hundreds of steps, not thousands. On both sides: smaller batches, a shorter warm-up, and AdamW, for a
# step of Muon costs the same whatever the batch.
SHORT_RACE = {"batch_size": 64, "warmup_steps": 40, "optimizer": "adamw", "learning_rate": 8e-4}
LONG_RACE_MINUTES = 30.0
DRAWN, REAL, DRAWING_STEPS = 160, 1500, 8
_DRAWN_AT_ONCE = 32
OUR_POINTS = (1 / 16, 1 / 11, 1 / 8, 1 / 5.6, 1 / 4, 1 / 2, 1.0)
PEER_POINTS = (1 / 2, 1.0)
_LARGEST_GRADIENT_ERROR = 0.1


@dataclass(frozen=True)
class Point:
    """What a model had reached after so much training.

    Attributes:
        seconds: CPU time of training.
        kid: distance of its pictures to real ones.
        error: standard error of ``kid``.
    """

    seconds: float
    kid: float
    error: float = 0.0


def time_to_reach(curve: Sequence[Point], kid: float) -> float | None:
    """CPU seconds after which a curve is at ``kid`` or below for good; None when it does not end there.

    Between two points KID is taken to fall evenly with the logarithm of time, as it roughly does while it falls. Of a
    curve that is nowhere above ``kid`` it is only known that the time is at most that of its first point.
    """
    points = sorted(curve, key=_seconds)
    above = [number for number, point in enumerate(points) if point.kid > kid]
    if not above:
        return points[0].seconds
    if above[-1] == len(points) - 1:
        return None
    before, after = points[above[-1] :][:2]
    way = (before.kid - kid) / (before.kid - after.kid)
    return math.exp(math.log(before.seconds) + way * math.log(after.seconds / before.seconds))


@dataclass(frozen=True)
class Outcome:
    """How the race ended.

    Attributes:
        ratio: how many times sooner ours is where the peer ended; below 1, the peer is sooner where ours ended. None
            when neither draws better than an untrained model: then there is nothing that they could have reached.
        ours, peer: CPU seconds that each needed to ``kid``, or had.
        kid: what was to be reached.
        bound: whether ``ratio`` is only known to be at least (above 1) or at most (below 1) what it says.
    """

    ratio: float | None
    ours: float
    peer: float
    kid: float
    bound: bool = False


def judge(ours: Sequence[Point], peer: Sequence[Point], untrained: float) -> Outcome:
    """Compare two curves that end at about the same CPU time.

    A model that has hardly been trained draws grey noise, which has a smaller KID than the coloured blobs that come
    next: a KID above ``untrained`` is nothing to be reached.

    Raises:
        ValueError: a curve has no points.
    """
    if not ours or not peer:
        raise ValueError("each side of a race needs a point")
    if found := _way_to_end_of(peer, ours, untrained):
        whole, reached, kid, bound = found
        return Outcome(whole / reached, reached, whole, kid, bound)
    if found := _way_to_end_of(ours, peer, untrained):
        whole, reached, kid, bound = found
        return Outcome(reached / whole, whole, reached, kid, bound)
    return Outcome(None, max(map(_seconds, ours)), max(map(_seconds, peer)), untrained)


def _way_to_end_of(
    one: Sequence[Point], other: Sequence[Point], untrained: float
) -> tuple[float, float, float, bool] | None:
    """CPU seconds of one side, those of the other to the KID where the one ended, that KID, whether they only bound."""
    end = max(one, key=_seconds)
    kid = min(end.kid, untrained)
    reached = time_to_reach(other, kid)
    if reached is None:
        return None
    return end.seconds, reached, kid, end.kid > kid or min(map(_seconds, other)) == reached


def _seconds(point: Point) -> float:
    return point.seconds


class UNetPixel(PRXPixel):
    """A UNet in the place of the transformer: the same pictures, prompts, levels and loss, and drawn the same way."""

    name = "UNet on pixels"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")

    @property
    def side_multiple(self) -> int:
        """Each level halves the picture."""
        return 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    def predict(self, denoiser: Any, noisy: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The clean pictures; a UNet counts levels to 1,000."""
        return denoiser(
            noisy,
            level * 1000,
            encoder_hidden_states=conditions["embeddings"],
            encoder_attention_mask=conditions["mask"],
            return_dict=False,
        )[0]

    def use_fastest_for_training(self, device: torch.device) -> None:
        """Its attention is stock."""

    def fast_attention(self, device: torch.device) -> Any:
        """As every family of stock attention has it: explicit where that is faster."""
        return Family.fast_attention(self, device)


def our_pipeline() -> Any:
    """The default denoiser, random."""
    return new_pipeline(DenoiserConfig(), resolution=RESOLUTION, seed=0)


def peer_pipeline() -> Any:
    """The same pipeline with a random UNet of as many parameters in the denoiser's place."""
    from diffusers import UNet2DConditionModel

    pipeline = new_pipeline(DenoiserConfig(depth=1), resolution=RESOLUTION, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline.transformer = UNet2DConditionModel(
            sample_size=RESOLUTION,
            in_channels=3,
            out_channels=3,
            block_out_channels=(64, 96, 192, 224),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            cross_attention_dim=pipeline.text_encoder.config.hidden_size,
            attention_head_dim=8,
        )
    return pipeline


class Racer:
    """One side of the race: a model in training, and the same model with its EMA weights to draw with.

    Args:
        family: of the side.
        make: gives the side's pipeline, the same at every call.
        cache, rows: what is learnt.
        config: the run; of its steps only as many are done as there is time for.
        compiled_code: where compiled code is kept; None trains eagerly.
    """

    def __init__(
        self,
        family: type[PRXPixel],
        make: Callable[[], Any],
        cache: TrainingCache,
        rows: np.ndarray,
        config: TrainingConfig,
        compiled_code: Path | None,
    ):
        self.family, self.config = family(make()), config
        self.painter = family(make())
        self.painter.prepare_for_drawing(CPU, torch.bfloat16)
        self.parameters = sum(weight.numel() for weight in self.family.denoiser.parameters())
        self.source = self.new_source(cache, rows)
        self.step, self.seconds, self.wall_seconds = 0, 0.0, 0.0
        self.gradient_error = 0.0

        batch = self.source.batch(0)
        self.learner = Learner(self.family, config, CPU)
        small = batch.part(0, 8)
        self.operations = floating_point_operations(self.family, lambda: self.learner.module(small, len(small))) / 8
        begun = time.monotonic()
        if compiled_code is not None:
            exact = gradient(self.family, lambda: self.learner.module(batch, len(batch)))
            compiled = Learner(self.family, config, CPU, compiled="whole", compiled_code=compiled_code)
            with mixed_precision(CPU), self.family.fast_attention(CPU):
                found = gradient(self.family, lambda: compiled.module(batch, len(batch)))
            self.gradient_error = ((found - exact).norm() / exact.norm()).item()
            # Speed does not count where the result is another.
            if self.gradient_error < _LARGEST_GRADIENT_ERROR:
                self.learner = compiled
        self.compile_seconds = time.monotonic() - begun
        self.optimizer = build_optimizer(self.learner.parameters, config, self.learner.hidden_matrices)
        self.average = {name: value.detach().clone() for name, value in self.learner.parameters.items()}

    def new_source(self, cache: TrainingCache, rows: np.ndarray) -> BatchSource:
        """Where batches come from."""
        return BatchSource(cache, self.family, rows, self.config)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.config.learning_rate_at(self.step)

    def train_until(self, seconds: float) -> None:
        """Go on until so much CPU time has been spent on training in all."""
        cpu, wall, spent = time.process_time(), time.monotonic(), self.seconds
        while self.seconds < seconds:
            self._step()
            self.seconds = spent + time.process_time() - cpu
        self.wall_seconds += time.monotonic() - wall

    def _step(self) -> None:
        """One step of ``training.train``, without its looking for faults."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        batch = self.source.batch(self.step)
        with self.family.fast_attention(CPU):
            with mixed_precision(CPU):
                loss = self.learner.module(batch, len(batch))
            loss.backward()
        weights = list(self.learner.parameters.values())
        torch.nn.utils.clip_grad_norm_(weights, self.config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - self.config.ema_decay_at(self.step))
        self.step += 1

    def use_average(self) -> None:
        """Give the painter the EMA weights."""
        with torch.no_grad():
            for name, value in self.painter.denoiser.named_parameters():
                value.copy_(self.average[f"denoiser.{name}"])

    def draw(self, prompts: Sequence[str], *, guidance_scale: float = 1.0) -> np.ndarray:
        """Pictures by the EMA weights, uint8 [N, H, W, 3]: few steps, picture i from seed i; 1 is no guidance."""
        self.use_average()
        drawn: list[Image.Image] = []
        for start in range(0, len(prompts), _DRAWN_AT_ONCE):
            part = prompts[start : start + _DRAWN_AT_ONCE]
            drawn += self.painter.draw(
                part,
                seeds=range(start, start + len(part)),
                steps=DRAWING_STEPS,
                guidance_scale=guidance_scale,
                side=RESOLUTION,
                on_step=lambda _done: None,
            )
        return np.stack([np.asarray(picture) for picture in drawn])

    @property
    def pictures_per_second(self) -> float:
        """Of wall-clock time, in training."""
        return self.step * self.config.batch_size / max(self.wall_seconds, 1e-9)


class Judge:
    """Holds drawn pictures against real ones that are not what was asked for."""

    def __init__(self, cache: TrainingCache, rows: np.ndarray):
        dice = np.random.default_rng(0)
        chosen = dice.permutation(rows)
        asked, real = chosen[:DRAWN], chosen[DRAWN:][:REAL]
        self.prompts = [cache.rows["texts"].iloc[row][0] for row in asked]
        self.features = PictureFeatures()
        self.real = self.features.extract(pictures_of(cache, real))

    def look(self, racer: Racer) -> Point:
        """A point of a side's curve."""
        found = metrics.kid(self.real, self.features.extract(racer.draw(self.prompts)))
        return Point(racer.seconds, found.mean, found.standard_error)


def pictures_of(cache: TrainingCache, rows: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] of rows of a pixel cache with one bucket."""
    [codes] = cache.codes.values()
    return np.asarray(codes[cache.rows["slot"].to_numpy()[rows]])


def race(
    ours: Racer, peer: Racer, judge_of: Judge, seconds: float, tell: Callable[[str], None]
) -> tuple[list[Point], list[Point]]:
    """Train both in turns for so many CPU seconds each; their curves."""
    sides = {"ours": (ours, OUR_POINTS), "peer": (peer, PEER_POINTS)}
    curves: dict[str, list[Point]] = {"ours": [], "peer": []}
    for share in sorted({*OUR_POINTS, *PEER_POINTS}):
        for name, (racer, points) in sides.items():
            racer.train_until(share * seconds)
            if share in points:
                point = judge_of.look(racer)
                curves[name].append(point)
                tell(
                    f"{name}: {point.seconds:.0f} CPU s, {racer.step} steps, KID {point.kid:.3f} ± {point.error:.3f}, "
                    f"{racer.pictures_per_second:.1f} pictures/s"
                )
    return curves["ours"], curves["peer"]


def find_pictures(settings: Settings, folder: Path) -> tuple[TrainingCache, str]:
    """The pre-training cache of the home, or made-up pictures; and what they are."""
    found = ArtifactStore(settings.paths.artifacts).newest("pretraining_cache")
    if found is not None and found.inputs["resolution"] == RESOLUTION:
        return TrainingCache.open(found.path), "the pre-training icons of the home"
    return make_pictures(folder), "coloured shapes made on the spot"


COLOURS = ("red", "orange", "gold", "green", "teal", "blue", "navy", "purple", "pink", "brown", "gray", "black")
SHAPES = ("disc", "square", "triangle", "diamond", "ring", "cross", "star", "bar", "half moon", "arrow")


def make_pictures(folder: Path, limit: int | None = None) -> TrainingCache:
    """A cache of 1,320 pictures, or as many as asked, of a coloured shape with another small one on it."""
    table = [
        (
            f"{colour} {shape} with a small {other} {SHAPES[(number * 3 + place + 1) % len(SHAPES)]}",
            colour,
            shape,
            other,
        )
        for number, shape in enumerate(SHAPES)
        for place, colour in enumerate(COLOURS)
        for other in COLOURS
        if other != colour
    ][:limit]
    rows = pd.DataFrame({"caption": [caption for caption, *_ in table]})
    rows["id"] = [f"{number:04}" for number in range(len(rows))]
    rows["concept"] = rows["caption"]
    rows["category"] = [shape for _, _, shape, _ in table]
    rows["keywords"] = [()] * len(rows)
    rows = rows.assign(style="flat", split="train", variant=False)

    def read(record_id: str, size: tuple[int, int]) -> np.ndarray:
        caption, colour, shape, other = table[int(record_id)]
        small = caption.partition(f"small {other} ")[2]
        picture = Image.new("RGB", (4 * size[1], 4 * size[0]), "white")
        side = picture.width
        canvas = ImageDraw.Draw(picture)
        _draw_shape(canvas, shape, colour, (0.08 * side, 0.08 * side, 0.92 * side, 0.92 * side))
        _draw_shape(canvas, small, other, (0.58 * side, 0.58 * side, 0.92 * side, 0.92 * side))
        return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS))

    build_training_cache(
        rows,
        read,
        PRXPixel(new_pipeline(DenoiserConfig(depth=1), resolution=RESOLUTION, seed=0)),
        folder,
        resolution=RESOLUTION,
        prompt_template="{caption}, {style} style",
    )
    return TrainingCache.open(folder)


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: str, colour: str, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    width, height = right - left, bottom - top

    def at(*places: tuple[float, float]) -> list[tuple[float, float]]:
        return [(left + x * width, top + y * height) for x, y in places]

    def part(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return (left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height)

    if shape == "disc":
        canvas.ellipse(box, fill=colour)
    elif shape == "square":
        canvas.rectangle(box, fill=colour)
    elif shape == "triangle":
        canvas.polygon(at((0.5, 0), (1, 1), (0, 1)), fill=colour)
    elif shape == "diamond":
        canvas.polygon(at((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)), fill=colour)
    elif shape == "ring":
        canvas.ellipse(box, outline=colour, width=max(1, round(0.2 * width)))
    elif shape == "cross":
        canvas.rectangle(part(0.35, 0, 0.65, 1), fill=colour)
        canvas.rectangle(part(0, 0.35, 1, 0.65), fill=colour)
    elif shape == "star":
        turns = [(0.5 - 0.25 * (number % 2), number * math.pi / 5) for number in range(10)]
        canvas.polygon(at(*[(0.5 + r * math.sin(a), 0.5 - r * math.cos(a)) for r, a in turns]), fill=colour)
    elif shape == "bar":
        canvas.rectangle(part(0, 0.35, 1, 0.65), fill=colour)
    elif shape == "half moon":
        canvas.pieslice(box, 90, 270, fill=colour)
    elif shape == "arrow":
        canvas.polygon(at((1, 0.5), (0.5, 0), (0.5, 0.3), (0, 0.3), (0, 0.7), (0.5, 0.7), (0.5, 1)), fill=colour)


def run_config(minutes: float) -> TrainingConfig:
    """As ``genai pretrain`` has it, with a rate that never falls: any point of a curve could be its end."""
    own = {} if minutes >= LONG_RACE_MINUTES else SHORT_RACE
    return pretraining_config(steps=10**6).model_copy(update={**own, "decay_share": 0.0})


def main(arguments: Sequence[str] | None = None) -> None:
    """Race and print the result as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.race", description="Time to equal KID, ours and a UNet."
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="CPU minutes of training for each")
    minutes = parser.parse_args([] if arguments is None else arguments).minutes
    if minutes <= 0:
        parser.error("--minutes must be above 0")

    def tell(text: str) -> None:
        print(text, flush=True)

    keep_freed_memory()  # as a training process does; it serves both
    settings, config = Settings(), run_config(minutes)
    compiled_code = settings.paths.compiled if can_compile() else None
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        cache, what = find_pictures(settings, Path(folder))
        rows = learnt_rows(cache)
        tell(f"{len(rows):,} pictures: {what}")
        peak = multiplications_per_second(torch.bfloat16)
        judge_of = Judge(cache, rows)
        ours = Racer(PRXPixel, our_pipeline, cache, rows, config, compiled_code)
        tell(f"ours: {ours.parameters:,} parameters, compiled in {ours.compile_seconds:.0f} s")
        peer = Racer(UNetPixel, peer_pipeline, cache, rows, config, compiled_code)
        tell(f"peer: {peer.parameters:,} parameters, compiled in {peer.compile_seconds:.0f} s")
        untrained = judge_of.look(peer).kid
        tell(f"untrained: KID {untrained:.3f}")
        curves = race(ours, peer, judge_of, minutes * 60, tell)
    outcome = judge(*curves, untrained)
    shares = [racer.operations * racer.pictures_per_second / peak for racer in (ours, peer)]
    result = {
        "name": f"CPU seconds to KID {outcome.kid:.3f}, trained from nothing ({torch.get_num_threads()} threads)",
        "ours": round(outcome.ours, 1),
        "peer": round(outcome.peer, 1),
        "ratio": None if outcome.ratio is None else round(outcome.ratio, 2),
        "goal": GOAL,
        "quality": (
            f"{'the ratio is a bound; ' if outcome.bound else ''}after {minutes:g} CPU minutes KID "
            f"{curves[0][-1].kid:.3f} against {curves[1][-1].kid:.3f} (± {curves[1][-1].error:.3f}; untrained "
            f"{untrained:.3f}) on {what}; ours "
            f"trains at {shares[0]:.0%} of the bf16 matmul peak (goal {SHARE_OF_PEAK:.0%}), the peer at {shares[1]:.0%}"
        ),
        "parameters": [ours.parameters, peer.parameters],
        "pictures_per_second": [round(racer.pictures_per_second, 1) for racer in (ours, peer)],
        "gflop_a_picture": [round(racer.operations / 1e9, 2) for racer in (ours, peer)],
        "gradient_errors": [round(racer.gradient_error, 4) for racer in (ours, peer)],
        "matmul_gflops": round(peak / 1e9),
        "curves": [[[round(p.seconds, 1), round(p.kid, 4), round(p.error, 4)] for p in curve] for curve in curves],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
