"""What is said of a picture: from a caption and keywords to the prompts a model is trained with."""

import re
from collections.abc import Sequence

from genai_assets import durable

_MAX_KEYWORDS = 3


def prompt_variants(caption: str, keywords: Sequence[str], style: str, template: str) -> tuple[str, ...]:
    """Prompts that describe one picture, the plain caption first.

    With keywords there is a second prompt: the caption followed by up to three of them, chosen by a hash of the
    caption so that the same picture always gets the same words. A person's prompt rarely is the exact label, so a
    model that has seen both forms follows it better.

    Args:
        caption: what the picture shows.
        keywords: further words, any number.
        style: name of the style.
        template: with ``{caption}`` and ``{style}``.
    """
    plain = template.format(caption=caption, style=style)
    said = set(re.findall(r"\w+", caption.lower()))
    fresh = sorted({word for word in keywords if word.lower() not in said}, key=lambda word: _order(caption, word))
    if not fresh:
        return (plain,)
    return plain, template.format(caption=", ".join([caption, *fresh[:_MAX_KEYWORDS]]), style=style)


def _order(caption: str, word: str) -> str:
    return durable.digest_json([caption, word])
