"""Icon sets as sources: emoji drawn in several styles, with names, keywords and licences.

Belongs here: which packages there are and how their icons become records: an icon's picture comes from its set, its
words from emojibase and emojilib, joined by the emoji's codepoints. Fetching packages is ``npm_packages``; whether a
licence is allowed is ``licences``.
"""

import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import resvg_py

from genai_assets import durable
from genai_assets.datasets import decoding
from genai_assets.datasets.npm_packages import NpmPackage, fetch_package
from genai_assets.datasets.sources.source import (
    Description,
    Fetched,
    Listed,
    SourceOptions,
    SourceUnreadable,
    Surroundings,
)

SVG_SIZE = 128
"""Side in pixels at which an SVG icon is drawn."""

_READING = 2  # raise it when the same packages would give other records
_FLAGS = "flags"

EMOJIBASE = NpmPackage(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
EMOJILIB = NpmPackage(
    "emojilib",
    "4.0.3",
    "sha512-KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
)


@dataclass(frozen=True)
class IconSet:
    """One set of icons in one style.

    Attributes:
        package: where its pictures come from.
        style: the style's name in captions and records.
        licence: SPDX identifier of the art.
        layout: ``codepoints`` (an Iconify set with a table of codepoints), ``names`` (an Iconify set that only names
            its icons) or ``webp`` (a folder of WebP files named by codepoints).
        author: whom to credit.
        notice: where the licence's text is.
        without: categories that are left out.
    """

    package: NpmPackage
    style: str
    licence: str
    layout: str
    author: str
    notice: str
    without: frozenset[str] = frozenset()


ICON_SETS: Mapping[str, IconSet] = {
    "noto": IconSet(
        NpmPackage(
            "@iconify-json/noto",
            "1.2.9",
            "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
        style="noto",
        licence="Apache-2.0",
        layout="codepoints",
        author="Google Inc",
        notice="https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE",
    ),
    "twemoji": IconSet(
        NpmPackage(
            "@iconify-json/twemoji",
            "1.2.5",
            "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
        style="twemoji",
        licence="CC-BY-4.0",
        layout="codepoints",
        author="Twitter, Inc and other contributors",
        notice="https://creativecommons.org/licenses/by/4.0/",
    ),
    "fxemoji": IconSet(
        NpmPackage(
            "@iconify-json/fxemoji",
            "1.2.2",
            "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        ),
        style="firefox",
        licence="Apache-2.0",
        layout="names",
        author="Mozilla",
        notice="https://mozilla.github.io/fxemoji/LICENSE.md",
    ),
    "noto-v1": IconSet(
        NpmPackage(
            "@iconify-json/noto-v1",
            "1.2.5",
            "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
        style="noto-v1",
        licence="Apache-2.0",
        layout="names",
        author="Google Inc",
        notice="https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE",
    ),
    "emojione": IconSet(
        NpmPackage(
            "@iconify-json/emojione",
            "1.2.3",
            "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        ),
        style="emojione",
        licence="CC-BY-4.0",
        layout="names",
        author="Emoji One",
        notice="https://creativecommons.org/licenses/by/4.0/",
    ),
    "streamline-emojis": IconSet(
        NpmPackage(
            "@iconify-json/streamline-emojis",
            "1.2.4",
            "sha512-iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        ),
        style="streamline",
        licence="CC-BY-4.0",
        layout="names",
        author="Streamline",
        notice="https://creativecommons.org/licenses/by/4.0/",
    ),
    "openmoji": IconSet(
        NpmPackage(
            "@iconify-json/openmoji",
            "1.2.29",
            "sha512-vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        ),
        style="openmoji",
        licence="CC-BY-SA-4.0",
        layout="codepoints",
        author="OpenMoji",
        notice="https://creativecommons.org/licenses/by-sa/4.0/",
    ),
    "fluent-emoji-3d": IconSet(
        NpmPackage(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        style="fluent",
        licence="MIT",
        layout="webp",
        author="Microsoft Corporation",
        notice="Microsoft's Fluent Emoji, MIT (https://github.com/microsoft/fluentui-emoji), packaged by lobehub",
        without=frozenset({_FLAGS}),  # the package adds flags that are not Microsoft's
    ),
}
"""The sets that are known, by the name the setting ``dataset.icon_sets`` uses."""


@dataclass(frozen=True)
class Emoji:
    """What emojibase and emojilib say of one emoji.

    Attributes:
        codepoints: its key, see :func:`normalised_codepoints`.
        concept: key of the emoji it is a skin-tone variation of; its own key when it is none.
        label: its English name; a variation names its tones.
        category: its group, for example ``food-drink``.
        keywords: further words, without doubles.
        variant: whether it is a skin-tone variation.
    """

    codepoints: str
    concept: str
    label: str
    category: str
    keywords: tuple[str, ...]
    variant: bool


@dataclass(frozen=True)
class _Icon:
    """One picture that can be drawn or read when it is its turn; ``state`` differs when the picture does."""

    emoji: Emoji
    name: str
    file: str
    state: str
    picture: Callable[[], bytes]


class IconSetSource:
    """An icon set from an npm package as a source.

    Sets that only name their icons (``fxemoji``) are matched by the squashed name ("redapple") with emojibase's labels
    first and its shortcodes second; icons that match nothing, or several emoji, are left out, and each emoji gets one
    icon at most. In the others an icon without an emoji in emojibase (regional indicators, private extras) is left out.

    An icon's key is its emoji's codepoints: they stay when a package renames its files.
    """

    class Options(SourceOptions):
        """Options of the kind ``icon-set``.

        Attributes:
            set: one of :data:`ICON_SETS`.
        """

        set: str

    def __init__(self, set_name: str, packages: Path, *, offline: bool = False, name: str | None = None):
        """Nothing is fetched yet.

        Args:
            set_name: one of :data:`ICON_SETS`.
            packages: folder of unpacked npm packages.
            offline: never ask the registry.
            name: of the source; ``icons:`` and the set's name when not given.

        Raises:
            ValueError: no such set.
        """
        if set_name not in ICON_SETS:
            raise ValueError(f"unknown icon set {set_name!r} in dataset.icon_sets; known are {', '.join(ICON_SETS)}")
        self.name = name or f"icons:{set_name}"
        self.icon_set = ICON_SETS[set_name]
        self.licence = self.icon_set.licence
        self._packages = packages
        self._offline = offline

    @classmethod
    def open(cls, options: "IconSetSource.Options", surroundings: Surroundings) -> Self:
        """A source by its options. Fetches nothing yet.

        Raises:
            ValueError: no such set, or a style or licence is stated: a set has its own.
        """
        if options.style or options.licence:
            raise ValueError(f"the icon set {options.set!r} has a style and a licence of its own; leave both out")
        return cls(options.set, surroundings.cache, offline=surroundings.offline, name=options.name)

    def list(self) -> Iterator[Listed]:
        """Every icon that has an emoji; its state is the drawing's digest with all else that decides the record.

        Raises:
            PackageUnavailable: a package cannot be had.
            SourceUnreadable: a package is not laid out as expected, or states another licence than the one known here.
        """
        drawing = "" if self.icon_set.layout == "webp" else f"resvg {resvg_py.__resvg_version__} {SVG_SIZE}"
        packages = [package.integrity for package in (self.icon_set.package, EMOJIBASE, EMOJILIB)]
        said = [_READING, packages, drawing, self.icon_set.style, self.licence]
        common = durable.digest_json(said)[:12]
        for key, icon in self._icons.items():
            yield Listed(key, f"{common} {icon.state}", icon.emoji.concept, icon.emoji.variant)

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """Pictures (SVGs drawn at :data:`SVG_SIZE`, WebP files as they are) and their words."""
        for key in keys:
            if icon := self._icons.get(key):
                try:
                    yield Fetched(key, icon.picture(), self._description(icon))
                except (decoding.UndecodablePicture, OSError) as error:
                    yield Fetched(key, refusal=f"the icon {icon.name} cannot be drawn: {error}")

    def _description(self, icon: _Icon) -> Description:
        return Description(
            caption=icon.emoji.label,
            concept=icon.emoji.concept,
            style=self.icon_set.style,
            licence=self.licence,
            category=icon.emoji.category,
            keywords=icon.emoji.keywords,
            variant=icon.emoji.variant,
            provenance={
                "package": self.icon_set.package.name,
                "version": self.icon_set.package.version,
                "file": icon.file,
                "icon": icon.name,
                "author": self.icon_set.author,
                "licence_notice": self.icon_set.notice,
            },
        )

    @cached_property
    def _icons(self) -> dict[str, _Icon]:
        folder = self._fetch(self.icon_set.package)
        emojis = read_emojis(self._fetch(EMOJIBASE), self._fetch(EMOJILIB))
        try:
            icons = _ICONS_BY_LAYOUT[self.icon_set.layout](self.icon_set, folder, emojis)
        except (KeyError, ValueError) as error:
            raise SourceUnreadable(f"{self.icon_set.package} cannot be understood: {error}") from error
        return {icon.emoji.codepoints: icon for icon in icons if icon.emoji.category not in self.icon_set.without}

    def _fetch(self, package: NpmPackage) -> Path:
        return fetch_package(package, self._packages, offline=self._offline)


def normalised_codepoints(codepoints: str) -> str:
    """The key that all sets are joined on: lowercase hexadecimal, dash-joined, without the variation selector fe0f.

    >>> normalised_codepoints("2764-FE0F")
    '2764'
    """
    return "-".join(part for part in codepoints.lower().split("-") if part != "fe0f")


@cache
def read_emojis(emojibase: Path, emojilib: Path) -> Mapping[str, Emoji]:
    """Every emoji that has a category, by its key, in emojibase's order; variations follow what they vary.

    Args:
        emojibase, emojilib: folders of the unpacked packages.
    """
    entries: list[dict[str, Any]] = json.loads((emojibase / "en" / "data.json").read_text())
    groups: dict[str, str] = json.loads((emojibase / "meta" / "groups.json").read_text())["groups"]
    words: dict[str, list[str]] = {
        _codepoints_of(emoji): keywords
        for emoji, keywords in json.loads((emojilib / "dist" / "emoji-en-US.json").read_text()).items()
    }
    emojis: dict[str, Emoji] = {}
    for entry in entries:
        if "group" not in entry:  # regional indicators: halves of flags, not emoji
            continue
        concept = normalised_codepoints(entry["hexcode"])
        keywords = clean_keywords([*entry.get("tags", []), *words.get(concept, [])], label=entry["label"])
        for form in (entry, *entry.get("skins", [])):
            key = normalised_codepoints(form["hexcode"])
            category = groups[str(entry["group"])]
            emojis[key] = Emoji(key, concept, form["label"], category, keywords, variant=form is not entry)
    return emojis


def clean_keywords(keywords: Iterable[str], *, label: str) -> tuple[str, ...]:
    """Keywords as words: underscores become spaces; emoticons (":D"), doubles and the label itself are left out."""
    kept: dict[str, str] = {}
    for keyword in keywords:
        words = " ".join(keyword.replace("_", " ").split())
        if _WORDS.fullmatch(words) and words.casefold() != label.casefold():
            kept.setdefault(words.casefold(), words)
    return tuple(kept.values())


_WORDS = re.compile(r"\w[\w '’.&+-]*")


def _codepoints_of(emoji: str) -> str:
    return normalised_codepoints("-".join(f"{ord(character):04x}" for character in emoji))


def _icons_by_codepoints(icon_set: IconSet, folder: Path, emojis: Mapping[str, Emoji]) -> list[_Icon]:
    drawings = _Drawings(icon_set, folder)
    names: dict[str, str] = {}
    for codepoints, name in json.loads((folder / "chars.json").read_text()).items():
        names.setdefault(normalised_codepoints(codepoints), name)
    if not names:
        raise ValueError(f"{icon_set.package} has no table of codepoints (chars.json is empty)")
    return [drawings.icon(name, emojis[key]) for key, name in names.items() if key in emojis]


def _icons_by_names(icon_set: IconSet, folder: Path, emojis: Mapping[str, Emoji]) -> list[_Icon]:
    drawings = _Drawings(icon_set, folder)
    emojibase = folder.parent / EMOJIBASE.folder_name
    by_label, by_shortcode = _squashed_names(emojibase, emojis)
    icons: dict[str, _Icon] = {}
    for table in (by_label, by_shortcode):
        for name in drawings.names():
            emoji = table.get(_squash(name))
            if emoji:
                icons.setdefault(emoji.codepoints, drawings.icon(name, emoji))
    return list(icons.values())


def _icons_of_webp(icon_set: IconSet, folder: Path, emojis: Mapping[str, Emoji]) -> list[_Icon]:
    icons: dict[str, _Icon] = {}
    for path in sorted((folder / "assets").glob("*.webp")):
        emoji = emojis.get(normalised_codepoints(path.stem))
        if emoji:
            file = path.relative_to(folder).as_posix()
            icons.setdefault(emoji.codepoints, _Icon(emoji, path.stem, file, path.stem, path.read_bytes))
    if not icons:
        raise ValueError(f"{icon_set.package} has no pictures in its folder 'assets'")
    return list(icons.values())


_ICONS_BY_LAYOUT: Mapping[str, Callable[[IconSet, Path, Mapping[str, Emoji]], list[_Icon]]] = {
    "codepoints": _icons_by_codepoints,
    "names": _icons_by_names,
    "webp": _icons_of_webp,
}


class _Drawings:
    """The icons of an Iconify set: bodies of SVGs by name, with aliases (other names of the same drawing)."""

    def __init__(self, icon_set: IconSet, folder: Path):
        self._set: dict[str, Any] = json.loads((folder / "icons.json").read_text())
        self._aliases: dict[str, dict[str, Any]] = self._set.get("aliases", {})
        stated = json.loads((folder / "info.json").read_text())["license"]["spdx"]
        if stated != icon_set.licence:
            raise ValueError(f"{icon_set.package} states the licence {stated}, not {icon_set.licence} as known here")

    def names(self) -> list[str]:
        return sorted(self._set["icons"])

    def icon(self, name: str, emoji: Emoji) -> _Icon:
        drawing = self._resolve(name)
        return _Icon(
            emoji,
            name,
            file=f"icons.json#{drawing}",
            state=durable.digest_bytes(self._set["icons"][drawing]["body"].encode())[:16],
            picture=lambda: decoding.render_svg(self._svg(drawing), SVG_SIZE),
        )

    def _resolve(self, name: str) -> str:
        seen = {name}
        while name not in self._set["icons"]:
            alias = self._aliases.get(name)
            if alias is None or alias["parent"] in seen:
                raise ValueError(f"icon {name!r} of the set {self._set['prefix']!r} has no drawing")
            if alias.keys() - {"parent", "hidden"}:
                raise ValueError(f"alias {name!r} of the set {self._set['prefix']!r} turns its drawing: unsupported")
            name = alias["parent"]
            seen.add(name)
        return name

    def _svg(self, name: str) -> str:
        icon = self._set["icons"][name]
        # Iconify's defaults: an icon's own measure, else the set's, else 16.
        left, top = icon.get("left", self._set.get("left", 0)), icon.get("top", self._set.get("top", 0))
        width, height = icon.get("width", self._set.get("width", 16)), icon.get("height", self._set.get("height", 16))
        side = max(width, height)  # a square view box centres icons that are not square
        svg = io.StringIO()
        svg.write('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ')
        svg.write(f'viewBox="{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}">')
        svg.write(f"{icon['body']}</svg>")
        return svg.getvalue()


def _squash(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _squashed_names(emojibase: Path, emojis: Mapping[str, Emoji]) -> tuple[dict[str, Emoji], dict[str, Emoji]]:
    """Emoji by squashed label, and by squashed shortcode; a name that several emoji share names none."""
    labels = ((emoji.label, emoji) for emoji in emojis.values())
    shortcodes = (
        (name, emojis[key])
        for path in sorted((emojibase / "en" / "shortcodes").glob("*.json"))
        for codepoints, given in json.loads(path.read_text()).items()
        if (key := normalised_codepoints(codepoints)) in emojis
        for name in ([given] if isinstance(given, str) else given)
    )
    return _unambiguous(labels), _unambiguous(shortcodes)


def _unambiguous(names: Iterable[tuple[str, Emoji]]) -> dict[str, Emoji]:
    meant: dict[str, dict[str, Emoji]] = {}
    for name, emoji in names:
        if squashed := _squash(name):
            meant.setdefault(squashed, {})[emoji.codepoints] = emoji
    return {name: next(iter(emojis.values())) for name, emojis in meant.items() if len(emojis) == 1}
