"""Releases: which of the categories that were kept back have arrived.

Belongs here: the durable list of released categories. What a release does to a record's split is ``splits``; noticing
it and asking for a retrain is the new-data sensor's work.
"""

import json
from pathlib import Path

from genai_assets import durable
from genai_assets.settings import HomePaths, Settings


def released_categories(paths: HomePaths) -> frozenset[str]:
    """The categories that were released; empty when none ever was.

    Raises:
        ValueError: the list is there but cannot be read; that is not the same as empty.
    """
    path = _list(paths)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return frozenset()
    try:
        released = json.loads(text)["released"]
        if not (isinstance(released, list) and all(isinstance(category, str) for category in released)):
            raise TypeError("released is no list of names")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is damaged ({error}); make it {{"released": [names of categories]}}, or remove it to release none'
        ) from error
    return frozenset(released)


def release_category(paths: HomePaths, category: str, settings: Settings) -> frozenset[str]:
    """Release one category for training; durable when it returns. Releasing it again changes nothing.

    Returns:
        Every category released so far.

    Raises:
        ValueError: ``category`` is not one of ``settings.splits.later_categories``.
    """
    released = released_categories(paths)
    if category in released:
        return released
    later = settings.splits.later_categories
    if category not in later:
        held_back = ", ".join(sorted(set(later) - released)) or "none"
        raise ValueError(f"{category!r} is not a category that is kept back; those kept back are: {held_back}")
    released |= {category}
    durable.write_json(_list(paths), {"released": sorted(released)})
    return released


def _list(paths: HomePaths) -> Path:
    return paths.home / "released.json"
