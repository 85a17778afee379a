"""ChunkIndex: chunks, their ids and metadata, and their action embeddings."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qrag_retriever.backends.kinds import Backend
from qrag_retriever.backing import (
    Choice,
    FolderBacking,
    MemoryBacking,
    StoredBacking,
    all_of,
    before_in_document,
    of_document,
    with_ids,
)
from qrag_retriever.batching import Batcher
from qrag_retriever.checks import check_at_least_one, check_list, check_not_empty, check_text, size_in_bytes
from qrag_retriever.config import Mode, QRAGConfig
from qrag_retriever.devices import Dtype, check_choice
from qrag_retriever.engines.base import Engine
from qrag_retriever.engines.opening import open_engine
from qrag_retriever.errors import IndexFolderError
from qrag_retriever.index_model import IndexModel, ModelLike, check_dim, embed, resolve_model
from qrag_retriever.layout import Layout
from qrag_retriever.model import QRAGModel
from qrag_retriever.records import Record, check_records, records_from_texts
from qrag_retriever.scan import ScanKind
from qrag_retriever.scan.factory import check_memory_limit
from qrag_retriever.scan.growing import GrowingArray
from qrag_retriever.sources import MemorySource
from qrag_retriever.storage import IndexFolder
from qrag_retriever.transaction import FolderSettings
from qrag_retriever.view import Geometry, IndexView, make_geometry


class ChunkIndex:
    """Chunks in document order, with their embeddings; can be shared by many retrievers and threads.

    A ``chunk_id`` is a chunk's rank in document order in the current version; an ``id`` is the user's own, and stable.
    A search works on the version that it started with, whatever is added or deleted meanwhile; on an engine it starts
    anew if chunks are deleted or replaced.
    """

    def __init__(
        self,
        records: Sequence[Record],
        embeddings: np.ndarray,
        model: QRAGModel | None = None,
        mode: Mode = "document",
        device: str | None = None,
        scan: ScanKind = "auto",
    ) -> None:
        """Use the constructors `from_texts`, `from_records`, `from_embeddings` and `load` instead.

        Args:
            records: N chunks with distinct ids.
            embeddings: Shape (N, D), finite; kept as float32.
            model: What encodes states; None if only embeddings will be asked for.
            mode: "document" or "corpus".
            device: Torch device of the scan; None or "cpu" for the processor.
            scan: "float32", "int8" (a quarter of the memory traffic, the same results, needs the ``fast`` extra),
                "mapped" (the same results, slower, holds no vectors but those of the folder) or "auto" (one of the
                first two).
        """
        vectors = _checked_embeddings(embeddings, len(records))
        check_records(records)
        config = model.config if model is not None else None
        check_dim(vectors.shape[1], config)
        geometry = make_geometry(vectors.shape[1], mode, config, scan, device)
        view = IndexView(geometry, Layout.initial(records), MemorySource(tuple(records), GrowingArray(vectors)))
        self._set_up(MemoryBacking(), view, IndexModel(model, device=device))

    def _set_up(self, backing: MemoryBacking | StoredBacking, view: IndexView, model: IndexModel) -> None:
        self._backing = backing
        self._view = view
        self._model = model
        self._lock = threading.RLock()
        # Of the index and not of a retriever, so that all its retrievers' searches come together.
        self.batcher: Batcher[Any, Any] = Batcher()
        # What LlamaIndex's index nodes among the chunks point to, by their index ids; not saved.
        self.live_objects: dict[str, Any] = {}

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str] | None = None,
        model: ModelLike = None,
        mode: Mode | Literal["auto"] = "auto",
        device: str | None = None,
        scan: ScanKind = "auto",
        backend: Backend | None = None,
    ) -> ChunkIndex:
        """Embed chunks and index them.

        Args:
            texts: The chunks, in document order; none only if ``mode`` is named, to add them later.
            metadatas: One dict for each, or None. ``document_id`` (else ``source``) names the document it is part of.
            ids: One for each, or None to have them made.
            model: A `QRAGModel`, a model folder, a hub id, or None for the default model.
            mode: "document" (relative positions), "corpus" (none), or "auto": "document".
            device: Of the model and the scan.
            scan: See the class.
            backend: What embeds chunks; see `QRAGModel.from_pretrained`. None: "auto", or that of the model given.

        Raises:
            ValueError: If there are no texts and no mode, lengths differ, or an id occurs twice.
            TypeError: If a text is not a string.
        """
        records = records_from_texts(texts, metadatas, ids)
        check_not_empty(records, "chunk", mode)
        return cls.from_records(records, model, "document" if mode == "auto" else mode, device, scan, backend)

    @classmethod
    def from_records(
        cls,
        records: Sequence[Record],
        model: ModelLike = None,
        mode: Mode = "document",
        device: str | None = None,
        scan: ScanKind = "auto",
        backend: Backend | None = None,
    ) -> ChunkIndex:
        """Embed records and index them; arguments as in `from_texts`."""
        device = check_choice(device, None)  # before all is embedded
        model = resolve_model(model, device, backend=backend)
        return cls(records, embed(model, records), model, mode, device, scan)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: np.ndarray,
        texts: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        model: ModelLike = None,
        mode: Mode = "document",
        device: str | None = None,
        scan: ScanKind = "auto",
    ) -> ChunkIndex:
        """Index embeddings that exist already.

        Args:
            embeddings: Shape (N, D), finite, not rotated: what the action encoder gives.
            texts: The chunks; None gives empty texts.
            ids: One for each; None numbers them "0", "1", ...
            metadatas: One dict for each, or None.
            model: The model that made the embeddings; None if states will be embedded elsewhere. Without a model,
                document mode places chunks at relative positions with the default stride.
            mode: "document" or "corpus".
            device: Torch device of the scan.
            scan: See the class.

        Raises:
            ValueError: If the shape is wrong, a value is not finite, or lengths differ.
        """
        count = len(embeddings)
        chosen_texts = [""] * count if texts is None else texts
        chosen_ids = [str(i) for i in range(count)] if ids is None else ids
        if len(chosen_texts) != count:
            raise ValueError(f"{len(chosen_texts)} texts but {count} embeddings; give one text for each embedding")
        records = records_from_texts(chosen_texts, metadatas, chosen_ids)
        resolved = None if model is None else resolve_model(model, device)
        return cls(records, np.array(embeddings, np.float32), resolved, mode, device, scan)

    @classmethod
    def from_faiss(cls, faiss_index: Any, texts: Sequence[str] | None = None, **arguments: Any) -> ChunkIndex:
        """Index the vectors of a faiss index that can give them back (flat and most quantised kinds).

        Args:
            faiss_index: A faiss index; its vectors are taken in the order of their storage. An ``IndexIDMap`` gives its
                numbers as ids.
            texts: The chunks in the same order.
            **arguments: As for `from_embeddings`.

        Raises:
            ValueError: If the index cannot reconstruct its vectors.
        """
        if hasattr(faiss_index, "id_map"):
            # Asked for a range, faiss ends the process here; the index inside can be asked.
            import faiss

            numbers = faiss.vector_to_array(faiss_index.id_map)
            arguments.setdefault("ids", [str(number) for number in numbers])
            faiss_index = faiss.downcast_index(faiss_index.index)
        try:
            vectors = faiss_index.reconstruct_n(0, faiss_index.ntotal)
        except RuntimeError as error:
            raise ValueError(f"this {type(faiss_index).__name__} cannot give its vectors back: {error}") from error
        return cls.from_embeddings(vectors, texts, **arguments)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: ModelLike = None,
        device: str | None = None,
        dtype: Dtype | None = None,
        reindex: bool = False,
        scan: ScanKind = "auto",
        memory_limit: int | str | None = None,
    ) -> ChunkIndex:
        """Open an index folder; additions and deletions go to it at once.

        Args:
            path: A folder written by `save`.
            model: None takes the model that built the index from where it came from, when a query is first embedded.
            device: Of the model and the scan.
            dtype: Of the model; see `QRAGModel.from_pretrained`.
            reindex: Embed all chunks anew if ``model`` (or what is now where the index's model came from) is another
                one than built the index.
            scan: See the class.
            memory_limit: What ids, order and scan may take, in bytes or as "2GB", beside the model and libraries; the
                quickest scan that fits is taken. Texts and exact vectors stay in the folder anyway.

        Raises:
            IndexFolderError: If the folder is not an index or is damaged.
            ValueError: If the memory limit is no size, is too little for the ids, or ``scan`` is chosen as well; or if
                device or dtype cannot be had.
            ModelMismatchError: If ``model`` is another one, and ``reindex`` is off.
        """
        device = check_choice(device, dtype)
        backing, layout, source = FolderBacking.open(IndexFolder(Path(path)))
        settings = backing.settings
        try:
            held = IndexModel(stored=settings.model, device=device, dtype=dtype)
        except IndexFolderError as error:
            raise IndexFolderError(f"{path} was {error}") from error
        limit = None if memory_limit is None else size_in_bytes(memory_limit, "memory_limit")
        if limit is not None:
            check_memory_limit(scan, len(layout), limit)
        geometry = make_geometry(settings.dim, settings.mode, held.config, scan, device, limit)
        index = cls.__new__(cls)
        index._set_up(backing, IndexView(geometry, layout, source), held)
        if model is None and not reindex:
            return index
        model = held.source_model() if model is None else model
        given = resolve_model(model, device, dtype)
        if reindex and not held.is_built_by(given):
            index._embed_anew(given)
            return cls.load(path, given, device, dtype, scan=scan, memory_limit=memory_limit)
        held.use(given, settings.dim)
        return index

    @classmethod
    def on_pgvector(
        cls,
        connection: Any,
        table: str = "qrag_chunks",
        schema: str | None = None,
        model: ModelLike = None,
        mode: Mode | None = None,
        dim: int | None = None,
        device: str | None = None,
    ) -> ChunkIndex:
        """Open an index in PostgreSQL with pgvector, or create an empty one; chunks and search stay on the server.

        Needs the ``pgvector`` extra. What `add` and `delete` do is committed, in one transaction, before they return;
        every hop is one statement, and its scan is exact. Tables: ``table``, ``table_settings``, ``table_deleted``.

        Args:
            connection: A connection string, or a psycopg connection in autocommit mode for this index alone.
            table: Name of the table, taken literally.
            schema: Of the tables; None leaves it to the connection's search path.
            model: A `QRAGModel`, a model folder or a hub id. None takes the model that built the index from where it
                came from, when it is first needed, and the default model for a new index.
            mode: "document" or "corpus" for a new index (None: "document"); must agree with an existing one.
            dim: For a new index of embeddings alone: their dimension, with no model.
            device: Of the model.

        Raises:
            EngineError: If the table is something else, or pgvector is missing from the server.
            ModelMismatchError: If ``model`` is another one than built the index.
            ValueError: If mode or dimension disagree with the existing index, or the connection is not in autocommit.
        """
        from qrag_retriever.engines.pgvector import PgVectorEngine

        return cls._on_engine(PgVectorEngine.connect(connection, table, schema), model, mode, dim, device)

    @classmethod
    def on_qdrant(
        cls,
        client: Any,
        collection: str = "qrag_chunks",
        model: ModelLike = None,
        mode: Mode | None = None,
        dim: int | None = None,
        device: str | None = None,
    ) -> ChunkIndex:
        """Open an index in Qdrant, or create an empty one; chunks and search stay on the server.

        Needs the ``qdrant`` extra. Every hop is one batch request, and its scan is exact. Qdrant has no transactions:
        see `qrag_retriever.engines.qdrant` for what that means. Collections: ``collection``, ``collection_settings``.

        Args:
            client: A ``QdrantClient``, or a location to make one with (an URL, or ":memory:").
            collection: Name of the collection.
            model: As in `on_pgvector`.
            mode: As in `on_pgvector`.
            dim: As in `on_pgvector`.
            device: Of the model.

        Raises:
            EngineError: If the collection is something else.
            ModelMismatchError: If ``model`` is another one than built the index.
            ValueError: If mode or dimension disagree with the existing index.
        """
        from qrag_retriever.engines.qdrant import QdrantEngine

        return cls._on_engine(QdrantEngine.connect(client, collection), model, mode, dim, device)

    @classmethod
    def on_store(
        cls,
        store: Any,
        model: ModelLike = None,
        mode: Mode | None = None,
        dim: int | None = None,
        device: str | None = None,
        max_norm: float | None = None,
        range_filter: Callable[[str, int, int], Any] | None = None,
    ) -> ChunkIndex:
        """Make an empty index on any vector store of LangChain or LlamaIndex that passes a probe.

        The store keeps the vectors and searches; texts, ids and metadata stay in this process, because no store can be
        asked to list what it holds. So such an index cannot be opened again. It is as exact as the store's search.

        Args:
            store: A LangChain ``VectorStore`` or a LlamaIndex ``BasePydanticVectorStore`` for vectors of one component
                more than the model's. Other documents in it do not matter; another index in it does.
            model: As in `on_pgvector`.
            mode: As in `on_pgvector`.
            dim: As in `on_pgvector`.
            device: Of the model.
            max_norm: No embedding may be longer than this; None allows twice the longest of the first addition.
            range_filter: For LangChain stores whose filters are of no usual kind: makes the ``filter`` argument that
                admits documents whose metadata ``key`` is an integer in [low, high), from ``(key, low, high)``.

        Raises:
            EngineError: If the store does not rank as it must, does not honour range filters, does not delete, or
                holds such an index already.
            TypeError: If it is neither framework's vector store.
        """
        from qrag_retriever.engines.store import StoreEngine

        return cls._on_engine(StoreEngine.over(store, max_norm, range_filter), model, mode, dim, device)

    @classmethod
    def _on_engine(
        cls, engine: Engine, model: ModelLike, mode: Mode | None, dim: int | None, device: str | None
    ) -> ChunkIndex:
        index = cls.__new__(cls)
        index._set_up(*open_engine(engine, model, mode, dim, device))
        return index

    @property
    def view(self) -> IndexView:
        """The current version; searches hold on to the one they started with."""
        return self._view

    def settled_view(self) -> IndexView:
        """Return the current version once no change of this index is under way."""
        with self._lock:
            return self._view

    @property
    def mode(self) -> Mode:
        """Either "document" or "corpus"."""
        return self._view.geometry.mode

    @property
    def dim(self) -> int:
        """Components of an embedding."""
        return self._view.geometry.dim

    @property
    def ids(self) -> list[str]:
        """The users' ids in document order."""
        return list(self._view.layout.ids)

    @property
    def path(self) -> Path | None:
        """The folder that the index is bound to, if any."""
        return self._backing.folder.path if isinstance(self._backing, FolderBacking) else None

    @property
    def hot_bytes(self) -> int:
        """Memory of this process that one hop reads; 0 before the first search, and on an engine."""
        return self._view.hot_bytes

    @property
    def retriever_settings(self) -> dict[str, Any]:
        """What `save` was told to keep for the retriever."""
        return dict(self._backing.settings.retriever) if isinstance(self._backing, FolderBacking) else {}

    @property
    def config(self) -> QRAGConfig | None:
        """Configuration of the model that built the index; None if there was none. Loads nothing."""
        return self._model.config

    def short_fingerprint(self, compute: bool = True) -> str | None:
        """Return the first 12 digits of the model's fingerprint, for traces; see `IndexModel.short_fingerprint`."""
        return self._model.short_fingerprint(compute)

    @property
    def model(self) -> QRAGModel:
        """The model that embeds states.

        Raises:
            ValueError: If the index was built without one.
            ModelMismatchError: If what is found at its source is not the model that built the index.
        """
        return self._model.get()

    def __len__(self) -> int:
        """Count the chunks."""
        return len(self._view)

    def __repr__(self) -> str:
        """Summarise."""
        return f"ChunkIndex({len(self)} chunks, dim={self.dim}, mode={self.mode!r}, {self._backing.location})"

    def __deepcopy__(self, memo: dict[int, Any]) -> ChunkIndex:
        """Share: an index is one thing, however often the objects around it are copied."""
        return self

    def top_k(
        self,
        state_embeddings: np.ndarray,
        picked: Sequence[int] | Sequence[Sequence[int]],
        k: int,
        mask: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One hop: the k best chunks of one state, or of each of B states.

        Args:
            state_embeddings: Shape (D,) or (B, D), not rotated.
            picked: Chunk ids picked so far: one sequence, or B sequences.
            k: Chunks to return, at least 1.
            mask: Shape (N,), bool: False rules a chunk out.

        Returns:
            Chunk ids (k,) or (B, k), int64, and Q-values of the same shape, float32, best first; padded with -1 and
            -inf where fewer than k chunks remain.

        Raises:
            ValueError: If a shape is wrong, a value is not finite, k is below 1, or a picked id is not in the index.
        """
        view = self._view
        states = np.ascontiguousarray(state_embeddings, dtype=np.float32)
        single = states.ndim == 1
        states = np.atleast_2d(states)
        picks: Any = [picked] if single else picked
        if states.ndim != 2 or states.shape[1] != self.dim:
            raise ValueError(f"expected state embeddings of dimension {self.dim}, got shape {states.shape}")
        if not np.isfinite(states).all():
            raise ValueError("the state embeddings have NaN or infinite values")
        if len(picks) != len(states):
            raise ValueError(f"{len(states)} states but {len(picks)} sequences of picks; give one for each state")
        check_at_least_one(k=k)
        mask = None if mask is None else np.asarray(mask)
        if mask is not None and (mask.shape != (len(view),) or mask.dtype != np.bool_):
            raise ValueError(f"expected a bool mask of shape ({len(view)},), got {mask.dtype} of shape {mask.shape}")
        rows = [[int(chunk) for chunk in row] for row in picks]
        for row in rows:
            if any(not 0 <= chunk < len(view) for chunk in row) or len(set(row)) != len(row):
                raise ValueError(f"picked chunk ids must be distinct and in [0, {len(view)}), got {row}")
        chunk_ids, values = view.top_k(states, rows, k, mask)
        return (chunk_ids[0], values[0]) if single else (chunk_ids, values)

    def q_values(self, state_embedding: np.ndarray, picked: Sequence[int] = ()) -> np.ndarray:
        """Score every chunk in one state, (N,), float32; picked chunks are not left out. For plots and checks."""
        return self._view.q_values(np.asarray(state_embedding, np.float32), picked)

    def get(self, ids: Sequence[str]) -> list[Record]:
        """Read copies of records by id; ids that are not in the index are left out.

        Raises:
            TypeError: If the ids are no list of strings.
        """
        check_list(ids, "ids")
        for number, id_ in enumerate(ids):
            check_text(id_, f"id {number}")
        view = self._view
        found = view.records([chunk for id_ in ids if (chunk := view.layout.find(id_)) is not None])
        return [replace(record, metadata=copy.deepcopy(record.metadata)) for record in found]

    def add(
        self,
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str] | None = None,
        embeddings: np.ndarray | None = None,
    ) -> list[str]:
        """Add chunks: at the end of their document, or of the index; a known id is an update.

        Args:
            texts: The chunks.
            metadatas: One dict for each, or None. ``document_id`` (else ``source``) names the document it is part of.
            ids: One for each, or None to have them made.
            embeddings: Shape (M, D), if they exist already; None embeds the texts.

        Returns:
            Their ids.

        Raises:
            DuplicateIdError: If an id occurs twice in the call.
            ModelMismatchError: If the model was trained since it built the index, and the index is not in memory.
            ValueError: If lengths differ, or an embedding has another dimension or is not finite.
            TypeError: If a text is not a string, or the index is on disk and metadata is not JSON.
        """
        return self.add_records(records_from_texts(texts, metadatas, ids), embeddings)

    def add_records(self, records: Sequence[Record], embeddings: np.ndarray | None = None) -> list[str]:
        """Add records; see `add`."""
        records = list(records)
        check_records(records)
        if not records:
            return []
        if embeddings is None:
            embeddings = embed(self._model.embedder(len(records)), records)
        vectors = _checked_embeddings(embeddings, len(records))
        if vectors.shape[1] != self.dim:
            raise ValueError(f"expected embeddings of dimension {self.dim}, got {vectors.shape[1]}")
        with self._lock:
            self._view = self._backing.add(self._view, records, vectors)
        return [record.id for record in records]

    def delete(self, ids: Sequence[str], *, documents: Sequence[str] = (), ignore_unknown: bool = False) -> list[str]:
        """Delete chunks; the ranks behind them close up.

        Args:
            ids: Ids in the index. One that was deleted before is passed over, so that a clean-up can be repeated.
            documents: Documents of which all chunks go with them; see `delete_document`.
            ignore_unknown: Whether an id that never was in the index is passed over too.

        Returns:
            The ids that were deleted now.

        Raises:
            UnknownIdError: If an id never was in the index, or a document has no chunk; then nothing is deleted.
        """
        check_list(ids, "ids")
        check_list(documents, "documents")
        chosen = with_ids(list(dict.fromkeys(ids)), not ignore_unknown)
        return self._delete(all_of(chosen, *map(of_document, documents)) if documents else chosen)

    def _delete(self, choose: Choice) -> list[str]:
        with self._lock:
            self._view, gone = self._backing.delete(self._view, choose)
        return gone

    def delete_document(self, document_id: str) -> list[str]:
        """Delete all chunks of a document, also those that other processes have added; returns their ids.

        Args:
            document_id: As metadata has it: a text, or a number, path or UUID.

        Raises:
            UnknownIdError: If no chunk belongs to it.
        """
        return self._delete(of_document(document_id))

    def delete_before(self, document_id: str, ids: Sequence[str], outdated: Sequence[str] = ()) -> list[str]:
        """Delete what a document had before some of its chunks were added; the second half of replacing it.

        Safe beside others that replace the same document: the last one's chunks are left.

        Args:
            document_id: The document.
            ids: The chunks that were added.
            outdated: Ids of others that are to go, wherever they stand; unknown ones are passed over.

        Returns:
            The ids that were deleted.
        """
        return self._delete(before_in_document(document_id, ids, outdated))

    def ids_of_document(self, document_id: str) -> list[str]:
        """Return the ids of a document's chunks, in order.

        Raises:
            UnknownIdError: If no chunk belongs to it.
        """
        layout = self._view.layout
        return [layout.ids[i] for i in of_document(document_id)(layout, set)]

    def refresh(self) -> None:
        """Take over what other processes have added or deleted since this index was loaded."""
        with self._lock:
            if isinstance(self._backing, StoredBacking):
                self._view = self._backing.reopened(self._view.geometry)

    def save(self, path: str | Path, retriever_settings: Mapping[str, Any] | None = None) -> None:
        """Write the index to a folder, compactly, whole or not at all, and bind it to that folder.

        Vectors are stored in float16; from then on the index searches what is stored. Saving to the folder that the
        index is bound to drops the texts of deleted chunks.

        Args:
            path: A new or empty folder, or an index to replace.
            retriever_settings: Kept for the retriever that loads it; None keeps what there was.

        Raises:
            FileExistsError: If the path holds something that is not an index.
            TypeError: If metadata is not JSON; the message names the key.
        """
        with self._lock:
            folder = IndexFolder(Path(path))
            info = self._model.describe()
            kept = self.retriever_settings if retriever_settings is None else dict(retriever_settings)
            settings = FolderSettings(dim=self.dim, mode=self.mode, model=info, retriever=kept)
            written = False
            while not written:
                # Into its own folder, the index brings along what others have added meanwhile.
                known = self._bound_settings(folder)
                view = self._view
                written = folder.write_new(
                    settings,
                    view.records(range(len(view))),
                    view.source.matrix(),
                    self._backing.deleted_ids(),
                    None if known is None else known.revision,
                )
                if not written:
                    self.refresh()
            self._backing, layout, stored = FolderBacking.open(folder)
            self._view = IndexView(view.geometry, layout, stored)
            self._model = IndexModel(self._model.at_hand, info, *self._model.options)

    def _embed_anew(self, model: QRAGModel) -> None:
        """Rewrite the folder with another model's embeddings, with all that others add meanwhile."""
        backing: Any = self._backing
        written = False
        while not written:
            records = self._view.records(range(len(self)))
            vectors = embed(model, records)
            written = backing.folder.write_new(
                replace(backing.settings, dim=model.config.dim, model=IndexModel(model).describe()),
                records,
                _checked_embeddings(vectors, len(records)),
                backing.deleted_ids(),
                backing.settings.revision,
            )
            if not written:
                self.refresh()

    def _bound_settings(self, folder: IndexFolder) -> FolderSettings | None:
        """Return the settings as this index knows them if the folder is its own."""
        backing = self._backing
        if not isinstance(backing, FolderBacking) or not folder.path.exists() or not backing.folder.path.exists():
            return None
        return backing.settings if folder.path.samefile(backing.folder.path) else None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle a bound index as its folder, an unbound one with its contents; never the lock, never the scan."""
        view = self._view
        state = {"geometry": view.geometry, "model": self._model}
        if isinstance(self._backing, FolderBacking):
            return {**state, "path": self._backing.folder.path, "settings": self._backing.settings}
        if isinstance(self._backing, StoredBacking):
            raise TypeError(f"an index {self._backing.location} cannot be pickled; open it where it is needed")
        source: Any = view.source
        return {**state, "records": source.kept, "vectors": source.rows.array, "deleted": self._backing.deleted_ids()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the folder again, or take the contents over.

        Raises:
            IndexFolderError: If the folder holds another kind of index by now, or one of another model.
        """
        geometry: Geometry = state["geometry"]
        if "path" in state:
            backing = FolderBacking(IndexFolder(state["path"]), state["settings"])
            self._set_up(backing, backing.reopened(geometry), state["model"])
        else:
            source = MemorySource(state["records"], GrowingArray(state["vectors"]))
            view = IndexView(geometry, Layout.initial(state["records"]), source)
            self._set_up(MemoryBacking(state["deleted"]), view, state["model"])


def _checked_embeddings(embeddings: Any, count: int) -> np.ndarray:
    vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"expected embeddings of shape (N, D), got {vectors.shape}")
    if len(vectors) != count:
        raise ValueError(f"{count} chunks but {len(vectors)} embeddings; give one embedding for each chunk")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} embeddings have NaN or infinite values, the first is number {bad[0]}")
    return vectors
