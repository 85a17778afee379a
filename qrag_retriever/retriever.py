"""QRAGRetriever: one class, a true LangChain retriever and a true LlamaIndex retriever.

It is a thin view of a `ChunkIndex` and holds search settings only, so several retrievers can share one index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from qrag_retriever.backends.kinds import Backend
from qrag_retriever.batching import off_the_loop, waiting_threads
from qrag_retriever.checks import check_not_empty, plain_integer
from qrag_retriever.config import Mode
from qrag_retriever.devices import Dtype
from qrag_retriever.filters import Filters
from qrag_retriever.index import ChunkIndex
from qrag_retriever.index_model import ModelLike, resolve_model
from qrag_retriever.integrations.added_metadata import AddedKeys
from qrag_retriever.integrations.documents import ids_of, records_of
from qrag_retriever.integrations.installed import make_callback_manager
from qrag_retriever.model import QRAGModel
from qrag_retriever.records import Record, records_from_texts
from qrag_retriever.scan import ScanKind
from qrag_retriever.selection import Selection
from qrag_retriever.selector import Found, MultiStepSelector
from qrag_retriever.setting_names import name_here
from qrag_retriever.steps import HopListener
from qrag_retriever.streams import AsyncHopStream, HopStream

if TYPE_CHECKING:
    from typing_extensions import Self

    from qrag_retriever.integrations.langchain import LangChainSide
    from qrag_retriever.integrations.llama_index import LlamaIndexSide
else:
    from qrag_retriever.integrations import installed

    LangChainSide, LlamaIndexSide = installed.langchain_side, installed.llama_index_side

MinQ = float | Literal["auto"] | None
Order = Literal["retrieved", "document"]
Count = Annotated[int, BeforeValidator(plain_integer), Field(ge=1, strict=True)]
# What an index keeps of a retriever.
_TWO_NAMES = "k and similarity_top_k are two names of one setting; give one of them"
_SAVED = ("k", "min_q", "beam_width", "order", "score_key", "hop_key")
# What a user sets, as an error lists it; the frameworks' own fields are accepted as well.
_ASKED = (
    "k",
    "similarity_top_k",
    "min_q",
    "beam_width",
    "order",
    "filters",
    "batch_wait_ms",
    "score_key",
    "hop_key",
    "trace_hops",
)


def _check_setting_names(kind: type[BaseModel], values: Mapping[str, Any]) -> None:
    for name in values.keys() - {*kind.model_fields, "similarity_top_k", "objects"}:
        hint = name_here(name, _ASKED)
        raise ValueError(f"there is no setting {name!r}{hint}; there are {', '.join(_ASKED)}")


def _with_objects(values: dict[str, Any], known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Turn LlamaIndex's ``objects``, if they are given, into its ``object_map``."""
    if "objects" not in values:
        return values
    values = dict(values)
    objects = values.pop("objects") or []
    return {**values, "object_map": {**(known or {}), **{node.index_id: node.obj for node in objects}}}


