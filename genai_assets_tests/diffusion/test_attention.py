"""The explicit attention is the stock one, written out."""

import pytest
import torch
from diffusers.models.transformers.transformer_prx import PRXAttention, PRXAttnProcessor2_0, PRXEmbedND, get_image_ids

from genai_assets.diffusion.attention import ExplicitPRXAttention, use_fastest_for_training

BATCH, PICTURE_TOKENS, TEXT_TOKENS, WIDTH = 3, 16, 7, 64


def attend(processor, attention: PRXAttention, *, masked: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Result, and the gradients of the inputs and all weights."""
    generator = torch.Generator().manual_seed(1)
    picture = torch.randn(BATCH, PICTURE_TOKENS, WIDTH, generator=generator, requires_grad=True)
    text = torch.randn(BATCH, TEXT_TOKENS, WIDTH, generator=generator, requires_grad=True)
    mask = torch.arange(TEXT_TOKENS) < torch.tensor([[2], [7], [4]]) if masked else None
    rotation = PRXEmbedND(32, 10_000, [16, 16])(get_image_ids(BATCH, 32, 32, 8, torch.device("cpu")))
    attention.set_processor(processor)
    attention.zero_grad()
    out = attention(picture, encoder_hidden_states=text, attention_mask=mask, image_rotary_emb=rotation)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    gradients = [value.grad for value in (picture, text, *attention.parameters())]
    return out, [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("masked", [True, False])
def test_explicit_attention_equals_the_stock_processor_and_so_do_its_gradients(masked):
    torch.manual_seed(0)
    attention = PRXAttention(WIDTH, heads=2, dim_head=32)
    stock, stock_gradients = attend(PRXAttnProcessor2_0(), attention, masked=masked)
    ours, our_gradients = attend(ExplicitPRXAttention(), attention, masked=masked)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    assert len(our_gradients) == len(stock_gradients) == 2 + len(list(attention.parameters()))
    for one, other in zip(our_gradients, stock_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_hidden_text_tokens_have_no_say():
    torch.manual_seed(0)
    attention = PRXAttention(WIDTH, heads=2, dim_head=32, processor=ExplicitPRXAttention())
    picture, text = torch.randn(1, PICTURE_TOKENS, WIDTH), torch.randn(1, TEXT_TOKENS, WIDTH)
    mask = torch.arange(TEXT_TOKENS)[None] < 3
    other = torch.where(mask[..., None], text, 100.0)
    with torch.no_grad():
        one, two = (attention(picture, encoder_hidden_states=words, attention_mask=mask) for words in (text, other))
    assert torch.equal(one, two)


def test_attention_without_text_is_a_clear_error():
    attention = PRXAttention(WIDTH, heads=2, dim_head=32, processor=ExplicitPRXAttention())
    with pytest.raises(ValueError, match="needs text tokens"):
        attention(torch.randn(1, 4, WIDTH))


def test_only_a_cpu_gets_the_explicit_attention(tiny_denoiser):
    def processors() -> set[type]:
        return {type(processor) for processor in tiny_denoiser.attn_processors.values()}

    use_fastest_for_training(tiny_denoiser, torch.device("cuda"))
    assert processors() == {PRXAttnProcessor2_0}
    use_fastest_for_training(tiny_denoiser, torch.device("cpu"))
    assert processors() == {ExplicitPRXAttention}
