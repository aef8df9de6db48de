"""Quality against time: noise schedulers, steps and guidance scales, each drawn and measured.

    python -m benchmarks.quality.curve                          the home's newest fine_tuned_model
    python -m benchmarks.quality.curve FOLDER --pictures 64 --steps 4 8 --noise-schedulers euler unipc
    python -m benchmarks.quality.curve --write                  puts table and picture into docs/sampling.md

Draws the evaluation's held-out prompts, with the settings in force and the same seeds for every point. First every
noise scheduler at every number of steps, with the guidance scale of the settings; then every guidance scale at the
cheapest point that is as good as any. What was measured is kept in the home: killed, the same command goes on. About
half an hour for 128 pictures on two cores.

Belongs here: which points are measured, the table and the picture. How a figure is computed is ``evaluation``.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.quality.figures import write_between
from genai_assets import durable, walkthrough
from genai_assets.console import StageProgress, make_console, read_settings, table_of
from genai_assets.diffusion.drawing.noise_schedulers import NOISE_SCHEDULERS, calls, use_noise_scheduler
from genai_assets.settings import Settings
from genai_assets.stages.evaluation import read_held_out
from genai_assets.stages.ground import artifact_store

if TYPE_CHECKING:
    from genai_assets.artifacts import Artifact

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "sampling.md", DOCS / "images" / "quality_time.png"
BEGIN, END = "<!-- the curve -->\n", "<!-- the curve ends -->\n"
STEPS = (4, 6, 8, 12, 16, 20, 30, 50)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CODE_VERSION = 2
MOST_BYTES = 60_000
"""Of the picture."""


@dataclass(frozen=True)
class Point:
    """One way to draw, and what came of it.

    Attributes:
        noise_scheduler: its name in ``drawing.noise_schedulers``.
        steps: denoising steps.
        guidance_scale: 1 is none.
        kid: to the real held-out pictures.
        kid_standard_error: of it.
        recall_at_1: share of pictures that are nearest to their own caption.
        seconds: a picture.
    """

    noise_scheduler: str
    steps: int
    guidance_scale: float
    kid: float
    kid_standard_error: float
    recall_at_1: float
    seconds: float

    @property
    def rows(self) -> int:
        """Rows that the denoiser computes for one picture."""
        return calls(self.noise_scheduler, self.steps) * (2 if self.guidance_scale > 1 else 1)


class Bench:
    """A model, what it is asked to draw, and what its pictures are measured with."""

    def __init__(self, model: Path, settings: Settings, data: "tuple[Artifact, Artifact, Artifact]"):
        from genai_assets.diffusion import sampling
        from genai_assets.diffusion.base_model import training_resolution
        from genai_assets.evaluation.agreement import AgreementProxy
        from genai_assets.evaluation.evaluate import KnownPictures
        from genai_assets.evaluation.feature_index import FeatureTable
        from genai_assets.evaluation.features import PictureFeatures, TextFeatures

        validated, features, split = data
        self.settings, self.splits = settings, split.data_version
        self._vectors: dict[Point, Path] = {}
        self.content = durable.digest_json(durable.digest_tree(model))[:16]
        self.held_out, table = read_held_out(settings, validated, split)
        known = FeatureTable.read(features.path)
        others = KnownPictures.from_rows(table[table["style"] != settings.dataset.house_style], known)
        self.extract = PictureFeatures(resolution=settings.evaluation.feature_resolution).extract
        self.real = self.extract(self.held_out.pictures)
        texts = TextFeatures()
        taught = texts.extract(others.captions) if others.caption_vectors is None else others.caption_vectors
        self.proxy = AgreementProxy.fit(others.vectors, taught)
        self.captions = texts.extract(self.held_out.captions)
        self.drawer = sampling.load(
            model,
            device=settings.device,
            resolution=training_resolution(settings),
            backend=settings.sampling.backend,
            cache=settings.paths.converted,
        )

    def measure(self, noise_scheduler: str, steps: int, guidance_scale: float) -> Point:
        """Draw every prompt and measure; what was measured before is read."""
        facts: dict[str, Any] = {
            "noise_scheduler": noise_scheduler,
            "steps": steps,
            "guidance_scale": guidance_scale,
        }

        def make(out: Path) -> dict[str, Any]:
            point, vectors = self._measure(**facts)
            np.save(out / "vectors.npy", vectors)
            return asdict(point)

        inputs = {
            "code": _CODE_VERSION,
            "model": self.content,
            "splits": self.splits,
            "prompts": durable.digest_json(list(self.held_out.prompts))[:16],
            "backend": self.settings.sampling.backend,
            "evaluation": self.settings.evaluation.model_dump(mode="json"),
            **facts,
        }
        artifact = artifact_store(self.settings).build("quality_time", inputs, make)
        point = Point(**artifact.summary)
        self._vectors[point] = artifact.file("vectors.npy")
        return point

    def worse(self, one: Point, other: Point) -> float:
        """By how many standard errors the KID of ``other`` is higher: of the difference, the prompts being the same."""
        from genai_assets.evaluation.metrics import kid_difference

        vectors = (np.load(self._vectors[point]) for point in (one, other))
        difference = kid_difference(self.real, *vectors, seed=self.settings.evaluation.seed)
        return difference.mean / max(difference.standard_error, 1e-12)

    def _measure(self, noise_scheduler: str, steps: int, guidance_scale: float) -> tuple[Point, np.ndarray]:
        from genai_assets.evaluation import metrics

        prompts, seed = list(self.held_out.prompts), self.settings.evaluation.seed
        use_noise_scheduler(self.drawer.family.pipeline, noise_scheduler)
        self.drawer.make_ready(len(prompts), guidance_scale=guidance_scale)
        began = time.perf_counter()
        drawn = self.drawer.draw(
            prompts,
            seeds=[seed + number for number in range(len(prompts))],
            steps=steps,
            guidance_scale=guidance_scale,
        )
        seconds = (time.perf_counter() - began) / len(prompts)
        vectors = self.extract(np.stack([np.asarray(picture) for picture in drawn]))
        distance = metrics.kid(self.real, vectors, seed=seed)
        ranks = metrics.retrieval_ranks(self.proxy.similarity(vectors, self.captions))
        point = Point(
            noise_scheduler,
            steps,
            guidance_scale,
            kid=distance.mean,
            kid_standard_error=distance.standard_error,
            recall_at_1=float((ranks <= 1).mean()),
            seconds=seconds,
        )
        return point, vectors


def cheapest_good(points: Sequence[Point], worse: Callable[[Point, Point], float]) -> Point:
    """The point of fewest rows that is as good as the one with the best KID.

    Args:
        points: one or more.
        worse: by how many standard errors the second's KID is higher than the first's.

    Raises:
        ValueError: there are none.
    """
    if not points:
        raise ValueError("there is no point to choose from")
    best = min(points, key=lambda point: point.kid)
    good = [point for point in points if point is best or worse(best, point) <= 1]
    return min(good, key=lambda point: (point.rows, point.kid))


def markdown(points: Sequence[Point], chosen: Point, pictures: int) -> str:
    """The table as the page has it."""
    lines = [
        f"{pictures} held-out prompts. The cheapest way whose KID is within one standard error (of the difference, the "
        "prompts being the same) of the best: "
        f"**{chosen.noise_scheduler}, {chosen.steps} steps, guidance {chosen.guidance_scale:g}**.",
        "",
        f"![KID over the rows that the denoiser computes, a line for each noise scheduler](images/{PICTURE.name})",
        "",
        "| noise scheduler | steps | guidance | denoiser rows a picture | KID | R@1 | seconds a picture |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {point.noise_scheduler} | {point.steps} | {point.guidance_scale:g} | {point.rows} | "
        f"{point.kid:.4f} ± {point.kid_standard_error:.4f} | {point.recall_at_1:.2f} | {point.seconds:.3f} |"
        for point in points
    ]
    return "\n".join(lines) + "\n"


def chart(points: Sequence[Point]) -> bytes:
    """KID over denoiser rows a picture, a line for each noise scheduler with one guidance scale: a small PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(7.2, 4.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    lines: dict[tuple[str, float], list[Point]] = {}
    for point in sorted(points, key=lambda point: point.rows):
        lines.setdefault((point.noise_scheduler, point.guidance_scale), []).append(point)
    for (name, guidance_scale), line in lines.items():
        axes.errorbar(
            [point.rows for point in line],
            [point.kid for point in line],
            yerr=[point.kid_standard_error for point in line],
            marker="o",
            markersize=3,
            linewidth=1,
            capsize=2,
            label=f"{name}, guidance {guidance_scale:g}",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("rows that the denoiser computes for a picture (time)")
    axes.set_ylabel("KID to real held-out pictures")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    small = io.BytesIO()
    Image.open(drawn).convert("RGB").quantize(48).save(small, format="PNG", optimize=True)
    return small.getvalue()


def write_page(table: str, picture: bytes, page: Path = PAGE, place: Path = PICTURE) -> None:
    """Put the table between the marks of a page, and the picture beside it.

    Raises:
        ValueError: the picture is too large, or the page has no marks.
    """
    if len(picture) > MOST_BYTES:
        raise ValueError(f"the picture has {len(picture)} bytes; {MOST_BYTES} are the most")
    write_between(page, BEGIN, END, table, what="curve")
    durable.write_bytes(place, picture)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0."""
    parser = argparse.ArgumentParser(description="Quality against time of noise schedulers, steps and guidance.")
    parser.add_argument("model", type=Path, nargs="?", help="a model folder; else the newest fine_tuned_model")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--noise-schedulers", nargs="+", default=list(NOISE_SCHEDULERS), choices=NOISE_SCHEDULERS)
    parser.add_argument("--guidance", type=float, nargs="*", default=list(GUIDANCE), help="scales tried at the end")
    parser.add_argument("--pictures", type=int, help="held-out prompts; else evaluation.pictures")
    parser.add_argument("--write", action="store_true", help="put table and picture into docs/")
    asked = parser.parse_args(arguments)
    settings, console = read_settings(), make_console()
    if asked.pictures:
        evaluation = settings.evaluation.model_copy(update={"pictures": asked.pictures})
        settings = settings.model_copy(update={"evaluation": evaluation})
    with StageProgress(console) as progress:
        model = asked.model or newest_model(settings)
        bench = Bench(model, settings, walkthrough.prepare(settings, progress))
        usual = settings.sampling.guidance_scale
        wanted = [(name, steps, usual) for name in asked.noise_schedulers for steps in asked.steps]
        points = [measured(bench, progress, number, len(wanted), way) for number, way in enumerate(wanted, start=1)]
        chosen = cheapest_good(points, bench.worse)
        further = [(chosen.noise_scheduler, chosen.steps, scale) for scale in asked.guidance if scale != usual]
        more = [measured(bench, progress, number, len(further), way) for number, way in enumerate(further, start=1)]
    chosen = cheapest_good([*points, *more], bench.worse)
    table = table_of("noise scheduler", "steps", "guidance", "rows", "KID", "R@1", "s a picture", title=str(model))
    for point in [*points, *more]:
        figures = (point.rows, f"{point.kid:.4f} ± {point.kid_standard_error:.4f}", f"{point.recall_at_1:.2f}")
        table.add_row(
            point.noise_scheduler, *map(str, (point.steps, point.guidance_scale, *figures)), f"{point.seconds:.3f}"
        )
    console.print(table)
    console.print(f"Cheapest among the best: {chosen.noise_scheduler}, {chosen.steps} steps, {chosen.guidance_scale:g}")
    if asked.write:
        write_page(markdown([*points, *more], chosen, len(bench.held_out.prompts)), chart([*points, *more]))
        console.print(f"Written: {PAGE}, {PICTURE}", soft_wrap=True)
    return 0


def measured(bench: Bench, progress: StageProgress, number: int, total: int, way: tuple[str, int, float]) -> Point:
    """One point, with a word of how far it is."""
    point = bench.measure(*way)
    progress.on_progress(f"{way[0]}, {way[1]} steps", number, total)
    return point


def newest_model(settings: Settings) -> Path:
    """The home's newest fine-tuned model.

    Raises:
        ValueError: there is none.
    """
    artifact = artifact_store(settings).newest("fine_tuned_model")
    if artifact is None:
        raise ValueError("there is no fine-tuned model in this home: run `genai train`, or name a model folder")
    return artifact.path


if __name__ == "__main__":
    raise SystemExit(main())
