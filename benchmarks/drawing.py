"""Drawing: ``sampling.Drawer`` with its default backend against a diffusers fp32 pipeline with a UNet of equal size.

Both draw 64 pixels from the same prompt embeddings, with guidance, the same number of steps and the same batch. Ours
is the shape of the embedded base (PRX on patches of the picture, no autoencoder). The peer is stock diffusers as it
comes: ``IFPipeline``, its only pipeline whose UNet draws pixels from a text, so that on neither side an autoencoder
counts; fp32; its UNet has the same number of parameters within one per cent. A Stable Diffusion of the same size would
draw on 8 by 8 latents, which costs less and needs an autoencoder; its figure is told beside the ratio.

Weights are random on both sides: speed does not depend on them, and quality is not compared. What the backend costs in
accuracy is: its pictures against ours in fp32, in dB. Where the home has an evaluated model, its KID is told.

All take turns within one run, so that a busy moment of the machine meets each; the median of the turns counts.
Converting is told beside the ratio and is not in it: it is paid once for a model, and kept.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from genai_assets.diffusion import sampling
from genai_assets.diffusion.base_model import new_pipeline
from genai_assets.diffusion.config import DenoiserConfig
from genai_assets.diffusion.drawing.openvino_denoiser import FEWEST_THREADS
from genai_assets.diffusion.drawing.parity import psnr

GOAL = 10.0
STEPS = 4
BATCH = 16
TURNS = 3
GUIDANCE = 3.0
SIDE, TOKENS, WIDTH = 64, 20, 384
PROMPTS = [f"picture {number}" for number in range(BATCH)]
CPU = torch.device("cpu")

clock = time.perf_counter


def our_pipeline() -> Any:
    """Random weights in the shape of the embedded base."""
    return new_pipeline(DenoiserConfig(), resolution=SIDE, seed=0)


def parameters(module: torch.nn.Module) -> int:
    """How many a module has."""
    return sum(weight.numel() for weight in module.parameters())


def new_unet(side: int, channels: int, out_channels: int) -> Any:
    """The UNet that ``benchmarks.race`` trains against ours, as large as ours; the same at every call."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=out_channels,
        block_out_channels=(64, 96, 192, 224),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    ).eval()


def pixel_peer() -> Callable[[], Any]:
    """Draws a batch of 64-pixel pictures with ``IFPipeline`` in fp32."""
    from diffusers import DDPMScheduler, IFPipeline

    parts: dict[str, Any] = dict.fromkeys(
        ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
    )
    noise_scheduler = DDPMScheduler(variance_type="learned_range", beta_schedule="squaredcos_cap_v2")
    pipeline: Any = IFPipeline(
        **parts, unet=new_unet(SIDE, 3, 6), scheduler=noise_scheduler, requires_safety_checker=False
    )
    return drawn_by(pipeline)


def latent_peer() -> Callable[[], Any]:
    """Draws a batch of 64-pixel pictures with ``StableDiffusionPipeline`` in fp32: 8 by 8 latents, an autoencoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    noise_scheduler: Any = DDIMScheduler(steps_offset=1, clip_sample=False)

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "block_out_channels": (32, 64, 128, 128),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
    }
    parts: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor"))
    pipeline: Any = StableDiffusionPipeline(
        **parts,
        vae=AutoencoderKL(**shape).eval(),
        unet=new_unet(SIDE // 8, 4, 4),
        scheduler=noise_scheduler,
        requires_safety_checker=False,
    )
    return drawn_by(pipeline)


def drawn_by(pipeline: Any) -> Callable[[], Any]:
    """Draws a batch with a stock pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    return lambda: (
        pipeline(
            **embeddings(),
            height=SIDE,
            width=SIDE,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators(),
        ).images
    )


def embeddings() -> dict[str, torch.Tensor]:
    """Prompts for a peer, as long and wide as ours are encoded to."""
    made = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(BATCH, TOKENS, WIDTH, generator=made) for name in ("prompt_embeds", "negative_prompt_embeds")
    }


def generators() -> list[torch.Generator]:
    """One a picture."""
    return [torch.Generator().manual_seed(number) for number in range(BATCH)]


def seconds(run: Callable[[], Any]) -> float:
    """How long a call takes."""
    begun = clock()
    run()
    return clock() - begun


def race(runs: dict[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, list[float]]:
    """All in turns, after a call each to warm up; pictures a second of each turn."""
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            rates[name].append(BATCH / seconds(run))
    return rates


def ratio(rates: dict[str, list[float]], peer: str) -> float:
    """How many times as many pictures a second ours draws; the median of the turns."""
    return statistics.median(map(float.__truediv__, rates["ours"], rates[peer]))


def kid_at_hand() -> str:
    """The figures of the home's newest evaluation, in words."""
    from genai_assets.settings import Settings
    from genai_assets.stages.evaluation import read_metrics
    from genai_assets.stages.ground import artifact_store

    report = artifact_store(Settings()).newest("eval_report")
    if report is None:
        return "no trained model at hand, hence no KID"
    metrics = read_metrics(report)
    figures = metrics["models"]["fine_tuned"]
    return f"KID of the newest fine-tuned model {figures['kid']:.3f} ± {figures['kid_standard_error']:.3f}"


def main() -> None:
    """Measure and print the result as JSON."""
    torch.set_num_threads(max(FEWEST_THREADS, torch.get_num_threads()))  # as many for all that take turns
    asked: dict[str, Any] = {"seeds": range(BATCH), "steps": STEPS, "guidance_scale": GUIDANCE}
    with tempfile.TemporaryDirectory(prefix="converted-") as cache:
        drawer = sampling.Drawer(our_pipeline(), CPU, dtype=torch.bfloat16, backend="auto", cache=Path(cache))
        converting = seconds(lambda: drawer.make_ready(BATCH, guidance_scale=GUIDANCE))
        eager = sampling.Drawer(our_pipeline(), CPU, dtype=torch.bfloat16)
        rates = race(
            {
                "ours": lambda: drawer.draw(PROMPTS, **asked),
                "eager": lambda: eager.draw(PROMPTS, **asked),
                "pixels": pixel_peer(),
                "latents": latent_peer(),
            }
        )
    exact = sampling.Drawer(our_pipeline(), CPU, dtype=torch.float32)
    parity = psnr(drawer.draw(PROMPTS, **asked), exact.draw(PROMPTS, **asked))
    sizes = {"ours": parameters(exact.family.denoiser), "peer": parameters(new_unet(SIDE, 3, 6))}
    ours, theirs = (statistics.median(rates[who]) for who in ("ours", "pixels"))
    result = {
        "name": f"64-pixel pictures a second, {STEPS} steps with guidance ({torch.get_num_threads()} threads)",
        "ours": round(ours, 3),
        "peer": round(theirs, 3),
        "ratio": round(ratio(rates, "pixels"), 2),
        "goal": GOAL,
        "quality": (
            f"{drawer.computes}, {parity:.1f} dB against fp32; parameters {sizes['ours'] / 1e6:.1f} M, peer's "
            f"{sizes['peer'] / 1e6:.1f} M, untrained; against Stable Diffusion's layout on 8×8 latents "
            f"{ratio(rates, 'latents'):.1f}×; {kid_at_hand()}"
        ),
        "ratio_to_eager_bf16": round(ratio(rates, "eager"), 2),
        "ratio_to_latents": round(ratio(rates, "latents"), 2),
        "converting_seconds": round(converting, 1),
        "parity_db": round(parity, 1),
        "parameters": sizes,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
