"""Z-Image: one stream of prompt and latents, with time that runs from noise to picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.families.family import Conditions
from genai_assets.diffusion.families.flow import LatentFlowFamily

if TYPE_CHECKING:
    from torch import Tensor


class ZImage(LatentFlowFamily):
    """``ZImagePipeline`` (Tongyi-MAI 2025): its transformer is told ``1 - sigma`` and gives ``clean - noise``.

    Qwen3 reads the prompt as a chat. 77 tokens of 2,560 take 0.4 MB a prompt in half precision, the 512 that the stock
    pipeline allows 2.6 MB. The transformer gets the real tokens only: short prompts mean the same at either length.
    """

    name = "Z-Image"
    pipeline_classes = ("ZImagePipeline",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """``embeddings`` [N, T, D] and ``mask`` bool [N, T], true where a token is real."""
        import torch

        # The stock pipeline writes into the list that it is given.
        told, _ = self.pipeline.encode_prompt(
            list(prompts),
            device=self.pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.prompt_tokens,
        )
        embeddings = torch.stack(
            [torch.nn.functional.pad(tokens, (0, 0, 0, self.prompt_tokens - len(tokens))) for tokens in told]
        )
        counts = torch.tensor([len(tokens) for tokens in told], device=embeddings.device)
        return {
            "embeddings": embeddings,
            "mask": torch.arange(self.prompt_tokens, device=embeddings.device) < counts[:, None],
        }

    def predict(self, denoiser: Any, noisy: "Tensor", level: "Tensor", conditions: Mapping[str, "Tensor"]) -> "Tensor":
        """The velocity."""
        import torch

        # Each picture is a film of one frame, with a prompt of its own length.
        predicted = denoiser(
            list(noisy.unsqueeze(2)),
            1 - level,
            [tokens[real] for tokens, real in zip(conditions["embeddings"], conditions["mask"], strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(predicted).squeeze(2)

    def drawing_arguments(self, count: int, guidance_scale: float) -> dict[str, Any]:
        """Guidance counted from nought: this pipeline adds so many times the difference to what the prompt gives."""
        return super().drawing_arguments(count, max(0.0, guidance_scale - 1))
