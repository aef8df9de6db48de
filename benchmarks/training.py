"""Training a Stable Diffusion UNet: ``training.train`` against a loop as diffusers' ``train_text_to_image`` has it.

The same UNet (17 M parameters, SDXL's layout of blocks), the same pictures of 256 pixels, the same prompts of 77
tokens, 16 pictures a step (that script's default), bf16 autocast, AdamW and EMA on both sides. The script encodes
pictures and prompts anew in each step; ours takes them from the training cache. The autoencoder is as small beside this
UNet as Stable Diffusion's is beside its own: encoding takes a bit less than half the operations of the UNet's training.
What of the ratio is owed to the denoiser's step alone, with latents and embeddings given to both, is told beside it.

All take turns within one run, so that a busy moment of the machine meets each; the median of the turns counts. Encoding
the cache and compiling are told beside the ratio and are not in it: they are paid once, and kept for later runs.
Compiled code whose gradient is wrong does not take part.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from genai_assets.diffusion.attention import training_attention
from genai_assets.diffusion.batches import BatchSource
from genai_assets.diffusion.compilation import can_compile
from genai_assets.diffusion.config import Augmentation, TrainingConfig
from genai_assets.diffusion.devices import keep_freed_memory, mixed_precision
from genai_assets.diffusion.families.family import Family
from genai_assets.diffusion.families.stable_diffusion import StableDiffusion
from genai_assets.diffusion.learner import Learner
from genai_assets.diffusion.training import StepReport, train
from genai_assets.diffusion.training_cache import TrainingCache

GOAL = 2.5
BATCH = 16
TURNS = 3
STEPS_A_TURN = 3
PICTURES, SIDE = 64, 256
WORDS, TOKENS, WIDTH = 4096, 77, 384
LATENTS = (4, 32, 32)
CPU = torch.device("cpu")
AS_THEY_ARE = Augmentation(flip=0.0)

clock = time.perf_counter


def new_family() -> StableDiffusion:
    """A random model, the same at every call; it is never drawn with."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=LATENTS[1],
        in_channels=LATENTS[0],
        out_channels=LATENTS[0],
        block_out_channels=(64, 128, 192),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    )
    shape: dict[str, Any] = {
        "block_out_channels": (20, 40, 80, 80),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": LATENTS[0],
        "norm_num_groups": 10,
    }
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=WORDS,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
        )
    )
    parts: dict[str, Any] = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    parts |= {"vae": AutoencoderKL(**shape), "unet": unet, "text_encoder": encoder}
    parts |= {"scheduler": DDPMScheduler(beta_schedule="scaled_linear")}
    return StableDiffusion(StableDiffusionPipeline(**parts, requires_safety_checker=False))


