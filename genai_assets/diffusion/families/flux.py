"""Flux: a transformer on packed latents, usually distilled to take the guidance scale as an input."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.families.family import Conditions
from genai_assets.diffusion.families.flow import LatentFlowFamily, pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

# What a guidance-distilled model is told in training: pictures of the data are what no guidance at all should draw.
_GUIDANCE_IN_TRAINING = 1.0


class Flux(LatentFlowFamily):
    """``FluxPipeline`` (Black Forest Labs 2024): FLUX.1 dev takes guidance as an input, schnell knows none.

    Drawing hands ``guidance_scale`` to that input; a model without it draws the same at every scale, as in the stock
    pipeline. T5 gives 77 tokens of 4,096 a prompt: 0.6 MB in half precision, where the 512 that the stock pipeline
    allows would take 4.2 MB. T5's padding is attended to, so a model trained with 77 tokens is best drawn with 77: the
    stock pipeline's ``max_sequence_length=77``.
    """

    name = "Flux"
    pipeline_classes = ("FluxPipeline",)
    text_encoder_parts = ("text_encoder", "text_encoder_2")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """``embeddings`` [N, T, D] of T5, ``pooled`` [N, P] of CLIP."""
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.pipeline.text_encoder.device, max_sequence_length=self.prompt_tokens
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def predict(self, denoiser: Any, noisy: "Tensor", level: "Tensor", conditions: Mapping[str, "Tensor"]) -> "Tensor":
        """The velocity."""
        import torch

        height, width = noisy.shape[2:]
        # A token's place is (0, row, column); every token of the prompt is at (0, 0, 0).
        sides = (1, height // self.latents_a_token, width // self.latents_a_token)
        places = torch.cartesian_prod(*(torch.arange(side, device=noisy.device).float() for side in sides))
        guided = self.denoiser.config.guidance_embeds
        velocity = denoiser(
            hidden_states=pack(noisy),
            timestep=level,
            guidance=torch.full_like(level, _GUIDANCE_IN_TRAINING) if guided else None,
            pooled_projections=conditions["pooled"],
            encoder_hidden_states=conditions["embeddings"],
            txt_ids=places.new_zeros(conditions["embeddings"].shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(velocity, height, width)
