"""From prompts to what the denoiser attends to, exactly as the stock pipeline encodes them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def encode_prompts(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    dtype: "torch.dtype | None" = None,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> "tuple[Tensor, Tensor]":
    """Encode prompts with a pipeline's own tokenizer and text encoder.

    Args:
        pipeline: a ``PRXPixelPipeline``.
        prompts: any number; the empty prompt is a prompt.
        dtype: of the embeddings; fp16 when not given, as a training cache keeps them.
        batch_size: prompts at a time.
        on_batch: told how many prompts are done.

    Returns:
        tuple: embeddings [N, T, D] of ``dtype`` and mask bool [N, T], true where a token is real; on the CPU.
    """
    import torch

    device = pipeline.text_encoder.device
    embeddings, masks = [], []
    for start in range(0, len(prompts), batch_size):
        tokens, mask = pipeline._tokenize_prompts(list(prompts[start : start + batch_size]), device)
        with torch.no_grad():
            hidden = pipeline.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        embeddings.append(hidden.to(dtype or torch.float16).cpu())
        masks.append(mask.cpu())
        if on_batch:
            on_batch(min(start + batch_size, len(prompts)))
    return torch.cat(embeddings), torch.cat(masks)
