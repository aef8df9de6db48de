"""Attention written as two matrix products, for training in bf16 on a CPU.

The CPU backward of ``scaled_dot_product_attention`` in bf16 falls apart into tens of thousands of tiny products; the
same mathematics written out runs as a few large ones. On a GPU, and for drawing, the stock processor is the better one.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def rotate(tokens: "Tensor", rotation: "Tensor") -> "Tensor":
    """Rotary position embedding (Su et al. 2021), pairs of neighbouring channels.

    Args:
        tokens: [B, heads, L, D].
        rotation: [B or 1, 1, L, D / 2, 2, 2], the matrices ``[[cos, -sin], [sin, cos]]``.
    """
    import torch

    cosine, sine = rotation[..., 0, 0].to(tokens.dtype), rotation[..., 1, 0].to(tokens.dtype)
    even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)


class ExplicitPRXAttention:
    """Attention processor of a PRX block: picture tokens attend to text tokens and to each other.

    Takes the place of diffusers' ``PRXAttnProcessor2_0``: same arguments, same weights, same result up to rounding.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: "Tensor",
        encoder_hidden_states: "Tensor | None" = None,
        attention_mask: "Tensor | None" = None,
        image_rotary_emb: "Tensor | None" = None,
        **_: Any,
    ) -> "Tensor":
        """Attend.

        Args:
            attn: the ``PRXAttention`` module that holds the weights.
            hidden_states: picture tokens [B, L, C].
            encoder_hidden_states: text tokens [B, T, C].
            attention_mask: [B, T], true where a text token is real.
            image_rotary_emb: see :func:`rotate`.

        Returns:
            Tensor: [B, L, C].
        """
        import torch

        if encoder_hidden_states is None:
            raise ValueError("PRX attention needs text tokens in encoder_hidden_states")
        query, key, value = attn.img_qkv_proj(hidden_states).unflatten(-1, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        text_key, text_value = (
            attn.txt_kv_proj(encoder_hidden_states).unflatten(-1, (2, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        query, key, text_key = attn.norm_q(query), attn.norm_k(key), attn.norm_added_k(text_key)
        if image_rotary_emb is not None:
            # Position 0 of the batch stands for all: every picture has the same grid.
            query, key = rotate(query, image_rotary_emb[:1]), rotate(key, image_rotary_emb[:1])
        key, value = torch.cat((text_key, key), dim=2), torch.cat((text_value, value), dim=2)

        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(attn.head_dim)
        if attention_mask is not None:
            hidden = torch.zeros(attention_mask.shape, dtype=scores.dtype, device=scores.device)
            hidden = hidden.masked_fill(~attention_mask.bool(), torch.finfo(scores.dtype).min)
            hidden = torch.nn.functional.pad(hidden, (0, query.shape[2]))
            scores = scores + hidden[:, None, None, :]
        mixed = torch.matmul(scores.softmax(dim=-1), value)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def use_fastest_for_training(denoiser: Any, device: "torch.device") -> None:
    """Give a PRX denoiser explicit attention on a CPU; leave it as it is elsewhere."""
    if device.type == "cpu":
        denoiser.set_attn_processor(ExplicitPRXAttention())
