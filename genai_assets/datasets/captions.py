"""What is said of a picture: from a caption and keywords to the prompts a model is trained with."""

import re
from collections.abc import Sequence

from genai_assets import durable

_MAX_KEYWORDS = 3
_FEWEST_TAGS = 3
_WORDS_IN_A_TAG = 4
_MOST_ORDERS = 16
_SENTENCE = re.compile(r"[.!?]$|:\s|,\s*(and|or)\b", re.IGNORECASE)


def prompt_variants(
    caption: str, keywords: Sequence[str], style: str, template: str, count: int = 4
) -> tuple[str, ...]:
    """Prompts that describe one picture, the plain caption first.

    With keywords there is a second prompt: the caption followed by up to three of them. A person's prompt rarely is the
    exact label, so a model that has seen both forms follows it better. When the caption is a list of tags, the others
    are the same tags in other orders, for the order of tags means nothing; the first tag stays (``keep_tokens`` of
    kohya's sd-scripts), as it says what the picture is of. Words and orders are chosen by a hash of the caption, so
    that the same picture always gets the same prompts.

    Args:
        caption: what the picture shows.
        keywords: further words, any number.
        style: name of the style.
        template: with ``{caption}`` and ``{style}``.
        count: the most prompts, at least 1.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"a picture needs at least one prompt, not {count}")
    said = set(re.findall(r"\w+", caption.lower()))
    fresh = sorted({word for word in keywords if word.lower() not in said}, key=lambda word: _order(caption, word))
    captions = [caption]
    if fresh:
        captions.append(", ".join([caption, *fresh[:_MAX_KEYWORDS]]))
    captions += shuffled_tags(caption, count - len(captions))
    return tuple(template.format(caption=form, style=style) for form in captions[:count])


def tags(caption: str) -> list[str]:
    """The tags of a caption that is a list of them: three or more short parts with commas between; else none.

    An enumeration within a sentence ("red, white, and blue") is no list of tags, nor is what follows a colon ("family:
    man, woman, girl").
    """
    parts = [part.strip() for part in caption.split(",")]
    short = all(part and len(part.split()) <= _WORDS_IN_A_TAG for part in parts)
    return parts if short and len(parts) >= _FEWEST_TAGS and not _SENTENCE.search(caption.strip()) else []


def shuffled_tags(caption: str, count: int) -> list[str]:
    """Up to ``count`` (16 at most) other orders of a caption's tags, the first one kept; fewer when there are no more.

    Each derives from the caption and its own number, so asking for more leaves the first ones as they are.
    """
    first, *others = tags(caption) or [""]
    found: list[str] = []
    seen = {tuple(others)}
    for number in range(_MOST_ORDERS if len(others) > 1 else 0):
        if len(found) >= count:
            break
        order = sorted(range(len(others)), key=lambda place: durable.digest_json([caption, number, place]))
        shuffled = tuple(others[place] for place in order)
        if shuffled not in seen:
            seen.add(shuffled)
            found.append(", ".join((first, *shuffled)))
    return found


def _order(caption: str, word: str) -> str:
    return durable.digest_json([caption, word])
