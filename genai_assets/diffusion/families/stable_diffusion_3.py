"""Stable Diffusion 3 and 3.5: a transformer that attends to latents and prompt together (MMDiT)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.families.family import Conditions
from genai_assets.diffusion.families.flow import TIMESTEPS_PER_SIGMA, LatentFlowFamily

if TYPE_CHECKING:
    from torch import Tensor


class StableDiffusion3(LatentFlowFamily):
    """``StableDiffusion3Pipeline`` (Esser et al. 2024, "Scaling Rectified Flow Transformers").

    Two CLIPs and a T5 read the prompt; T5, the largest, may be left out of the pipeline. With 77 tokens of T5 after the
    77 of CLIP, all 4,096 wide, a prompt takes 1.3 MB in half precision; the 256 that the stock pipeline allows would
    make it 2.7 MB. T5's padding is attended to, so a model trained with 77 tokens is best drawn with 77: the stock
    pipeline's ``max_sequence_length=77``.
    """

    name = "Stable Diffusion 3"
    pipeline_classes = ("StableDiffusion3Pipeline",)
    text_encoder_parts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        present = tuple(part for part in type(self).text_encoder_parts if getattr(pipeline, part) is not None)
        self.text_encoder_parts = present  # pyright: ignore[reportAttributeAccessIssue] - of this model, not of all

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """``embeddings`` [N, T, D] of all encoders, ``pooled`` [N, P] of the CLIPs."""
        told = list(prompts)
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            told,
            told,
            told,
            device=self.pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.prompt_tokens,
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def predict(self, denoiser: Any, noisy: "Tensor", level: "Tensor", conditions: Mapping[str, "Tensor"]) -> "Tensor":
        """The velocity."""
        return denoiser(
            hidden_states=noisy,
            timestep=level * TIMESTEPS_PER_SIGMA,
            encoder_hidden_states=conditions["embeddings"],
            pooled_projections=conditions["pooled"],
            return_dict=False,
        )[0]
