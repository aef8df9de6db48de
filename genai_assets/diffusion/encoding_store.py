"""What encoders made of pictures and prompts, kept by content, so that nothing is encoded twice.

Belongs here: the store and its keys. A build of a training cache that was killed goes on where it was, and a cache of
more data encodes only what is new. What is encoded, and how, is ``training_cache``.

A value is committed with its batch or not at all, and a value whose digest does not hold is encoded anew. It is one
SQLite table and not a file a value: with everything synced to the disk, 2,048 prompts of 15 kB in batches of 64 took
0.8 s to write and 0.2 s to read; as files 20.4 s and 0.1 s, for each of them is synced by itself. At 131 kB (latents
of 1,024 pixels a side) it was 0.5 s against 4.8 s for 512, at 4 MB (T5) 0.6 s against 1.0 s for 32.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy import exc

from genai_assets import durable
from genai_assets.database import Database

Encoding = dict[str, np.ndarray]
"""Named arrays of several items, [N, ...]; in the store, of one item."""

Kind = Literal["pictures", "prompts"]


class EncodingStoreUnreadable(RuntimeError):
    """The store cannot be read or written; the message names it and the mend."""


_metadata = sa.MetaData()

_encodings = sa.Table(
    "encodings",
    _metadata,
    sa.Column("key", sa.LargeBinary(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
)


class EncodingStore(Database):
    """Encodings by the digest of (kind, version of the encoder, what was encoded).

    It grows with what is encoded and is never cut; removing its file costs nothing but the time to encode anew.

    Args:
        url: SQLAlchemy URL.
        versions: of the encoder of pictures and of prompts: digests of their weights. Another version finds nothing
            that the first one made.
    """

    def __init__(self, url: str, versions: Mapping[Kind, str]):
        super().__init__(url, _metadata)
        self._versions = dict(versions)

    def encoded(self, kind: Kind, items: Sequence[Any], encode: Callable[[Sequence[int]], Encoding]) -> Encoding:
        """Encodings of items, those that are kept and those made now; what is made is kept before it is returned.

        Args:
            kind: which encoder.
            items: what is encoded: plain JSON values that say all that the result depends on.
            encode: gives the encodings of the items at these places, in their order; not called when all are kept.

        Returns:
            Encoding: one row an item.

        Raises:
            EncodingStoreUnreadable: the database is damaged, locked, or full.
        """
        keys = [self._key(kind, item) for item in items]
        try:
            found = self._read(keys)
            # An item may be asked for twice.
            missing = [place for place, key in enumerate(keys) if key not in found and key not in keys[:place]]
            if missing:
                made = encode(missing)
                new = {keys[place]: {name: made[name][row] for name in made} for row, place in enumerate(missing)}
                self._write(new)
                found |= new
        except exc.DBAPIError as error:
            raise EncodingStoreUnreadable(
                f"the store of encodings {self.name} cannot be used: {error.orig}. If it is damaged, remove it: "
                "everything is then encoded anew"
            ) from error
        return {name: np.stack([found[key][name] for key in keys]) for name in found[keys[0]]}

    def _key(self, kind: Kind, item: Any) -> bytes:
        return hashlib.sha256(durable.canonical_json([kind, self._versions[kind], item]).encode()).digest()

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Encoding]:
        from safetensors.numpy import load

        rows = self._rows(sa.select(_encodings).where(_encodings.c.key.in_(set(keys))))
        return {row.key: load(row.value) for row in rows if hashlib.sha256(row.value).digest() == row.digest}

    def _write(self, encodings: Mapping[bytes, Encoding]) -> None:
        from safetensors.numpy import save

        self._create_tables()
        values = {
            key: save({name: np.asarray(part, order="C") for name, part in one.items()})
            for key, one in encodings.items()
        }
        with self._engine.begin() as connection:
            # What is there already is damaged, or was written by another process meanwhile.
            connection.execute(_encodings.delete().where(_encodings.c.key.in_(list(values))))
            connection.execute(
                _encodings.insert(),
                [
                    {"key": key, "value": value, "digest": hashlib.sha256(value).digest()}
                    for key, value in values.items()
                ],
            )