def new_data() -> tuple[Tensor, Tensor]:
    """Random pictures, float32 [N, 3, 256, 256] in [-1, 1], and prompts as numbers of tokens, int64 [N, 77]."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(PICTURES, 3, SIDE, SIDE, generator=generator) * 2 - 1
    return pictures, torch.randint(2, WORDS, (PICTURES, TOKENS), generator=generator)


def new_cache(family: StableDiffusion, pictures: Tensor, tokens: Tensor) -> TrainingCache:
    """The pictures and prompts encoded, as ``training_cache`` keeps them."""
    with torch.no_grad():
        latents = torch.cat([family.encode_pictures(part) for part in pictures.split(BATCH)])
        told = family.pipeline.text_encoder(tokens)[0]
    rows = pd.DataFrame(
        {
            "id": [f"{number:04}" for number in range(PICTURES)],
            "style": "plain",
            "split": "train",
            "weight": 1.0,
            "prompts": [[1 + number] for number in range(PICTURES)],
            "bucket": "256x256",
            "slot": range(PICTURES),
            "may_flip": False,
        }
    )
    return TrainingCache(
        rows=rows,
        texts=["", *(f"picture {number}" for number in range(PICTURES))],
        codes={"256x256": latents[:, None].numpy().astype(np.float16)},
        conditions={"embeddings": torch.cat((told[:1], told)).numpy().astype(np.float16)},
        resolution=SIDE,
        augmentation=AS_THEY_ARE,
    )


class Peer:
    """The loop of ``train_text_to_image --mixed_precision=bf16 --use_ema``, all else at its defaults.

    Args:
        inputs: pictures and tokens, encoded in each step; or latents and embeddings, taken as they are.
        encodes: which of the two.
    """

    def __init__(self, *inputs: Tensor, encodes: bool):
        from accelerate import Accelerator
        from diffusers import UNet2DConditionModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.accelerator = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=1)
        family = new_family()
        self.noise_scheduler, unet = family.pipeline.scheduler, family.denoiser
        self.autoencoder = family.pipeline.vae.requires_grad_(False).to(torch.bfloat16)
        self.text_encoder = family.pipeline.text_encoder.requires_grad_(False).to(torch.bfloat16)
        self.encodes = encodes
        self.ema = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=1e-2, eps=1e-8)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*inputs), batch_size=BATCH, shuffle=True, num_workers=0
        )
        rate = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=0)
        self.unet, self.optimizer, self.loader, self.rate = self.accelerator.prepare(unet, optimizer, loader, rate)
        self.unet.train()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Epoch after epoch."""
        while True:
            yield from self.loader

    def train(self) -> Iterator[float]:
        """One step each; gives its loss."""
        import torch.nn.functional as functional

        for pictures, words in self.batches():
            with self.accelerator.accumulate(self.unet):
                clean, told = pictures, words
                if self.encodes:
                    clean = self.autoencoder.encode(pictures.to(torch.bfloat16)).latent_dist.sample()
                    clean = clean * self.autoencoder.config.scaling_factor
                    told = self.text_encoder(words, return_dict=False)[0]
                noise = torch.randn_like(clean)
                timesteps = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (len(clean),)).long()
                noisy = self.noise_scheduler.add_noise(clean, noise, timesteps)
                predicted = self.unet(noisy, timesteps, told, return_dict=False)[0]
                loss = functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
                mean = self.accelerator.gather(loss.repeat(BATCH)).mean().item()
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
                self.optimizer.step()
                self.rate.step()
                self.optimizer.zero_grad()
            self.ema.step(self.unet.parameters())
            yield mean


def gradient(family: Family, run: Callable[[], Tensor]) -> Tensor:
    """The gradient of all weights, flat, fp32."""
    run().backward()
    found = torch.cat([weight.grad.flatten() for weight in family.denoiser.parameters()])
    family.denoiser.zero_grad(set_to_none=True)
    return found


