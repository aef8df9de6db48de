"""Small trials: which pictures of a source come in when it may only give so many.

Belongs here: the choice, made the same way for every source, so that a small trial has the same concepts in each style.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


def within_limit(
    items: Iterable[_T], limit: int | None, *, concept: Callable[[_T], str], variant: Callable[[_T], bool]
) -> list[_T]:
    """At most ``limit`` items, by the hash of their concept; variants come after everything else.

    Deterministic, and the same concepts are kept in sources that share them. With no limit all items, in their order.
    """
    kept = list(items)
    if limit is None or len(kept) <= limit:
        return kept
    return sorted(kept, key=lambda item: (variant(item), hashlib.sha256(concept(item).encode()).digest()))[:limit]
