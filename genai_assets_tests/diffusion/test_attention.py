"""The explicit attention is the stock one, written out."""

import pytest
import torch
from diffusers.models.transformers.transformer_prx import PRXAttention, PRXAttnProcessor2_0, PRXEmbedND, get_image_ids
from torch.nn.functional import scaled_dot_product_attention

from genai_assets.diffusion.attention import (
    MOST_PAIRS,
    ExplicitPRXAttention,
    explicit_attention,
    training_attention,
)

CPU = torch.device("cpu")

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


def test_only_on_a_cpu_prx_gets_the_explicit_attention(tiny_family):
    def processors() -> set[type]:
        return {type(processor) for processor in tiny_family.denoiser.attn_processors.values()}

    tiny_family.use_fastest_for_training(torch.device("cuda"))
    assert processors() == {PRXAttnProcessor2_0}
    tiny_family.use_fastest_for_training(CPU)
    assert processors() == {ExplicitPRXAttention}


def tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def is_stock(out: torch.Tensor) -> bool:
    """Whether the stock function made this, as its backward pass would show."""
    return out.grad_fn is not None and "ScaledDotProduct" in out.grad_fn.name()


MASKS = {
    "none": None,
    "bool": (torch.arange(5) < torch.tensor([[2], [5]]))[:, None, None],
    "added": torch.linspace(-3, 3, 5)[None],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_in_training_is_the_stock_function_written_out(mask, scale):
    query, key, value = tokens(2, 3, 8, 4), tokens(2, 3, 5, 4, seed=1), tokens(2, 3, 5, 6, seed=2)
    weight = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(3))
    exact = [part.detach().float().requires_grad_() for part in (query, key, value)]
    wanted = scaled_dot_product_attention(*exact, attn_mask=MASKS[mask], scale=scale)
    (wanted * weight).sum().backward()
    written = explicit_attention(*(part.detach().float() for part in exact), MASKS[mask], scale=scale)
    torch.testing.assert_close(written, wanted.detach())

    added = MASKS[mask] if mask != "added" else MASKS[mask].bfloat16()
    with training_attention(CPU):
        out = scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scale)
        (out * weight).sum().backward()
    assert not is_stock(out)
    torch.testing.assert_close(out.float(), wanted, rtol=0, atol=0.03)
    for part, reference in zip((query, key, value), exact, strict=True):
        assert part.grad is not None and reference.grad is not None
        assert (part.grad - reference.grad).norm() < 0.03 * reference.grad.norm()


def test_the_stock_function_answers_where_it_is_the_better_one():
    query, key, value = (tokens(1, 2, 8, 4, seed=seed) for seed in range(3))
    side = int(MOST_PAIRS**0.5) + 1
    many = tokens(1, 1, side, 4)
    with training_attention(CPU):
        assert not is_stock(scaled_dot_product_attention(query, key, value))
        assert is_stock(scaled_dot_product_attention(query, key, value, is_causal=True))
        assert is_stock(scaled_dot_product_attention(query.float(), key.float(), value.float()))
        assert is_stock(scaled_dot_product_attention(many, many, many))
        with torch.no_grad():
            drawn = scaled_dot_product_attention(query, key, value)
        assert torch.equal(drawn, scaled_dot_product_attention(query.detach(), key.detach(), value.detach()))
    assert is_stock(scaled_dot_product_attention(query, key, value))
    with training_attention(torch.device("cuda")):
        assert is_stock(scaled_dot_product_attention(query, key, value))


def test_autocast_counts_as_bf16_as_it_does_for_the_stock_function():
    query, key, value = (tokens(1, 2, 8, 4, seed=seed, dtype=torch.float32) for seed in range(3))
    with training_attention(CPU), torch.autocast("cpu", dtype=torch.bfloat16):
        out = scaled_dot_product_attention(query, key, value)
    assert not is_stock(out)
    assert out.dtype == torch.bfloat16


def test_a_denoiser_of_diffusers_takes_it_up():
    from torch.profiler import ProfilerActivity, profile

    attention = PRXAttention(WIDTH, heads=2, dim_head=32, processor=PRXAttnProcessor2_0()).bfloat16()
    picture, text = tokens(1, PICTURE_TOKENS, WIDTH), tokens(1, TEXT_TOKENS, WIDTH)

    def calls() -> set[str]:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            attention(picture, encoder_hidden_states=text).sum().backward()
        return {event.key for event in seen.key_averages()}

    stock = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert stock in calls()
    with training_attention(CPU):
        assert stock not in calls()
