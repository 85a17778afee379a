"""The order of chunks in an index, and how additions and deletions change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from qrag_retriever.records import Record

Key = tuple[int, int]
"""A chunk's place: ``(major, minor)``, ascending. A chunk appended at the end gets a new major; one that joins its
document in the middle gets the major of the document's last chunk and the next minor. No other chunk ever moves."""


@dataclass(frozen=True)
class Layout:
    """Chunks in document order: entry i belongs to chunk id i.

    Attributes:
        rows: Shape (N,), int64: where the chunk's record and vector are stored.
        keys: Shape (N, 2), int64: (major, minor), lexicographically increasing.
        ids: The users' ids.
        document_ids: The documents' ids; None for a chunk that stands alone.
    """

    rows: np.ndarray
    keys: np.ndarray
    ids: tuple[str, ...]
    document_ids: tuple[str | None, ...]

    @classmethod
    def initial(cls, records: Sequence[Record]) -> Layout:
        """Lay out records in the given order, in rows of the same number."""
        rows = np.arange(len(records), dtype=np.int64)
        keys = np.stack([rows, np.zeros_like(rows)], axis=1)
        return cls(rows, keys, tuple(r.id for r in records), tuple(r.document_id for r in records))

    def __len__(self) -> int:
        """Count the chunks."""
        return len(self.rows)

    def find(self, id_: str) -> int | None:
        """Return the chunk id of an id; None if it is not here."""
        chunk = self._chunk_of.get(id_)
        # What a layout that was appended to this one knows is in the same dictionary.
        return chunk if chunk is not None and chunk < len(self) and self.ids[chunk] == id_ else None

    @cached_property
    def _chunk_of(self) -> dict[str, int]:
        return {id_: chunk for chunk, id_ in enumerate(self.ids)}

    @cached_property
    def chunks_of_document(self) -> dict[str, np.ndarray]:
        """Map document ids to their chunk ids, ascending."""
        chunks: dict[str, list[int]] = {}
        for chunk, document in enumerate(self.document_ids):
            if document is not None:
                chunks.setdefault(document, []).append(chunk)
        return {document: np.array(members, np.int64) for document, members in chunks.items()}

    def place(self, records: Sequence[Record]) -> tuple[list[int], list[Key]]:
        """Find where new or updated records go.

        A known id keeps its place, unless its document changed; a new one goes to the end of its document, or of the
        index.

        Returns:
            The chunk ids that are replaced, and a key for each record.
        """
        replaced: list[int] = []
        keys: list[Key] = []
        last_of: dict[str, Key] = {}
        next_major = int(self.keys[-1, 0]) + 1 if len(self) else 0
        for record in records:
            old = self.find(record.id)
            if old is not None:
                replaced.append(old)
                if self.document_ids[old] == record.document_id:
                    keys.append((int(self.keys[old, 0]), int(self.keys[old, 1])))
                    continue
            last = self._last_key(record.document_id, last_of)
            if last is None:
                key = (next_major, 0)
                next_major += 1
            else:
                key = (last[0], last[1] + 1)
            keys.append(key)
            if record.document_id is not None:
                last_of[record.document_id] = key
        return replaced, keys

    def _last_key(self, document: str | None, last_of: dict[str, Key]) -> Key | None:
        if document is None:
            return None
        if document in last_of:
            return last_of[document]
        members = self.chunks_of_document.get(document)
        return None if members is None else (int(self.keys[members[-1], 0]), int(self.keys[members[-1], 1]))

    def changed(
        self, removed: Sequence[int], records: Sequence[Record], keys: Sequence[Key], rows: np.ndarray
    ) -> tuple[Layout, np.ndarray]:
        """Remove chunks, add records at their keys.

        Args:
            removed: Chunk ids to take out.
            records: New records, M of them.
            keys: Their places.
            rows: Shape (M,): where they are stored.

        Returns:
            The new layout, and for each of its chunks where it came from: an old chunk id, or N + i for the i-th new
            record. Equal to ``arange(N + M)`` exactly if the change only appends.
        """
        if not len(removed) and self._are_behind(keys):
            return self._appended(records, keys, rows), np.arange(len(self) + len(records))
        kept = np.setdiff1d(np.arange(len(self)), np.asarray(removed, np.int64))
        new_keys = np.concatenate([self.keys[kept], np.array(keys, np.int64).reshape(-1, 2)])
        origin = np.concatenate([kept, len(self) + np.arange(len(records))])
        order = np.lexsort((new_keys[:, 1], new_keys[:, 0]))
        origin = origin[order]
        all_rows = np.concatenate([self.rows, rows])
        ids = (*self.ids, *(record.id for record in records))
        documents = (*self.document_ids, *(record.document_id for record in records))
        sources = origin.tolist()
        layout = Layout(
            all_rows[origin], new_keys[order], tuple([ids[i] for i in sources]), tuple([documents[i] for i in sources])
        )
        return layout, origin

    def _are_behind(self, keys: Sequence[Key]) -> bool:
        """Tell whether keys ascend, and all are behind those that are here."""
        last = [tuple(self.keys[-1].tolist())] if len(self) else []
        return all(one < next_one for one, next_one in pairwise([*last, *keys]))

    def _appended(self, records: Sequence[Record], keys: Sequence[Key], rows: np.ndarray) -> Layout:
        """Add records at the end; what is looked up by id or document is carried on, not made anew (O(N) each)."""
        layout = Layout(
            np.concatenate([self.rows, rows]),
            np.concatenate([self.keys, np.array(keys, np.int64).reshape(-1, 2)]),
            (*self.ids, *(record.id for record in records)),
            (*self.document_ids, *(record.document_id for record in records)),
        )
        if "_chunk_of" in self.__dict__:
            self._chunk_of.update((record.id, len(self) + i) for i, record in enumerate(records))
            layout.__dict__["_chunk_of"] = self._chunk_of
        if "chunks_of_document" in self.__dict__:
            members: dict[str, list[int]] = {}
            for chunk, record in enumerate(records, start=len(self)):
                if record.document_id is not None:
                    members.setdefault(record.document_id, []).append(chunk)
            known = self.chunks_of_document
            none = np.empty(0, np.int64)
            layout.__dict__["chunks_of_document"] = known | {
                document: np.concatenate([known.get(document, none), np.array(own, np.int64)])
                for document, own in members.items()
            }
        return layout
