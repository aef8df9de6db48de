"""Closed batches as a source: pictures that our own models drew, coming back as data.

Belongs here: reading batches that others closed: feedback (what people rated well) and synthetic pictures (what was
drawn for thin classes). How a batch is made is theirs; that its pictures are trained on only is the splits'.
"""

import json
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from genai_assets import durable
from genai_assets.datasets.picture_store import PictureStore
from genai_assets.datasets.records import FEEDBACK_LICENCE
from genai_assets.datasets.sources.source import Description, Fetched, Listed, SourceUnreadable


class ClosedBatchesSource:
    """A folder of manifests (Parquet), whose pictures lie in a store of drawn pictures.

    A batch is never changed once it is there: more is a new file. Everything in it counts as synthetic.
    """

    def __init__(self, name: str, batches: Path, drawn: PictureStore, *, licence: str = FEEDBACK_LICENCE):
        """Nothing is read yet.

        Args:
            name: of the source.
            batches: the folder of closed batches; when it is not there, none was closed yet.
            drawn: where their pictures lie.
            licence: SPDX identifier of the pictures that state none.
        """
        self.name = name
        self.licence = licence
        self._batches = batches
        self._drawn = drawn

    def files(self) -> list[Path]:
        """The closed batches, sorted by name."""
        return sorted(self._batches.glob("*.parquet"))

    def list(self) -> Iterator[Listed]:
        """Every picture of every batch; its state is the digest of its batch.

        Raises:
            SourceUnreadable: a batch cannot be read.
        """
        for key, (row, state) in self._rows.items():
            yield Listed(key, state, concept=row["concept"], variant=bool(row.get("variant", False)))

    def fetch(self, keys: Collection[str]) -> Iterator[Fetched]:
        """Pictures and what their batches say of them; one that the store of drawn pictures lacks is refused."""
        for key in keys:
            if key in self._rows:
                yield self._fetched(key, self._rows[key][0])

    def _fetched(self, key: str, row: dict[str, Any]) -> Fetched:
        try:
            data = self._drawn.read(row["id"], verify=True)
        except FileNotFoundError:
            reason = f"its picture is not in {self._drawn.root}; bring it back, or remove the batch"
            return Fetched(key, refusal=reason, passing=True)
        except (OSError, ValueError) as error:
            return Fetched(key, refusal=f"its picture cannot be read: {error}", passing=True)
        added_at = row.get("added_at")
        description = Description(
            caption=row["caption"],
            concept=row["concept"],
            style=row["style"],
            licence=row["licence"] or self.licence,
            category=row.get("category", ""),
            keywords=tuple(row.get("keywords", ())),
            variant=bool(row.get("variant", False)),
            synthetic=True,
            opt_out=row.get("opt_out", ""),
            provenance=json.loads(row.get("provenance", "{}")),
            added_at=added_at.to_pydatetime() if isinstance(added_at, pd.Timestamp) else None,
        )
        return Fetched(key, data, description)

    @cached_property
    def _rows(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Key to row and state, over all batches."""
        rows: dict[str, tuple[dict[str, Any], str]] = {}
        for path in self.files():
            try:
                state = durable.digest_file(path)[:16]
                found = pd.read_parquet(path).to_dict("records")
            except (OSError, ValueError) as error:
                raise SourceUnreadable(
                    f"the closed batch {path} cannot be read: {error}; bring it back whole"
                ) from error
            for row in found:
                key, again = f"{path.stem}/{row['id']}", 1
                while key in rows:  # one picture under several captions
                    again += 1
                    key = f"{path.stem}/{row['id']}#{again}"
                rows[key] = ({str(name): value for name, value in row.items()}, state)
        return rows
