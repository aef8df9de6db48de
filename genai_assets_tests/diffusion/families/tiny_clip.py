"""A tiny CLIP text encoder's config and its tokenizer, of single characters: several families read prompts with one."""

import string
from typing import Any

CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def clip_config(*, hidden_size: int, projection_dim: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=hidden_size,
        projection_dim=projection_dim,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=77)


def _vocabulary() -> dict[str, int]:
    ends = [f"{character}</w>" for character in CHARACTERS]
    return {word: number for number, word in enumerate(("<|startoftext|>", "<|endoftext|>", *CHARACTERS, *ends))}
