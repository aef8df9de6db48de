"""Personal data and keys in text: e-mail addresses, telephone numbers, and strings that look like a password or key.

Belongs here: finding them in one line of text, and masking them so that no report repeats them. What is done about a
caption that has some is ``caption_quality``'s and the team's. Names of people and postal addresses are not looked for,
and no picture is looked at: **faces are not detected anywhere in this project.**

Telephone numbers are parsed by the rules of their countries (libphonenumber, as the package ``phonenumbers``), keys are
told by the patterns of their issuers (detect-secrets, whose plugins are called one by one, without its settings, which
are global). Most captions hold neither, so a cheap test goes first.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from detect_secrets.plugins.base import RegexBasedDetector

PersonalDataKind = Literal["e-mail address", "telephone number", "secret"]

KINDS: tuple[PersonalDataKind, ...] = get_args(PersonalDataKind)

FEWEST_DIGITS_OF_A_NUMBER = 8
"""A shorter telephone number is not told from a price, a date or a size."""

_ELLIPSIS = "…"
_AT = r"(?:@|\s?[(\[]\s?at\s?[)\]]\s?)"
_DOT = r"(?:\.|\s?[(\[]\s?dot\s?[)\]]\s?)"
_EMAIL = re.compile(
    rf"(?<![\w.+-])(?P<local>[^\W_][\w.+-]{{0,63}}){_AT}"
    rf"(?P<domain>(?:[^\W_][\w-]{{0,62}}{_DOT}){{1,8}}(?P<top>[^\W\d_]{{2,24}}))(?![\w-])",
    re.IGNORECASE,
)
# "icon@2x.png" is a file for fine screens; "jane@example.com.png" has an address in it.
_FILE_ENDINGS = frozenset(
    {"png", "jpg", "jpeg", "gif", "webp", "svg", "bmp", "tif", "tiff", "heic", "avif", "psd", "pdf"}
)

_MAYBE_A_NUMBER = re.compile(r"(?:\d[\s().\-/\u2010-\u2015]{0,3}){" + str(FEWEST_DIGITS_OF_A_NUMBER) + "}")
_ANNOUNCES_A_NUMBER = re.compile(
    r"(?:\b(?:tele)?(?:phone|fon|tel|call|fax|mobile|mobil|cell|whatsapp|text|dial|ring)\b|[☎☏✆📞📱])\W{0,4}(?:\w+\W{1,3}){0,2}$",
    re.IGNORECASE,
)
_ANNOUNCES_A_PRODUCT = re.compile(
    r"\b(?:part|item|model|serial|sku|isbn|issn|ean|upc|gtin|art|article|ref|reference|order|product|no|nr|id|code|lot|"
    r"batch|catalog(?:ue)?|patent|version|lat|lon|size)\b[\s.:#№]*(?:no|nr|number)?[\s.:#№]*$",
    re.IGNORECASE,
)
_LOOK_BACK = 32  # characters before a number that may say what it is

# Plugins of detect-secrets that know an issuer's own form. Left out are those for bare entropy and "password =", which
# look for quotes as source code has them, for public IP addresses, and Artifactory's, which fits capitalised words.
_DETECTORS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector",
    "openai": "OpenAIDetector",
    "private_key": "PrivateKeyDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
_MAYBE_A_SECRET = re.compile(r"\S{18}|private key|[:=]", re.IGNORECASE)
_NAMED_SECRET = re.compile(
    r"\b(?:pass(?:word|wd|phrase|code)?|pwd|pin|secret|token|"
    r"(?:api|access|private|auth|client)[ _-]?(?:key|token|secret))"
    r"\s*[:=]\s*[\"'`]?(?P<value>(?=\S*\d)[^\s\"'`]{4,})",
    re.IGNORECASE,
)
_FEWEST_CHARACTERS_OF_A_KEY = 20
_LONG_WORD = re.compile(rf"(?<![\w+/=-])[A-Za-z0-9+_=-]{{{_FEWEST_CHARACTERS_OF_A_KEY},}}(?![\w+/=-])")
_HEXADECIMAL_KEY = re.compile(r"(?=.*\d)(?=.*[a-f])[0-9a-f]{32,}", re.IGNORECASE)
# Letters of both cases and digits take turns in a random key; in words and product names they come in runs.
_FEWEST_TURNS = 0.4


@dataclass(frozen=True)
class Finding:
    """Personal data in a text.

    Attributes:
        kind: what it is.
        start, end: where in the text.
        masked: fit to be shown: enough to find it again, not enough to use it.
    """

    kind: PersonalDataKind
    start: int
    end: int
    masked: str


def find_personal_data(
    text: str, kinds: Sequence[PersonalDataKind] = KINDS, phone_regions: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """Personal data in a text, in the order of where it begins; of two that overlap, the first by kind.

    Args:
        text: one caption.
        kinds: what to look for.
        phone_regions: countries (ISO 3166-1, two letters) whose national telephone numbers are known; numbers that
            begin with + and a country's code are found whatever is here.
    """
    found: list[Finding] = []
    for kind, finder in (("secret", _secrets), ("e-mail address", _emails), ("telephone number", _numbers)):
        if kind in kinds:
            for finding in finder(text, phone_regions):
                if not any(finding.start < other.end and other.start < finding.end for other in found):
                    found.append(finding)
    return tuple(sorted(found, key=lambda finding: finding.start))


def mask(text: str, findings: Sequence[Finding]) -> str:
    """The text with every finding masked."""
    for finding in sorted(findings, key=lambda finding: -finding.start):
        text = text[: finding.start] + finding.masked + text[finding.end :]
    return text


def _emails(text: str, _regions: Sequence[str]) -> Iterator[Finding]:
    """Addresses, also those that hide their @ as ``(at)``."""
    if "@" not in text and " at" not in text and "at)" not in text and "at]" not in text:
        return
    for match in _EMAIL.finditer(text):
        if match["top"].lower() not in _FILE_ENDINGS or match["domain"].count(".") > 1:
            masked = f"{match['local'][0]}{_ELLIPSIS}@{match['domain'][0]}{_ELLIPSIS}"
            yield Finding("e-mail address", *match.span(), masked)


def _numbers(text: str, regions: Sequence[str]) -> Iterator[Finding]:
    """Telephone numbers: international ones, and national ones that are written as such.

    A national number counts when its digits are grouped as its country groups them, or when a word announces it
    ("phone", ☎); a bare row of digits does not, nor what a word tells to be the number of something else.
    """
    if not _MAYBE_A_NUMBER.search(text):
        return
    from phonenumbers import Leniency, PhoneNumberMatcher

    taken: list[tuple[int, int]] = []
    for region in (None, *regions):
        leniency = Leniency.VALID if region is None else Leniency.STRICT_GROUPING
        for match in PhoneNumberMatcher(text, region, leniency=leniency):
            raw = match.raw_string
            digits = sum(character.isdigit() for character in raw)
            before = text[max(0, match.start - _LOOK_BACK) : match.start]
            announced = _ANNOUNCES_A_NUMBER.search(before) is not None
            international = raw.startswith(("+", "00", "\uff0b"))
            grouped = not raw.isdigit()
            if digits < FEWEST_DIGITS_OF_A_NUMBER or any(
                match.start < end and start < match.end for start, end in taken
            ):
                continue
            if announced or ((international or grouped) and not _ANNOUNCES_A_PRODUCT.search(before)):
                taken.append((match.start, match.end))
                yield Finding("telephone number", match.start, match.end, f"{raw[:2]}{_ELLIPSIS} ({digits} digits)")


def _secrets(text: str, _regions: Sequence[str]) -> Iterator[Finding]:
    """Keys in the form of a known issuer, values named as a password or key, and long strings that look random."""
    if not _MAYBE_A_SECRET.search(text):
        return
    for name, detector in _detectors():
        for value in detector.analyze_string(text):
            start = text.find(value) if value else -1
            if start >= 0:
                yield Finding("secret", start, start + len(value), f"{value[:2]}{_ELLIPSIS} ({name})")
    for match in _NAMED_SECRET.finditer(text):
        yield Finding("secret", *match.span("value"), f"{match['value'][0]}{_ELLIPSIS} (named as one)")
    for match in _LONG_WORD.finditer(text):
        if _looks_random(match[0]):
            yield Finding("secret", *match.span(), f"{match[0][:2]}{_ELLIPSIS} (key-like string)")


@cache
def _detectors() -> "tuple[tuple[str, RegexBasedDetector], ...]":
    from importlib import import_module

    classes = (getattr(import_module(f"detect_secrets.plugins.{module}"), name) for module, name in _DETECTORS.items())
    return tuple((detector.secret_type, detector()) for detector in classes)


def _looks_random(word: str) -> bool:
    if _HEXADECIMAL_KEY.fullmatch(word):
        return True
    kinds = ["d" if letter.isdigit() else "u" if letter.isupper() else "l" for letter in word if letter.isalnum()]
    turns = sum(one != other for one, other in pairwise(kinds))
    return len(set(kinds)) == 3 and len(kinds) >= _FEWEST_CHARACTERS_OF_A_KEY and turns >= _FEWEST_TURNS * len(kinds)
