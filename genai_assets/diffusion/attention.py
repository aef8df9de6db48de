"""Attention written as two matrix products, for training in bf16 on a CPU.

The CPU backward of ``scaled_dot_product_attention`` in bf16 falls apart into tens of thousands of tiny products; the
same mathematics written out runs as a few large ones. On a GPU, and for drawing, the stock attention is the better one.
``training_attention`` does this for every model that calls torch's function, as diffusers' and transformers' do.
"""

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


# With more pairs of tokens than these the scores no longer fit in a CPU's caches, and the stock attention, which never
# writes them down, is faster in spite of its backward pass.
MOST_PAIRS = 512 * 512


def training_attention(device: "torch.device") -> contextlib.AbstractContextManager[Any]:
    """Attention that trains fastest on a device, while this is entered: around the forward and the backward pass.

    On a CPU calls of ``scaled_dot_product_attention`` are answered by :func:`explicit_attention` where that is faster:
    in bf16, when a gradient is wanted and the scores are few. Elsewhere, and for all other calls, nothing changes.
    Compiled models take it up, too. The backward pass is inside because gradient checkpointing calculates there again.
    """
    return _explicit_where_faster() if device.type == "cpu" else contextlib.nullcontext()


@functools.cache
def _explicit_where_faster() -> contextlib.AbstractContextManager[Any]:
    """Made once: compiled code is for one mode, and would be compiled anew for another."""
    import torch
    from torch.overrides import TorchFunctionMode

    stock = torch.nn.functional.scaled_dot_product_attention

    class ExplicitWhereFaster(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is stock and _is_faster_written_out(*args, **kwargs):
                return explicit_attention(*args, **kwargs)
            return func(*args, **kwargs)

    return ExplicitWhereFaster()


def _is_faster_written_out(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attn_mask: "Tensor | None" = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> bool:
    """Whether :func:`explicit_attention` can answer this call of the stock function, and faster."""
    import torch

    tensors = (query, key, value)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    half = autocast or all(tensor.dtype == torch.bfloat16 for tensor in tensors)
    few = query.shape[-2] * key.shape[-2] <= MOST_PAIRS
    return learns and half and few and not (dropout_p or is_causal or enable_gqa)


def explicit_attention(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attn_mask: "Tensor | None" = None,
    *,
    scale: float | None = None,
    **_: Any,
) -> "Tensor":
    """``softmax(query key^T scale + mask) value``, as two matrix products.

    Args:
        query: [..., L, D].
        key: [..., S, D].
        value: [..., S, E].
        attn_mask: to be broadcast to [..., L, S]: added, or, if bool, true where a key has a say.
        scale: of the scores; one over the square root of D when None.

    Returns:
        Tensor: [..., L, E].
    """
    import torch

    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-1, -2))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(
                ~attn_mask, torch.finfo(scores.dtype).min
            )
        scores = scores + attn_mask.to(scores.dtype)
    return torch.matmul(scores.softmax(dim=-1), value)


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
