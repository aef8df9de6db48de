"""Sana: linear attention on the few, deep latents of an autoencoder that shrinks sides 32 times."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.families.family import Conditions
from genai_assets.diffusion.families.flow import TIMESTEPS_PER_SIGMA, LatentFlowFamily

if TYPE_CHECKING:
    from torch import Tensor


class Sana(LatentFlowFamily):
    """``SanaPipeline`` (Xie et al. 2024, "SANA: Efficient High-Resolution Image Synthesis").

    Gemma reads the prompt after an instruction to elaborate on it; the empty prompt is read alone. Both are the stock
    pipeline's ways, so training follows them. 77 tokens of 2,304 take 0.35 MB a prompt in half precision, the 300 that
    the stock pipeline allows 1.4 MB. Padding is masked: short prompts mean the same at either length.
    """

    name = "Sana"
    pipeline_classes = ("SanaPipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    latents_a_token = 1

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """``embeddings`` [N, T, D] and ``mask`` bool [N, T], true where a token is real."""
        import torch

        empty = [not prompt for prompt in prompts]
        instruction = inspect.signature(self.pipeline.__call__).parameters["complex_human_instruction"].default
        embeddings, mask, empty_embeddings, empty_mask = self.pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=any(empty),
            device=self.pipeline.text_encoder.device,
            max_sequence_length=self.prompt_tokens,
            complex_human_instruction=instruction,
        )
        if any(empty):
            alone = torch.tensor(empty, device=embeddings.device)
            embeddings = torch.where(alone[:, None, None], empty_embeddings, embeddings)
            mask = torch.where(alone[:, None], empty_mask, mask)
        return {"embeddings": embeddings, "mask": mask.bool()}

    def predict(self, denoiser: Any, noisy: "Tensor", level: "Tensor", conditions: Mapping[str, "Tensor"]) -> "Tensor":
        """The velocity."""
        config = self.denoiser.config
        predicted = denoiser(
            hidden_states=noisy,
            timestep=level * TIMESTEPS_PER_SIGMA * config.timestep_scale,
            encoder_hidden_states=conditions["embeddings"],
            encoder_attention_mask=conditions["mask"],
            return_dict=False,
        )[0]
        return predicted[:, : noisy.shape[1]]  # some predict a variance too, which the stock pipeline drops as well

    def drawing_arguments(self, count: int, guidance_scale: float) -> dict[str, Any]:
        """Without looking for the nearest resolution of a table: the default one is in it, a small model's is not."""
        return {**super().drawing_arguments(count, guidance_scale), "use_resolution_binning": False}