class _Settings(BaseModel):
    """What both sides share: the index, the search settings, and all methods that know no framework."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True)

    index: ChunkIndex = Field(exclude=True)
    k: Count = Field(default=4, validation_alias=AliasChoices("k", "similarity_top_k"))
    min_q: MinQ = None
    beam_width: Count = 1
    order: Order = "retrieved"
    filters: Any = None
    batch_wait_ms: float = Field(default=0.0, ge=0)
    score_key: str | None = "score"
    hop_key: str | None = "qrag_hop"
    trace_hops: bool = True
    # LlamaIndex's own attributes; they must be fields to exist on a pydantic object.
    callback_manager: Any = Field(default_factory=make_callback_manager, exclude=True, repr=False)
    object_map: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    verbose: bool = False

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        """Name the settings there are, where pydantic would only say that an input is not permitted."""
        if isinstance(values, dict):
            _check_setting_names(cls, values)
            if "index" not in values:
                raise ValueError("a retriever needs an index; from_texts, from_documents and load make it with one")
        return values

    @model_validator(mode="before")
    @classmethod
    def _take_objects(cls, values: Any) -> Any:
        """Accept LlamaIndex's ``objects=``: index nodes whose objects are searched in turn."""
        return _with_objects(values, values.get("object_map")) if isinstance(values, dict) else values

    @field_validator("index", mode="before")
    @classmethod
    def _check_index(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            raise ValueError(f"expected a ChunkIndex, got the path {str(value)!r}; open it with QRAGRetriever.load")
        return value

    @field_validator("min_q", mode="before")
    @classmethod
    def _check_min_q_word(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto":
            raise ValueError(f"expected min_q as a number, 'auto' or None, got {value!r}")
        return value

    @field_validator("callback_manager", mode="before")
    @classmethod
    def _default_callback_manager(cls, value: Any) -> Any:
        return make_callback_manager() if value is None else value

    @field_serializer("filters")
    def _plain_filters(self, filters: Any) -> Any:
        """Show a callable by its name: it has no JSON."""
        return repr(filters) if callable(filters) else filters

    @field_validator("object_map", mode="before")
    @classmethod
    def _default_object_map(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _check_min_q(self) -> _Settings:
        if self.min_q is not None:
            self._selector()
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the settings, with some of them changed; the index is shared.

        Args:
            update: Fields and their values in the copy.
            deep: Copy what the fields hold as well, except for the index and what is alive.

        Raises:
            ValueError: If there is no setting of a name.
        """
        changed = _with_objects(dict(update or {}), self.object_map)
        if {"k", "similarity_top_k"} <= changed.keys():
            raise ValueError(_TWO_NAMES)
        if "similarity_top_k" in changed:
            changed["k"] = changed.pop("similarity_top_k")
        _check_setting_names(type(self), changed)
        copied = super().model_copy(update=changed, deep=deep)
        if "object_map" not in changed:
            copied.object_map = dict(copied.object_map)
        return copied

    @property
    def similarity_top_k(self) -> int:
        """LlamaIndex's name for ``k``."""
        return self.k

    @similarity_top_k.setter
    def similarity_top_k(self, k: int) -> None:
        self.k = k

    @property
    def _verbose(self) -> bool:
        """LlamaIndex's private name for ``verbose``."""
        return self.verbose

    @_verbose.setter
    def _verbose(self, verbose: bool) -> None:
        self.verbose = verbose

    @property
    def mode(self) -> Mode:
        """The index's mode: "document" or "corpus"."""
        return self.index.mode

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
        **settings: Any,
    ) -> QRAGRetriever:
        """Embed chunks and make a retriever for them.

        Args:
            texts: The chunks, in document order; none only if ``mode`` is named, to add them later.
            metadatas: One dict for each, or None. ``document_id`` (else ``source``) names the document it is part of.
            ids: One for each, or None to have them made.
            model: A `QRAGModel`, a model folder, a hub id, or None for the default model.
            mode: "document" (relative positions, picked chunks shown in document order), "corpus" (no positions, order
                of picking) or "auto": "document".
            device: Of the model and the scan.
            scan: See `ChunkIndex`.
            backend: What embeds chunks; see `QRAGModel.from_pretrained`. None: "auto", or that of the model given.
            **settings: Fields of the retriever: ``k``, ``min_q``, ``beam_width``, ``order``, ``filters``, ...

        Raises:
            ValueError: If there are no texts and no mode, lengths differ, or an id occurs twice.
            TypeError: If a text is not a string.
        """
        records = records_from_texts(texts, metadatas, ids)
        check_not_empty(records, "chunk", mode)
        model = resolve_model(model, device, backend=backend)
        return cls._embedded(records, model, "document" if mode == "auto" else mode, device, scan, settings)

    @classmethod
    def _embedded(
        cls, records: Sequence[Record], model: QRAGModel, mode: Mode, device: str | None, scan: ScanKind,
        settings: Mapping[str, Any],
    ) -> QRAGRetriever:  # fmt: skip
        # What is wrong with a setting is to be told before hours of embedding, not after.
        cls(index=ChunkIndex([], np.empty((0, model.config.dim), np.float32), model, mode, device, scan), **settings)
        index = ChunkIndex.from_records(records, model, mode, device, scan)
        return cls(index=index, **settings)  # type: ignore[return-value]

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Any],
        splitter: Any = None,
        model: ModelLike = None,
        mode: Mode | Literal["auto"] = "auto",
        device: str | None = None,
        scan: ScanKind = "auto",
        backend: Backend | None = None,
        ids: Sequence[str] | None = None,
        **settings: Any,
    ) -> QRAGRetriever:
        """Index documents of either framework.

        LlamaIndex documents are split by sentences up to the model's chunk limit; LangChain documents and LlamaIndex
        nodes are chunks already and are taken as they are. What a search has put into their metadata is left out.

        Args:
            documents: LangChain documents, LlamaIndex documents or nodes, mixed at will; none only if ``mode`` is
                named, to add them later.
            splitter: A LlamaIndex node parser to split LlamaIndex documents with, or a LangChain text splitter to split
                LangChain documents with.
            model: As in `from_texts`.
            mode: As in `from_texts`; "auto": "document" if everything comes from one source document (or no source is
                known), else "corpus".
            device: As in `from_texts`.
            scan: As in `from_texts`.
            backend: As in `from_texts`.
            ids: Of LangChain documents, in place of their own.
            **settings: As in `from_texts`.

        Raises:
            ValueError: If there are no documents and no mode.
            TypeError: If something is neither framework's document, or the splitter is for the other framework's.
        """
        if isinstance(documents, Sequence):
            check_not_empty(documents, "document", mode)
        model = resolve_model(model, device, backend=backend)
        added = AddedKeys(*(settings.get(key, cls.model_fields[key].default) for key in ("score_key", "hop_key")))
        records, objects = records_of(documents, splitter, model, ids, added)
        if mode == "auto":
            mode = "document" if len({record.document_id for record in records}) <= 1 else "corpus"
        retriever = cls._embedded(records, model, mode, device, scan, settings)
        retriever.index.live_objects.update(objects)
        return retriever

    @classmethod
    def from_defaults(
        cls, index: Any = None, nodes: Sequence[Any] | None = None, docstore: Any = None, **arguments: Any
    ) -> QRAGRetriever:
        """Make a retriever from exactly one of: an index, nodes, a docstore.

        Args:
            index: A `ChunkIndex`, or a LlamaIndex index, whose docstore is read.
            nodes: LlamaIndex nodes.
            docstore: A LlamaIndex docstore; all its nodes are indexed.
            **arguments: As for `from_documents`; for a `ChunkIndex` the retriever's fields.

        Raises:
            ValueError: If none or several of them are given.
        """
        given = {"index": index, "nodes": nodes, "docstore": docstore}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise ValueError(f"expected exactly one of index, nodes and docstore, got {' and '.join(named) or 'none'}")
        if isinstance(index, ChunkIndex):
            return cls(index=index, **arguments)  # type: ignore[return-value]
        if index is not None:
            docstore = index.docstore
            if not docstore.docs and getattr(getattr(index, "vector_store", None), "stores_text", False):
                raise ValueError(
                    f"the docstore of this {type(index).__name__} is empty, since its vector store keeps the text "
                    "itself; give the nodes, as nodes=..."
                )
        return cls.from_documents(list(docstore.docs.values()) if nodes is None else nodes, **arguments)

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
        **settings: Any,
    ) -> QRAGRetriever:
        """Open an index folder with the settings that were saved; see `ChunkIndex.load`.

        Args:
            path: A folder written by `save`.
            model: As in `ChunkIndex.load`.
            device: As in `ChunkIndex.load`.
            dtype: As in `ChunkIndex.load`.
            reindex: As in `ChunkIndex.load`.
            scan: As in `ChunkIndex.load`.
            memory_limit: As in `ChunkIndex.load`.
            **settings: Fields of the retriever that replace the saved ones.
        """
        index = ChunkIndex.load(path, model, device, dtype, reindex, scan, memory_limit)
        if "similarity_top_k" in settings:
            if "k" in settings:
                raise ValueError(_TWO_NAMES)
            settings["k"] = settings.pop("similarity_top_k")
        return cls(index=index, **{**index.retriever_settings, **settings})  # type: ignore[return-value]

    @classmethod
    def from_persist_dir(cls, path: str | Path, **arguments: Any) -> QRAGRetriever:
        """LlamaIndex's name for `load`."""
        return cls.load(path, **arguments)

    def save(self, path: str | Path) -> None:
        """Write the index and the settings to a folder; see `ChunkIndex.save`.

        Filters, waits and ``trace_hops`` are not saved.
        """
        # Fields may be set to anything later, numbers of numpy for example.
        checked = _Settings(index=self.index, **{name: getattr(self, name) for name in _SAVED})
        self.index.save(path, {name: getattr(checked, name) for name in _SAVED})

    def persist(self, path: str | Path) -> None:
        """LlamaIndex's name for `save`."""
        self.save(path)

    def refresh(self) -> None:
        """Take over what other processes have added to the index or deleted; see `ChunkIndex.refresh`."""
        self.index.refresh()

    def search(self, query: str, k: int | None = None, filters: Filters | None = None, min_q: MinQ = None) -> Selection:
        """Search, and return the hops with all that is known of them.

        Args:
            query: The question.
            k: Most chunks to return, this time.
            filters: In place of the retriever's, this time.
            min_q: In place of the retriever's, this time.
        """
        return self._selected(self._selector(k, filters, min_q), query)[0]

    def search_iter(
        self, query: str, k: int | None = None, filters: Filters | None = None, min_q: MinQ = None
    ) -> HopStream:
        """Search hop by hop: yields each step as soon as it is picked, the same steps as `search`.

        The stream's ``selection`` is what `search` returns, once it has ended. A search of its own, whatever
        ``batch_wait_ms``. With ``beam_width`` above 1 all steps come at the end, since only then the best sequence is
        known.

        Args:
            query: As in `search`.
            k: As in `search`.
            filters: As in `search`.
            min_q: As in `search`.

        Raises:
            ValueError: As `search`, and at once.
            TypeError: As `search`, and at once.
        """
        return self._selector(k, filters, min_q).select_iter(query)

    def search_many(
        self, queries: Sequence[str], k: int | None = None, filters: Filters | None = None, min_q: MinQ = None
    ) -> list[Selection]:
        """Search for many queries at once; their states are embedded in one batch at each hop."""
        return self._selector(k, filters, min_q).select_many(queries)

    async def asearch(
        self, query: str, k: int | None = None, filters: Filters | None = None, min_q: MinQ = None
    ) -> Selection:
        """Do as `search`, off the event loop."""
        return await off_the_loop(self._executor, self.search, query, k, filters, min_q)

    def asearch_iter(
        self, query: str, k: int | None = None, filters: Filters | None = None, min_q: MinQ = None
    ) -> AsyncHopStream:
        """Do as `search_iter`, off the event loop: ``async for step in retriever.asearch_iter(question)``."""
        return AsyncHopStream(self.search_iter(query, k, filters, min_q), self._executor)

    def add_texts(
        self,
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[str]:
        """Add chunks at the end of their document, or of the index; a known id is an update. Returns the ids."""
        return self.index.add(texts, metadatas, ids)

    async def aadd_texts(
        self,
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[str]:
        """Do as `add_texts`, off the event loop."""
        return await asyncio.to_thread(self.add_texts, texts, metadatas, ids)

    def add_documents(
        self, documents: Sequence[Any], splitter: Any = None, ids: Sequence[str] | None = None
    ) -> list[str]:
        """Add documents of either framework, as `from_documents` takes them. Returns the chunks' ids.

        A chunk with a known id is an update; to replace a document that is split, see `update_ref_doc`.
        """
        known = {record.id: record for record in self.index.get(ids_of(documents, ids))}
        added = AddedKeys(self.score_key, self.hop_key)
        records, objects = records_of(documents, splitter, self.index.model, ids, added, known)
        changed = self.index.add_records(records)
        # With the index, for all retrievers over it.
        self.index.live_objects.update(objects)
        return changed

    async def aadd_documents(
        self, documents: Sequence[Any], splitter: Any = None, ids: Sequence[str] | None = None
    ) -> list[str]:
        """Do as `add_documents`, off the event loop."""
        return await asyncio.to_thread(self.add_documents, documents, splitter, ids)

    def delete_ref_doc(self, ref_doc_id: str) -> list[str]:
        """Delete all chunks of a document; returns their ids.

        Raises:
            UnknownIdError: If no chunk belongs to it.
        """
        return self.index.delete_document(ref_doc_id)

    def _selector(self, k: int | None = None, filters: Filters | None = None, min_q: MinQ = None) -> MultiStepSelector:
        return MultiStepSelector(
            self.index,
            k=self.k if k is None else k,
            min_q=self.min_q if min_q is None else min_q,
            beam_width=self.beam_width,
            filters=self.filters if filters is None else filters,
        )

    def _selected(
        self,
        selector: MultiStepSelector,
        query: str,
        first_state: np.ndarray | None = None,
        listener: HopListener | None = None,
    ) -> Found:
        """Search, together with others that come at the same time if that was asked for."""
        if not self.batch_wait_ms:
            return selector.select_records(query, first_state, listener)
        return selector.select_together(query, first_state, self.batch_wait_ms / 1000, listener)

    @property
    def _executor(self) -> ThreadPoolExecutor | None:
        """Threads for searches of an event loop; None: its own, of which there may be too few to make a batch."""
        return waiting_threads() if self.batch_wait_ms else None

    def _ordered_search(
        self,
        query: str,
        k: int | None = None,
        filters: Filters | None = None,
        min_q: MinQ = None,
        first_state: np.ndarray | None = None,
        listener: HopListener | None = None,
    ) -> tuple[Selection, tuple[Record, ...], list[int]]:
        """Search; also return the steps' records, and their numbers in the order that the frameworks show them."""
        selection, records = self._selected(self._selector(k, filters, min_q), query, first_state, listener)
        return selection, records, self._shown_order(selection)

    def _ordered_searches(
        self,
        queries: Sequence[str],
        listeners: Sequence[HopListener | None],
        k: int | None = None,
        filters: Filters | None = None,
        min_q: MinQ = None,
    ) -> list[tuple[Selection, list[int]] | Exception]:
        """Search for many queries in one batch; also return the numbers of the steps in the order that is shown.

        What a listener raises stands in place of its own search's steps.
        """
        outcomes = self._selector(k, filters, min_q).select_many_outcomes(queries, [None] * len(queries), listeners)
        return [one if isinstance(one, Exception) else (one[0], self._shown_order(one[0])) for one in outcomes]

    def _shown_order(self, selection: Selection) -> list[int]:
        places = list(range(len(selection.steps)))
        # Fields may be set to anything later.
        if self.order not in get_args(Order):
            raise ValueError(f"expected order as 'retrieved' or 'document', got {self.order!r}")
        if self.order == "document":
            places.sort(key=lambda place: selection.steps[place].chunk_id)
        return places

    def _trace_settings(
        self, k: int | None = None, min_q: MinQ = None, compute: bool = True, **_others: Any
    ) -> dict[str, Any]:
        """Return what traces tell of a search: the model, if it is known or to be identified, and the settings."""
        model = self.index.short_fingerprint(compute)
        return {
            **({} if model is None else {"qrag_model": model}),
            "qrag_k": self.k if k is None else k,
            "qrag_min_q": self.min_q if min_q is None else min_q,
            "qrag_beam_width": self.beam_width,
            "qrag_mode": self.mode,
        }


# Every pydantic base comes before LlamaIndex's, whose constructor must not run: it knows nothing of fields.
class QRAGRetriever(_Settings, LangChainSide, LlamaIndexSide):
    """Multi-step retriever for LangChain and LlamaIndex.

    Attributes:
        index: What is searched.
        k: Most chunks to return, which is also the number of hops; alias ``similarity_top_k``.
        min_q: Stop when the best Q-value is not above it; "auto" takes the model's calibrated value; None never stops.
        beam_width: Sequences of picks to keep at every hop.
        order: "retrieved" returns chunks in the order of picking, "document" as they stand in the document. Affects
            what the frameworks return, never ``Selection.steps``.
        filters: LlamaIndex ``MetadataFilters``, a dict, or a callable on metadata.
        batch_wait_ms: For servers: searches that come from other threads or tasks within so many milliseconds, or while
            others are under way, are done together, which takes far less time for each. 0: every search for itself.
        score_key: Metadata key of a LangChain document that gets the Q-value of its own hop; None leaves it out.
            Scores are not monotone over hops.
        hop_key: Metadata key of a document or node that gets its hop, from 1; None leaves it out. Consumers that
            compare metadata to find duplicates (LangChain's ``MultiQueryRetriever``, LlamaIndex's
            ``QueryFusionRetriever``) find them only with ``score_key=None, hop_key=None``.

        trace_hops: Whether callbacks and traces also see the hops, as runs or spans of their own below the search's.

    Example:
        >>> retriever = QRAGRetriever.from_texts(chunks)  # doctest: +SKIP
        >>> retriever.search("Where was the football before the kitchen?")  # doctest: +SKIP
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True)

    if TYPE_CHECKING:
        # For type checkers, which do not see validation aliases.
        def __init__(
            self,
            *,
            index: ChunkIndex,
            k: int = 4,
            similarity_top_k: int = 4,
            min_q: MinQ = None,
            beam_width: int = 1,
            order: Order = "retrieved",
            filters: Filters | None = None,
            batch_wait_ms: float = 0.0,
            score_key: str | None = "score",
            hop_key: str | None = "qrag_hop",
            trace_hops: bool = True,
            callback_manager: Any = None,
            object_map: dict[str, Any] | None = None,
            objects: Sequence[Any] | None = None,
            verbose: bool = False,
            name: str | None = None,
            tags: list[str] | None = None,
            metadata: dict[str, Any] | None = None,
        ) -> None: ...

    def get_prompts(self, config: Any = None) -> Any:
        """Return no prompts: the one method that both frameworks' base classes define, differently."""
        return {}

    def __eq__(self, other: object) -> bool:
        """Compare by identity: an index has no cheap equality."""
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        """Summarise; also works on a half-built object, inside error messages."""
        fields = self.__dict__
        return f"QRAGRetriever({fields.get('index')!r}, k={fields.get('k')}, min_q={fields.get('min_q')})"

    __str__ = __repr__

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> QRAGRetriever:
        """Copy the settings; share the index, and what is alive and may hold locks: objects, callback handlers."""
        shared = {} if memo is None else memo
        for alive in (self.callback_manager, *self.object_map.values()):
            shared[id(alive)] = alive
        return super().__deepcopy__(shared)

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the callback manager behind: its handlers hold locks."""
        state = dict(super().__getstate__())
        state["__dict__"] = {**state["__dict__"], "callback_manager": None}
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Make a new callback manager."""
        super().__setstate__(state)
        self.callback_manager = make_callback_manager()