def multiplications_per_second(dtype: torch.dtype, side: int = 2048) -> float:
    """The machine's peak: FLOP a second of one large product; the best of some."""
    one, other = (torch.randn(side, side).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        begun = clock()
        torch.matmul(one, other)
        seconds.append(clock() - begun)
    return 2 * side**3 / min(seconds)


def floating_point_operations(family: Family, run: Callable[[], Tensor]) -> float:
    """Of a step's products, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the CPU's fused attention; written as products it counts the same.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run().backward()
    family.denoiser.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def race(
    cache: TrainingCache, learner: Learner, config: TrainingConfig, peers: dict[str, Iterator[float]]
) -> dict[str, list[float]]:
    """Ours and the peers in turns; pictures a second of each turn."""
    rates: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers}}
    begun = 0.0

    def after_step(report: StepReport) -> None:
        nonlocal begun
        if report.step % STEPS_A_TURN == 0:
            warm = report.step > STEPS_A_TURN  # the first turn is to warm up
            if warm:
                rates["ours"].append(STEPS_A_TURN * BATCH / (clock() - begun))
            for name, peer in peers.items():
                begun = clock()
                for _ in range(STEPS_A_TURN):
                    next(peer)
                if warm:
                    rates[name].append(STEPS_A_TURN * BATCH / (clock() - begun))
            begun = clock()

    train(
        learner.family,
        cache,
        config,
        training_rows=cache.select("train"),
        validation_rows=np.array([], dtype=np.int64),
        device=CPU,
        learner=learner,
        on_step=after_step,
    )
    return rates


def ratio(rates: dict[str, list[float]], peer: str) -> float:
    """How many times as many pictures a second ours trains on; the median of the turns."""
    return statistics.median(map(float.__truediv__, rates["ours"], rates[peer]))


def main() -> None:
    """Measure and print the result as JSON."""
    keep_freed_memory()  # as a training process does; it serves all
    config = TrainingConfig(
        steps=STEPS_A_TURN * (TURNS + 1),
        batch_size=BATCH,
        validate_every=0,
        checkpoint_every=10**6,
        augmentation=AS_THEY_ARE,
    )
    pictures, tokens = new_data()
    family = new_family()
    begun = clock()
    cache = new_cache(family, pictures, tokens)
    encoding = (clock() - begun) / PICTURES
    latents = torch.from_numpy(cache.codes["256x256"][:, 0]).float()
    embeddings = torch.from_numpy(cache.conditions["embeddings"][1:]).float()
    peers = {
        "script": Peer(pictures, tokens, encodes=True).train(),
        "denoiser": Peer(latents, embeddings, encodes=False).train(),
    }
    peaks = {dtype: multiplications_per_second(dtype) for dtype in (torch.float32, torch.bfloat16)}

    batch = BatchSource(cache, family, cache.select("train"), config).batch(0)
    eager = Learner(family, config, CPU)

    def loss() -> Tensor:
        return eager.module(batch, BATCH)

    operations = floating_point_operations(family, loss)
    exact = gradient(family, loss)
    errors = {}

    def measure_error(name: str, run: Callable[[], Tensor]) -> None:
        errors[name] = ((gradient(family, run) - exact).norm() / exact.norm()).item()

    with mixed_precision(CPU):
        measure_error("peer", loss)
        with training_attention(CPU):
            measure_error("eager", loss)

    way, compiling, learner = "eager", 0.0, eager
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
        if can_compile():
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            family = new_family()
            compiled = Learner(family, config, CPU, compiled="whole")
            begun = clock()
            with mixed_precision(CPU), training_attention(CPU):
                measure_error("compiled", lambda: compiled.module(batch, BATCH))
            compiling = clock() - begun
            # Speed does not count where the result is another.
            if errors["compiled"] < 2 * errors["peer"]:
                way, learner = "compiled", compiled
        rates = race(cache, learner, config, peers)

    ours, theirs = (statistics.median(rates[who]) for who in ("ours", "script"))
    alone = statistics.median(rates["denoiser"])
    share = operations / BATCH / peaks[torch.bfloat16]
    result = {
        "name": f"SD-type UNet trained, pictures a second ({torch.get_num_threads()} threads, bf16)",
        "ours": round(ours, 2),
        "peer": round(theirs, 2),
        "ratio": round(ratio(rates, "script"), 2),
        "goal": GOAL,
        "quality": (
            f"error of the gradient against fp32: ours {errors[way]:.4f}, peer {errors['peer']:.4f}; "
            f"the denoiser's step alone {ratio(rates, 'denoiser'):.2f}×, "
            f"{share * ours:.0%} against {share * alone:.0%} of the bf16 matmul peak; {way}"
        ),
        "denoiser_ratio": round(ratio(rates, "denoiser"), 2),
        "encoding_seconds_a_picture": round(encoding, 3),
        "compile_seconds": round(compiling, 1),
        "gradient_errors": {name: round(error, 5) for name, error in errors.items()},
        "gflop_a_picture": round(operations / BATCH / 1e9, 2),
        "matmul_gflops": {str(dtype).removeprefix("torch."): round(peak / 1e9) for dtype, peak in peaks.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
