"""What is said of a picture: from a caption and keywords to the prompts a model is trained with."""

import re
from collections.abc import Mapping, Sequence
from string import Formatter

from genai_assets import durable

TEMPLATE_FIELDS = ("caption", "style", "category", "keywords", "concept")
"""What a template of ``captions.templates`` may ask for; keywords are up to three that the caption does not say."""

_TELLING_FIELDS = frozenset({"caption", "keywords", "concept"})
_MAX_KEYWORDS = 3
_FEWEST_TAGS = 3
_WORDS_IN_A_TAG = 4
_MOST_ORDERS = 16
_BETWEEN = " ,.;"
_IN_A = "in(?: an?| the)?"
_SENTENCE = re.compile(r"[.!?]$|:\s|,\s*(and|or)\b", re.IGNORECASE)


def prompt_variants(
    caption: str,
    keywords: Sequence[str],
    style: str,
    template: str,
    count: int = 4,
    *,
    more: Sequence[str] = (),
    category: str = "",
    concept: str = "",
) -> tuple[str, ...]:
    """Prompts that describe one picture, the plain caption first.

    With keywords there is a second prompt: the caption followed by up to three of them. A person's prompt rarely is the
    exact label, so a model that has seen both forms follows it better. Then come the templates of ``more``, in an order
    of the picture's own, so that all of them are seen even when a picture has fewer prompts than there are templates.
    When the caption is a list of tags, the others are the same tags in other orders, for the order of tags means
    nothing; the first tag stays (``keep_tokens`` of kohya's sd-scripts), as it says what the picture is of. Words and
    orders are chosen by a hash of the caption, so that the same picture always gets the same prompts.

    Args:
        caption: what the picture shows.
        keywords: further words, any number.
        style: name of the style.
        template: with ``{caption}`` and ``{style}``.
        count: the most prompts, at least 1.
        more: further templates, see :data:`TEMPLATE_FIELDS`; one that asks for something the picture does not have is
            passed over.
        category, concept: for these templates.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"a picture needs at least one prompt, not {count}")
    said = set(re.findall(r"\w+", caption.lower()))
    fresh = sorted({word for word in keywords if word.lower() not in said}, key=lambda word: _order(caption, word))
    first = [caption]
    if fresh:
        first.append(", ".join([caption, *fresh[:_MAX_KEYWORDS]]))
    values = {
        "caption": caption,
        "style": style,
        "category": re.sub(r"[-_]+", " ", category).strip(),
        "keywords": ", ".join(fresh[:_MAX_KEYWORDS]),
        "concept": concept,
    }
    prompts = [template.format(caption=form, style=style) for form in first]
    prompts += [_filled(other, values) for other in sorted(more, key=lambda other: _order(caption, other))]
    prompts += [
        template.format(caption=form, style=style) for form in shuffled_tags(caption, max(0, count - len(first)))
    ]
    # A template may say what another one says.
    return tuple(dict.fromkeys(prompt for prompt in prompts if prompt is not None))[:count]


def without_style(text: str, template: str, style: str) -> str:
    """What people typed, without the style where they typed it along: "a cat, Fluent Style." is "a cat".

    The style is typed along when the text ends with what the template puts behind the caption, in whatever case, and
    however often. Other text comes back as it is, so a text that changes is one that needs no style added.

    Args:
        text: a prompt or caption.
        template: with ``{caption}``, and ``{style}`` if need be; with nothing behind the caption, no text changes.
        style: name of the style.

    Returns:
        str: the text; empty when it was nothing but the style.
    """
    behind = template.format(caption="\0", style=style).rpartition("\0")[2]
    ending = behind.strip(_BETWEEN)
    if not ending:
        return text
    # A word that ends like the style ("effluent") is another word, unless the template joins the two itself.
    whole = r"(?<!\w)" if not behind[0].isalnum() and ending[0].isalnum() else ""
    once = rf"(?:\b{_IN_A} )?{whole}{re.escape(ending)}[{_BETWEEN}]*"
    return re.sub(rf"[{_BETWEEN}]*(?:{once})+\Z", "", text, flags=re.IGNORECASE)


def refuse_template(template: str) -> None:
    """Raise ValueError for a template that cannot be filled, or would say the same of every picture."""
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"the template {template!r} is no format string: {error}") from error
    if unknown := sorted(fields - set(TEMPLATE_FIELDS)):
        known = ", ".join(f"{{{name}}}" for name in TEMPLATE_FIELDS)
        raise ValueError(f"the template {template!r} asks for {{{unknown[0]}}}; there are {known}")
    if not fields & _TELLING_FIELDS:
        raise ValueError(f"the template {template!r} must have {{caption}}, {{keywords}} or {{concept}}")


def _filled(template: str, values: Mapping[str, str]) -> str | None:
    """The template's prompt; None when it asks for something that is empty."""
    asked = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    return template.format(**values) if all(values[name] for name in asked) else None


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
