"""Rules for captions: what makes one unfit to train with, told in words.

Belongs here: the rules and what breaks them, for one caption at a time. A problem is told, nothing is decided: whether
a record is kept is ``validation``'s, and what a better caption would be is for people (``label_studio``).

Caption checks are warnings for people to look at, and each can be wrong: a short text is in no certain language, and a
number with the right groups is no telephone by that alone. What was measured is in ``docs/captions.md``.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from genai_assets.datasets.personal_data import KINDS, PersonalDataKind, find_personal_data, mask

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

ProblemKind = Literal["mojibake", "boilerplate", "too short", "too long", "language"] | PersonalDataKind

FEWEST_LETTERS = 20
FEWEST_WORDS = 4
"""A caption with fewer letters or words is in no language that could be told: "ein Taxi", "taxi", "pizza"."""

MOST_LIKELY = 0.5
ALLOWED_UNLIKELY = 0.003
"""Another language is told when it has at least the first probability and all allowed ones together at most the second.

Names decide a lot in a short text: in "Day of the Dead (Día de los Muertos) altar" English has 0.0033.
"""

MOST_LOOKED_AT = 2000
"""Characters: a longer caption is too long whatever its words, and no more of it is looked at (patterns take their time
with hostile text, and ``dataset.max_caption_length`` quarantines it long before)."""

_SHOWN = 40  # characters of a caption in a report
_MEMORY = 1 << 16  # captions; a manifest repeats them, and is checked more than once

# Scripts that a language is written in, for telling "wholly in another script" however short the caption is. Languages
# that are not here are written in Latin letters.
_SCRIPTS = {
    "CYRILLIC": ["ru", "uk", "bg", "sr", "mk", "be", "kk", "ky", "mn", "tg"],
    "GREEK": ["el"],
    "ARABIC": ["ar", "fa", "ur", "ps", "ug", "sd", "ckb"],
    "HEBREW": ["he", "yi"],
    "DEVANAGARI": ["hi", "mr", "ne", "sa"],
    "BENGALI": ["bn", "as"],
    "TAMIL": ["ta"],
    "TELUGU": ["te"],
    "THAI": ["th"],
    "GEORGIAN": ["ka"],
    "ARMENIAN": ["hy"],
    "HANGUL": ["ko"],
    "CJK": ["zh", "ja"],
    "HIRAGANA": ["ja"],
    "KATAKANA": ["ja"],
}

_FILE_TYPES = "jpe?g|jfif|png|gif|webp|bmp|tiff?|heic|heif|avif|svg|psd|ai|eps|raw|cr2|nef|dng"
_PICTURE = "image|picture|photo(?:graph)?|graphic"
_BOILERPLATE: tuple[tuple[str, str], ...] = (
    ("file name", rf"[\w()\-]+\.(?:{_FILE_TYPES})\b"),
    ("camera's name", r"\b(?:IMG|DSC[FN]?|DCIM|PXL|MVI|VID|GOPR|SAM|CIMG|PICT)[_-]?\d{3,}\w*"),
    (
        "camera's name",
        rf"\b(?:screen ?shot|whatsapp image|scan|img|pic|{_PICTURE})[ _-]*(?:\d{{4}}[-.]\d\d[-.]\d\d|\d{{4,}}).*",
    ),
    (
        "name of no picture",
        rf"^(?:untitled|img|scan|screen ?shot|icon|default|copy|{_PICTURE})[ _-]*(?:of)?[ _-]*\(?\d*\)?$",
    ),
    ("UUID", r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"),
    ("web address", r"\b(?:https?://|www\.)\S+"),
    ("web address", r"(?<![@\w.-])(?:[a-z0-9-]+\.)+(?:com|org|net|io|co\.uk|de|fr)\b(?:/\S*)?"),
    ("HTML", r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>"),
    (
        "opening that says nothing",
        rf"^(?:(?:an?|the|this|stock|close-?up)\s+)*(?:{_PICTURE})\s+(?:of|showing|depicting|shows|with)\b",
    ),
    ("opening that says nothing", rf"^(?:{_PICTURE})\s*:"),
    (
        "stock agency",
        r"\b(?:royalty[- ]free|stock (?:photos?|images?|vectors?|illustrations?|footage|photography)|shutterstock|"
        r"getty ?images|istock(?:photo)?|adobe ?stock|alamy|dreamstime|depositphotos|123rf|bigstock|pngtree|freepik)\b",
    ),
    ("rights notice", r"(?:©|\(c\)|\bcopyright)\s*(?:\d{4}|by\b)|\ball rights reserved\b"),
    ("rights notice", rf"^(?:{_PICTURE})(?: credit)?\s*(?:by|©)\s"),
    (
        "instruction to a reader",
        r"\b(?:click|tap|press)\s+(?:here|to|for|on)\b|\b(?:read|see) more\b|\bview (?:larger|full size)\b|"
        r"\bclick\s+\w+\s+to\s+enlarge\b",
    ),
    (
        "alt text of a page",
        r"\b(?:image may contain|may be an image of|no (?:photo )?description available|alt[ -]?text|"
        r"image not (?:found|available)|placeholder image|thumbnail for)\b",
    ),
    (
        "no caption",
        r"^(?:none|null|nan|n/?a|undefined|unknown|no caption|todo|tbd|test|caption|description|lorem ipsum.*|-+|\?+)$",
    ),
    ("size instead of words", r"^\d{2,5}\s*[x×]\s*\d{2,5}(?:\s*(?:px|pixels))?$"),
)

_HTML_ENTITY = re.compile(r"&(?:[a-z]{2,8}\d?|#\d{2,6}|#x[0-9a-f]{2,5});", re.IGNORECASE)
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2})|%[CE][0-9A-F]%[89AB][0-9A-F]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NOT_WORD = re.compile(r"[\W\d_]+")


class CaptionRules(BaseModel):
    """What a caption must be like; the section ``captions`` of the settings has these fields among its own.

    Attributes:
        languages: ISO 639-1 codes of the languages captions may be in; none: not judged.
        min_words, min_characters, max_words: a caption's length; words are what blanks part, so ``max_words`` says
            little about languages written without blanks.
        boilerplate: further regular expressions for text that tells nothing of a picture, whatever their case; those
            for file names, web addresses, stock agencies and the like are built in.
        personal_data: what to look for of ``personal_data.KINDS``.
        phone_regions: countries whose national telephone numbers are known (ISO 3166-1, two letters); those that begin
            with + are always.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    languages: tuple[str, ...] = Field(
        default=("en",), description="Languages captions may be in, ISO 639-1; empty: not judged."
    )
    min_words: int = Field(default=1, ge=0, description="Fewer words make a caption too short.")
    min_characters: int = Field(default=2, ge=0, description="Fewer characters make a caption too short.")
    max_words: int = Field(default=60, ge=1, description="More words make a caption too long for most text encoders.")
    boilerplate: tuple[str, ...] = Field(
        default=(), description="Further regular expressions for text that tells nothing of a picture."
    )
    personal_data: tuple[PersonalDataKind, ...] = Field(
        default=KINDS, description="What to look for: e-mail address, telephone number, secret."
    )
    phone_regions: tuple[str, ...] = Field(
        default=("US", "GB"),
        description="Countries whose national telephone numbers are known; those with + always are.",
    )

    @field_validator("languages")
    @classmethod
    def _are_languages(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for language in languages:
            if not re.fullmatch(r"[a-z]{2,3}", language):
                raise ValueError(f"{language!r} is no ISO 639-1 code: write it like 'en'")
        return languages

    @field_validator("boilerplate")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
            if compiled.search(""):
                raise ValueError(f"{pattern!r} fits every caption, even an empty one")
        return patterns

    @field_validator("phone_regions")
    @classmethod
    def _are_regions(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        for region in regions:
            if not re.fullmatch(r"[A-Z]{2}", region):
                raise ValueError(f"{region!r} is no country: write its two letters, like 'US'")
        return regions

    @model_validator(mode="after")
    def _lengths_go_together(self) -> "CaptionRules":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) is more than max_words ({self.max_words})")
        return self


@dataclass(frozen=True)
class Problem:
    """What is wrong with a caption.

    Attributes:
        kind: fit for counting.
        detail: a sentence's worth; shows no personal data.
    """

    kind: ProblemKind
    detail: str


def caption_problems(caption: str, rules: CaptionRules) -> tuple[Problem, ...]:
    """Everything that is wrong with a caption: one problem of a kind, personal data one for each; empty if it is good.

    Depends on nothing but its arguments, and remembers its answers. An empty caption is "too short" alone, unless the
    rules allow it.
    """
    return _problems(caption, rules)  # pyright: ignore[reportArgumentType] - pydantic makes frozen models hashable


@lru_cache(maxsize=_MEMORY)
def _problems(caption: str, rules: CaptionRules) -> tuple[Problem, ...]:
    text = caption.strip()
    if not text:
        return (Problem("too short", "it is blank"),) if rules.min_words or rules.min_characters else ()
    if len(text) > MOST_LOOKED_AT:
        told = Problem("too long", f"{len(text):,} characters, more than {MOST_LOOKED_AT:,}")
        begun = (problem for problem in caption_problems(_begin(text), rules) if problem.kind != "too long")
        return (told, *begun)
    problems = [Problem("mojibake", detail) for detail in _mojibake(text, rules)]
    problems += [Problem("boilerplate", detail) for detail in _boilerplate(text, rules)]
    if not problems and (detail := _other_language(text, rules.languages)):
        problems.append(Problem("language", detail))
    problems += _length(text, rules)
    for finding in find_personal_data(text, rules.personal_data, rules.phone_regions):
        problems.append(Problem(finding.kind, finding.masked))
    return tuple(problems)


def masked_caption(caption: str, rules: CaptionRules) -> str:
    """The caption as a report may show it: personal data masked, whichever kinds the rules look for.

    Only the first :data:`MOST_LOOKED_AT` characters are looked at and shown.
    """
    if len(caption) > MOST_LOOKED_AT:
        caption = f"{_begin(caption)}…"
    return mask(caption, find_personal_data(caption, KINDS, rules.phone_regions))


def _mojibake(text: str, rules: CaptionRules) -> Iterator[str]:
    """Letters that were read in the wrong encoding, or lost; what it should have been, when that can be told."""
    if "\ufffd" in text:
        yield "a letter was lost (\ufffd)"
    elif match := _HTML_ENTITY.search(text) or _ESCAPE.search(text):
        yield f"{match[0]} stands for a letter"
    elif not text.isascii():
        from ftfy import fix_encoding
        from ftfy.badness import is_bad

        if is_bad(text):
            mended = fix_encoding(text)
            shown = _cut(masked_caption(mended, rules))
            yield f"it should perhaps be “{shown}”" if mended != text else "letters that do not go together"
        elif match := _CONTROL.search(text):
            yield f"an invisible control character (U+{ord(match[0]):04X})"
    elif match := _CONTROL.search(text):
        yield f"an invisible control character (U+{ord(match[0]):04X})"


def _boilerplate(text: str, rules: CaptionRules) -> Iterator[str]:
    """The first text that tells nothing of a picture."""
    for name, pattern in _patterns(rules.boilerplate):
        if match := pattern.search(text):
            start, end = match.span()
            findings = find_personal_data(text, KINDS, rules.phone_regions)
            # What is masked is masked whole: half an address would no longer be known for one.
            for finding in findings:
                if finding.start < end and start < finding.end:
                    start, end = min(start, finding.start), max(end, finding.end)
            inside = [finding for finding in findings if start <= finding.start and finding.end <= end]
            moved = [replace(one, start=one.start - start, end=one.end - start) for one in inside]
            yield f"{name}: “{_cut(mask(text[start:end], moved).strip())}”"
            return


@cache
def _patterns(own: tuple[str, ...]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    named = (*_BOILERPLATE, *(("captions.boilerplate", pattern) for pattern in own))
    return tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in named)


def _length(text: str, rules: CaptionRules) -> Iterator[Problem]:
    words = len(text.split())
    if words < rules.min_words:
        yield Problem("too short", f"{words} of at least {rules.min_words} words")
    elif len(text) < rules.min_characters:
        yield Problem("too short", f"{len(text)} of at least {rules.min_characters} characters")
    elif words > rules.max_words:
        yield Problem("too long", f"{words} words, more than {rules.max_words}")


def _other_language(text: str, allowed: tuple[str, ...]) -> str:
    """What tells that a caption is in none of the allowed languages; empty when nothing tells it.

    Told when not one letter is of a script that they are written in; else only for a caption long enough, and when the
    identifier (py3langid) is sure both of another language and that it is none of these.
    """
    if not allowed:
        return ""
    scripts = {_script(letter) for letter in text if letter.isalpha()}
    expected = {script for language in allowed for script in _scripts_of(language)}
    if scripts and not scripts & expected:
        found = ", ".join(sorted(script.lower() for script in scripts))
        return f"written in {found} letters; expected {' or '.join(allowed)}"
    letters = sum(map(str.isalpha, text))
    if letters < FEWEST_LETTERS or len(text.split()) < FEWEST_WORDS:
        return ""
    ranked = _identifier().rank(text)
    known = dict(ranked)
    if unknown := [language for language in allowed if language not in known]:
        raise ValueError(
            f"captions.languages has {', '.join(unknown)}, which cannot be told from other languages; "
            f"leave it empty to judge none, or use some of {', '.join(sorted(known))}"
        )
    likely, probability = ranked[0]
    rest = sum(float(known[language]) for language in allowed)
    if likely not in allowed and probability >= MOST_LIKELY and rest <= ALLOWED_UNLIKELY:
        return f"probably {likely}; expected {' or '.join(allowed)}"
    return ""


def _scripts_of(language: str) -> list[str]:
    return [script for script, languages in _SCRIPTS.items() if language in languages] or ["LATIN"]


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "OTHER").split()[0].removesuffix("-COMPATIBILITY")


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _begin(text: str) -> str:
    """What is looked at of a long text: whole words, for half an address would not be known for one."""
    words = text[:MOST_LOOKED_AT].rsplit(None, 1)
    return words[0] if len(words) == 2 else text[: MOST_LOOKED_AT - 1]


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
