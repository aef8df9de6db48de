"""What is trained: the weights or adapters of a denoiser, of a text encoder if asked, and their loss as one module.

Belongs here: which parameters learn, how adapters come and go, and the module that accelerate wraps for several
processes. The loop that moves the parameters is ``training``.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.compilation import Compiling, compile_denoiser, forget_compiled
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.devices import frozen_dtype
from genai_assets.diffusion.families.family import Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_INSIDE_PEFT = "base_model.model."


class Learner:
    """A family's model, made ready to be trained on a device.

    Attributes:
        family: the model; its parts are trained in place.
        module: called with a batch and the number of pictures in the whole step, gives that batch's share of the loss.
        parameters: those that learn, by name: ``denoiser.…`` and ``TEXT_ENCODER.…``.
        hidden_matrices: names of the matrices of the denoiser's attention and feed-forward layers among them.

    Raises:
        ValueError: the config asks for a LoRA and for training the text encoder at once.
    """

    def __init__(
        self,
        family: Family,
        config: TrainingConfig,
        device: "torch.device",
        *,
        compiled: Compiling | None = None,
        compiled_code: Path | None = None,
    ):
        import torch

        if config.method == "lora" and config.train_text_encoder:
            raise ValueError(
                "a LoRA of the denoiser cannot be trained together with the text encoder: "
                "set fine_tune.train_text_encoder to false, or fine_tune.method to 'full'"
            )
        self.family = family
        self._lora = config.method == "lora"
        denoiser = family.denoiser
        denoiser.to(device, frozen_dtype(device) if self._lora else torch.float32).train().requires_grad_(True)
        if config.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        family.use_fastest_for_training(device)
        self._denoiser = add_lora(denoiser, family.lora_targets, config) if self._lora else denoiser
        parts = {"denoiser": self._denoiser}
        for name in family.text_encoder_parts:
            encoder = getattr(family.pipeline, name).requires_grad_(config.train_text_encoder)
            if config.train_text_encoder:
                # Left in evaluation mode: a text encoder's dropout is for its own pre-training.
                parts[name] = encoder.to(device, torch.float32)
        self.parameters = {
            f"{part}.{name}": value
            for part, module in parts.items()
            for name, value in module.named_parameters()
            if value.requires_grad
        }
        self.hidden_matrices = {
            name
            for name, value in self.parameters.items()
            if name.startswith("denoiser.")
            and value.ndim == 2
            and any(f".{layer}." in name for layer in family.lora_targets)
        }
        called = compile_denoiser(self._denoiser, compiled_code, compiled) if compiled else self._denoiser
        self.module = _loss_module(family, parts, called, config)

    def finish(self, weights: "Mapping[str, Tensor]") -> "dict[str, Tensor] | None":
        """Put the final weights in place and leave a plain denoiser in the family's pipeline.

        Args:
            weights: by name, as ``parameters``.

        Returns:
            dict: a LoRA's layers, by name inside the denoiser; None after full training. The LoRA is merged, too.
        """
        import torch

        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(weights[name])
        layers = None
        if self._lora:
            from peft import get_peft_model_state_dict

            layers = {
                name.removeprefix(_INSIDE_PEFT): value.detach().float().cpu().clone()
                for name, value in get_peft_model_state_dict(self._denoiser).items()
            }
            self._denoiser = self._denoiser.merge_and_unload()
        forget_compiled(self._denoiser)
        self._denoiser.eval().requires_grad_(False)
        return layers


def add_lora(denoiser: Any, targets: tuple[str, ...], config: TrainingConfig) -> Any:
    """Freeze a denoiser and give the named layers low-rank adapters (Hu et al. 2021), by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):  # PEFT draws the adapters' first weights on the CPU
        torch.manual_seed(config.seed)
        return get_peft_model(denoiser, lora)


def _loss_module(family: Family, parts: dict[str, Any], called: Any, config: TrainingConfig) -> Any:
    """The loss as one module, so that several processes share gradients through whatever it is wrapped in."""
    import torch

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleDict(parts)

        def forward(self, batch: Any, pictures: int) -> "Tensor":
            """The batch's share of the mean loss of a step with so many pictures."""
            conditions = family.encode_prompts(batch.prompts) if config.train_text_encoder else batch.conditions
            # Compiled code is for training; without gradients it would have to be compiled once more.
            denoiser, eager = (
                (called, contextlib.nullcontext())
                if torch.is_grad_enabled()
                else (self.parts["denoiser"], torch.compiler.set_stance("force_eager"))
            )
            with eager:
                losses = family.losses(denoiser, batch.clean, batch.noise, batch.level, conditions, config)
            return (losses * batch.weight).sum() / pictures

    return Loss()
