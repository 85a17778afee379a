"""QRAGModel: the pair of encoders and what belongs to them."""

from __future__ import annotations

import copy
import hashlib
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qrag_retriever import reference_checkpoint
from qrag_retriever._files import whole_folder
from qrag_retriever.backends.choice import ChunkBackend
from qrag_retriever.backends.kinds import Backend, check_backend, check_device, is_exact, require_backend
from qrag_retriever.bulk import Workers, embed_texts, worker_devices
from qrag_retriever.checks import check_list, check_text, json_culprit
from qrag_retriever.checksums import verify_checksums, write_checksums
from qrag_retriever.config import CONFIG_NAME, QRAGConfig
from qrag_retriever.default_model import BUNDLED, local_name, not_loaded
from qrag_retriever.devices import Dtype, cast_dtype, check_choice, choose_device, choose_dtype
from qrag_retriever.embedding_cache import EmbeddingCache
from qrag_retriever.encoders import ActionEncoder, StateEncoder, keep_layers
from qrag_retriever.errors import ModelFolderError, ModelMismatchError
from qrag_retriever.model_card import model_card
from qrag_retriever.pair import (
    Pair,
    detached,
    download,
    fingerprint,
    folder_stamp,
    read_pair,
    read_tried,
    save_encoder,
    untrained_config,
    weight_digests,
    without_bars,
)
from qrag_retriever.safe_loading import check_encoder_folder
from qrag_retriever.shared_pairs import shared_pair
from qrag_retriever.state import StateInput
from qrag_retriever.weights import weight_content, weight_signs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# Options of a constructor that an index may repeat when it loads its model. A file must not be able to ask for code to
# be trusted, for pickles, or for other folders to write to.
_REPEATABLE = {
    "num_layers", "revision", "truncate_dim", "prompts", "default_prompt_name", "similarity_fn_name",
    "local_files_only", *QRAGConfig.model_fields,
}  # fmt: skip
_NEVER_KEPT = ("token", "trust_remote_code")
# The backend whose embeddings are another model's.
_ROUNDING: Literal["onnx-int8"] = "onnx-int8"


@dataclass(frozen=True)
class ModelSource:
    """Where a model can be had again; kept in an index so that it loads without naming the model.

    Attributes:
        kind: "default", "pretrained" (a model folder or hub id) or "encoder" (an untrained encoder).
        name: Folder or hub id; None for the default model.
        options: What else the constructor needs (``num_layers``, ``revision``, configuration overrides); ``backend``
            only if it is one that rounds.
    """

    kind: Literal["default", "pretrained", "encoder"]
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, device: str | None = None, dtype: Dtype | None = None, shared: bool = True) -> QRAGModel:
        """Build the model again.

        Args:
            device: Of the encoders.
            dtype: See `QRAGModel.from_pretrained`.
            shared: Whether a default model may use the encoders that others have loaded.

        Raises:
            ModelFolderError: If it is no longer there, or is to be built with options that no file may choose.
        """
        options = dict(self.options)
        backend = options.get("backend")
        if backend == _ROUNDING:
            del options["backend"]
        if refused := sorted(options.keys() - _REPEATABLE):
            raise ModelFolderError(
                f"the model {self.name!r} was built with {', '.join(refused)}, which is not taken from a file; pass "
                "model=..."
            )
        build = QRAGModel.from_encoder if self.kind == "encoder" else QRAGModel.from_pretrained
        try:
            model = build(self.name, device=device, dtype=dtype, **options)  # type: ignore[arg-type]
        except (OSError, ModelFolderError) as error:
            raise ModelFolderError(f"the model {self.name!r} is no longer there: {error}; pass model=...") from error
        if backend == _ROUNDING:
            # Its package is asked for when chunks are embedded: searching needs none.
            model._backend, model.source = ChunkBackend(_ROUNDING, model._exports_folder()), self
        if shared:
            model.share_encoders()
        return model


class QRAGModel:
    """A state encoder, an action encoder, and their configuration.

    Encoders are loaded when they are first used. `encode_states` and `encode_chunks` may be called from many threads.
    """

    def __init__(
        self,
        config: QRAGConfig,
        load_pair: Callable[[], Pair],
        source: ModelSource | None = None,
        device: str | None = None,
        dtype: Dtype | None = None,
        cache: str | Path | EmbeddingCache | None = None,
        workers: Workers = None,
        backend: Backend = "auto",
    ) -> None:
        """Use the constructors `from_pretrained` and `from_encoder` instead.

        Args:
            config: The pair's configuration.
            load_pair: Returns the two sentence-transformers models; may return one object twice.
            source: Where the pair can be had again, if anywhere.
            device: "cpu", "cuda", "mps", ...; None takes the best one there is.
            dtype: See `from_pretrained`; None leaves them as they are.
            cache: See `from_pretrained`.
            workers: See `from_pretrained`.
            backend: See `from_pretrained`.
        """
        device = None if device is None else str(device)  # of torch.device too
        check_backend(backend, dtype, device)
        self.config = config
        self.source = source
        self._load_pair = load_pair
        self._device = device
        # "auto" is for what torch computes; an exported encoder is made of float32 weights.
        self._dtype: Dtype | None = dtype if backend in ("auto", "torch") or dtype != "auto" else "float32"
        self._backend = ChunkBackend(backend)
        self.embed_with(cache, workers)
        self._lock = threading.RLock()
        self._encoders: tuple[StateEncoder, ActionEncoder] | None = None
        # Of the weights as they were loaded, or last saved: their checksums, and what they are identified by.
        self._content: list[int] = []
        self._digests: tuple[bytes, bytes] | None = None
        # What a copy must have once it is loaded: the folder's stamp, or the fingerprint.
        self._stamp: bytes | None = None
        self._expected: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        device: str | None = None,
        dtype: Dtype | None = None,
        revision: str | None = None,
        cache: str | Path | EmbeddingCache | None = None,
        workers: Workers = None,
        backend: Backend = "auto",
        **config_overrides: Any,
    ) -> QRAGModel:
        """Load a trained model.

        Args:
            name_or_path: A folder written by `save_pretrained` or by the paper's code, or a hub id. None: the model
                that comes with the package.
            device: "cpu", "cuda", "mps", ...; None takes the best one there is.
            dtype: "float32" (default), "bfloat16", "float16", or "auto": bfloat16 where the device computes it
                natively, else float32.
            revision: Branch, tag or commit of a hub id.
            cache: A file that keeps embeddings of chunks: what has been embedded once, by this model and in this
                dtype, is read from then on, and indexing that was killed goes on where it was.
            workers: Processes that embed chunks where there are thousands: their number (on the processor), or the
                device of each, ``["cuda:0", "cuda:1"]``.
            backend: What embeds chunks on the processor: "torch"; "onnx" (ONNX Runtime, ``onnx`` extra) or "openvino"
                (``openvino`` extra), which give the same embeddings; or "auto": torch, unless there is work for minutes
                and a trial on some of it shows that one of the others is faster. "onnx-int8" computes with rounded
                weights: its embeddings, and so indexes, are another model's. States are embedded by torch.
            **config_overrides: Fields of `QRAGConfig` to replace.

        Raises:
            ModelFolderError: If the folder is no model, is damaged, or has a newer format.
            ValueError: If an override is not a field or has a wrong value, the backend does not fit, or device or dtype
                cannot be had.
            ImportError: If a package that the backend needs is missing.
        """
        check_backend(backend, dtype, device)
        device = check_choice(device, dtype)
        require_backend(backend)
        options = {**({"revision": revision} if revision else {}), **config_overrides, **_kept_backend(backend)}
        if name_or_path is None:
            if revision is not None:
                raise ValueError(f"revision {revision!r} is of a hub id; name the model")
            folder, source = BUNDLED, ModelSource("default", None, options)
        else:
            folder = Path(name_or_path)
            source = ModelSource("pretrained", str(folder.absolute() if folder.is_dir() else name_or_path), options)
            if not folder.is_dir():
                folder = download(str(name_or_path), revision)
        stamp = folder_stamp(folder)
        if reference_checkpoint.is_reference_checkpoint(folder):
            config, loader = reference_checkpoint.read_config(folder), reference_checkpoint.read_encoders
        else:
            if not (folder / CONFIG_NAME).is_file() and (folder / "config.json").is_file():
                raise ModelFolderError(
                    f"{name_or_path} is a plain encoder without {CONFIG_NAME}; use QRAGModel.from_encoder for it"
                )
            config, loader = QRAGConfig.read(folder), read_pair
            verify_checksums(folder, only=CONFIG_NAME)
        config = config.replaced(**config_overrides)
        load = partial(read_tried, loader, folder, config.dim, stamp)
        model = cls(config, load, source, device, dtype or "float32", cache, workers, backend)
        model._stamp = stamp
        return model

    @classmethod
    def from_encoder(
        cls,
        name_or_model: str | Path | SentenceTransformer,
        num_layers: int | None = None,
        device: str | None = None,
        dtype: Dtype | None = None,
        cache: str | Path | EmbeddingCache | None = None,
        workers: Workers = None,
        backend: Backend = "auto",
        **options: Any,
    ) -> QRAGModel:
        """Make an untrained pair from any sentence-transformers encoder: both halves are that encoder.

        With no picks its Q-values are the ordinary dense-retrieval scores of the encoder.

        Args:
            name_or_model: A sentence-transformers name or folder, or a loaded model. "all-MiniLM-L6-v2" is taken from
                the package that carries it (``minilm`` extra) if that is installed, so without a download.
            num_layers: Keep only the first layers of the transformer; None keeps all.
            device: As in `from_pretrained`.
            dtype: As in `from_pretrained`; a loaded model stays as it is if none is given, and is copied to be cast.
            cache: As in `from_pretrained`.
            workers: As in `from_pretrained`.
            backend: As in `from_pretrained`.
            **options: Fields of `QRAGConfig` to replace; anything else goes to ``SentenceTransformer``.

        Raises:
            ModelFolderError: If it is neither a folder of sentence-transformers' nor to be had from the hub, or a
                folder with modules of other packages while ``trust_remote_code`` is off.
            ValueError: If the model has no transformer to feed, or too few layers, the backend does not fit, or device
                or dtype cannot be had.
            TypeError: If it is no SentenceTransformer, name or folder.
            ImportError: If a package that the backend needs is missing.
        """
        check_backend(backend, dtype, device)
        device = check_choice(device, dtype)
        require_backend(backend)
        overrides = {name: options.pop(name) for name in list(options) if name in QRAGConfig.model_fields}
        if "pooling" in overrides:
            raise ValueError("pooling is the encoder's own; change it in the sentence-transformers model")
        from sentence_transformers import SentenceTransformer

        source = None
        if isinstance(name_or_model, (str, Path)):
            path = Path(name_or_model)
            name = str(path.absolute() if path.is_dir() else name_or_model)
            # A revision is of the hub's files.
            place = name if "revision" in options else local_name(name)
            if not options.get("trust_remote_code"):
                check_encoder_folder(Path(place))
            with without_bars() if Path(place).is_dir() else nullcontext():
                try:
                    encoder = detached(SentenceTransformer(place, device="cpu", **options))
                except (OSError, ValueError) as error:
                    raise not_loaded(name, place, error) from error
            kept = {key: value for key, value in options.items() if key not in _NEVER_KEPT}
            kept.update({"num_layers": num_layers} if num_layers is not None else {}, **overrides)
            is_repeatable = kept.keys() <= _REPEATABLE and json_culprit(kept, "") is None
            source = ModelSource("encoder", name, {**kept, **_kept_backend(backend)}) if is_repeatable else None
            if dtype is None and "model_kwargs" not in options:
                dtype = "float32"
        elif not isinstance(name_or_model, SentenceTransformer):
            raise TypeError(
                f"expected a name, a folder or a SentenceTransformer, got {type(name_or_model).__name__}; "
                "embeddings of a framework cannot be used: give the name of the model that they are of"
            )
        else:
            wanted = cast_dtype(dtype, choose_device(device))
            is_alike = wanted is None or all(weight.dtype == wanted for weight in name_or_model.parameters())
            encoder = name_or_model if num_layers is None and is_alike else copy.deepcopy(name_or_model)
        if num_layers is not None:
            keep_layers(encoder, num_layers)
        config = untrained_config(encoder).replaced(**overrides)
        return cls(config, lambda: (encoder, encoder), source, device, dtype, cache, workers, backend)

    @property
    def device(self) -> str:
        """The device that the encoders run on, as torch names it."""
        return choose_device(self._device)

    @property
    def state_encoder(self) -> StateEncoder:
        """Embeds states."""
        return self._loaded()[0]

    @property
    def action_encoder(self) -> ActionEncoder:
        """Embeds chunks."""
        return self._loaded()[1]

    def encode_states(self, states: Sequence[str | StateInput], show_progress: bool | None = None) -> np.ndarray:
        """Embed states.

        Args:
            states: Each a query, or a pair of a query and the picked chunks' texts in order.
            show_progress: None shows a bar on a terminal when it takes more than two seconds.

        Returns:
            Shape (B, D), float32.
        """
        check_list(states, "states")
        pairs = [_checked_state(state, i) for i, state in enumerate(states)]
        return self.state_encoder.encode(pairs, show_progress)

    def encode_chunks(self, texts: Sequence[str], show_progress: bool | None = None) -> np.ndarray:
        """Embed chunks, each once; shape (B, D), float32, not rotated. ``show_progress`` as in `encode_states`."""
        check_list(texts, "texts")
        for i, text in enumerate(texts):
            check_text(text, f"text {i}")
        if blank := sum(not text.strip() for text in texts):
            logger.warning(
                "%d of %d chunks have no text; they can be picked all the same. Leave them out.", blank, len(texts)
            )
        if self.cache is None and not self._devices:
            self.prepare(texts)
            return self._backend.encoder(self.action_encoder).encode(texts, show_progress)
        identity = f"{self.fingerprint()} {next(self.action_encoder.model.parameters()).dtype}"
        embeddings, num_cut = embed_texts(
            self, identity, texts, self.config.dim, self.cache, self._devices, show_progress
        )
        self.action_encoder.warn_of_cut(num_cut, len(texts))
        return embeddings

    def embed_with(
        self,
        cache: str | Path | EmbeddingCache | None = None,
        workers: Workers = None,
        backend: Backend | None = None,
    ) -> None:
        """Choose how chunks are embedded from now on; see `from_pretrained`. Without a backend, it stays as it is.

        Raises:
            CacheError: If there is something else in the cache's place, or it is damaged.
            ValueError: If no worker is named, or the backend does not fit: a change between one that rounds and those
                that do not would make another model of this one.
            ImportError: If a package that the backend needs is missing.
        """
        name = self.backend if backend is None else backend
        if backend is not None:
            check_backend(backend, self._dtype, self._device)
            require_backend(backend)
        if is_exact(name) != is_exact(self.backend):
            raise ValueError(
                f"this model embeds chunks with backend {self.backend!r}, whose embeddings are not those of {name!r}; "
                "make a model, and an index, with the other one"
            )
        devices = worker_devices(workers)
        for device in devices:
            check_device(name, device)
        self.cache = cache if cache is None or isinstance(cache, EmbeddingCache) else EmbeddingCache(cache)
        self._devices = devices
        self._backend = ChunkBackend(name, self._exports_folder())

    @property
    def backend(self) -> Backend:
        """What was asked for to embed chunks; see `from_pretrained`."""
        return self._backend.name

    @property
    def backend_in_use(self) -> Backend:
        """What embeds chunks now; "auto" begins with torch, and another backend is made when it is first needed."""
        return self._backend.in_use

    def _exports_folder(self) -> Path | None:
        """Exported encoders are kept beside the embeddings."""
        return None if self.cache is None else self.cache.path.with_name(f"{self.cache.path.name}.exports")

    def prepare(self, texts: Sequence[str]) -> None:
        """Get ready to embed these chunks: export the encoder, or try backends, as `from_pretrained` was told.

        Raises:
            ImportError: If a package of the backend is missing.
            ValueError: If the backend cannot carry the encoder.
        """
        if self.backend != "torch":
            self._backend.prepare(self.action_encoder, texts, self._weights_fingerprint)

    def embed_block(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embed chunks without cache and workers: (M, D), float32; also return which had to be cut: (M,), bool."""
        if self.backend != "auto":
            self.prepare(texts)
        return self._backend.encoder(self.action_encoder).embed(texts, show_progress=False)

    def share_encoders(self) -> None:
        """Use the encoders that another default model has loaded on this device, or load them for both.

        They must not be trained. Does nothing for other models, for weights of another dtype, and once encoders are
        loaded.
        """
        with self._lock:
            is_default = self.source is not None and self.source.kind == "default"
            if is_default and self._encoders is None and choose_dtype(self._dtype, self.device) is None:
                self._load_pair = partial(shared_pair, self.device, self._load_pair)

    def moved(self, device: str) -> QRAGModel:
        """Return this model on another device, with encoders of its own, without cache and workers.

        What has been found out about backends holds for the processor; elsewhere torch embeds.
        """
        state = {**self.__getstate__(), "device": device, "cache": None, "workers": None}
        state["backend"] = self._backend.decided() if device == "cpu" else ChunkBackend("torch")
        state = copy.deepcopy(state)
        model = QRAGModel.__new__(QRAGModel)
        model.__setstate__(state)
        return model

    def fingerprint(self) -> str:
        """Identify everything that decides embeddings: weights and tokenisers of both encoders, and what matters else.

        The same on every device and by every exact backend; weights that were cast to another dtype are identified by
        what they were before, until they are trained.
        """
        own = self._weights_fingerprint()
        return own if is_exact(self.backend) else hashlib.sha256(f"{own} {self.backend}".encode()).hexdigest()

    def _weights_fingerprint(self) -> str:
        with self._lock:
            state, action = (encoder.model for encoder in self._loaded())
            if self._is_changed():
                return fingerprint(self.config, state, action, weight_digests(state, action))
            if self._digests is None:
                self._digests = weight_digests(state, action)
            return fingerprint(self.config, state, action, self._digests)

    def current_source(self) -> ModelSource | None:
        """Return where the weights can be had again as they are now; None if they were trained and not saved since."""
        return None if self._is_changed() else self.source

    def weight_signs(self) -> list[tuple[Any, ...]] | None:
        """Return what is likely to change when weights are trained; see `qrag_retriever.weights`. Loads nothing.

        Returns:
            None if no encoders are loaded yet.
        """
        return None if self._encoders is None else weight_signs(*(encoder.model for encoder in self._encoders))

    def _is_changed(self) -> bool:
        """Tell whether weights were changed since they were loaded or saved: reads all of them."""
        return self._encoders is not None and self._content != weight_content(*(e.model for e in self._encoders))

    def save_pretrained(self, folder: str | Path, compact: bool = False) -> None:
        """Write a model folder, whole or not at all.

        Args:
            folder: Where to; an existing model folder is replaced.
            compact: One bfloat16 file, tensors that both encoders share stored once, instead of two complete
                sentence-transformers folders.

        Raises:
            FileExistsError: If the folder holds something that is not a model.
            OSError: If the disk is full or read-only; the old model stands.
        """
        from safetensors import SafetensorError

        target = Path(folder)
        try:
            with whole_folder(target, may_replace=lambda path: (path / CONFIG_NAME).is_file()) as draft:
                self._write(draft, target, compact)
        except SafetensorError as error:
            raise OSError(f"the model cannot be written to {target}, nothing was changed: {error}") from error
        if not compact:
            self._settle(target)

    def _settle(self, folder: Path) -> None:
        """Take the folder that the weights were saved to for their source, unless they have one already."""
        with self._lock:
            if self.current_source() is not None:
                return
            models = [encoder.model for encoder in self._loaded()]
            is_changed, saved = self._is_changed(), weight_digests(*models)
            # What was rounded after it was loaded is known by what it was before, and that is not in the folder.
            if is_changed or self._digests in (None, saved):
                self.source = ModelSource("pretrained", str(folder.absolute()), _kept_backend(self.backend))
                self._content, self._digests = weight_content(*models), saved

    def _write(self, draft: Path, target: Path, compact: bool) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-full-") as scratch:
            full = Path(scratch) if compact else draft
            for role, encoder in (("state", self.state_encoder), ("action", self.action_encoder)):
                save_encoder(encoder.model, full / f"{role}_encoder")
            if compact:
                from qrag_retriever.compact import compress

                compress(full, draft)
        (draft / CONFIG_NAME).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(model_card(self.config), encoding="utf-8")
        write_checksums(draft)

    def push_to_hub(self, repo_id: str, private: bool | None = None, commit_message: str = "Upload model") -> str:
        """Upload the model folder to the hub; returns its address."""
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            self.save_pretrained(Path(scratch) / "model")
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=Path(scratch) / "model", commit_message=commit_message
            )
        return str(commit)

    def _loaded(self) -> tuple[StateEncoder, ActionEncoder]:
        with self._lock:
            if self._encoders is None:
                state, action = self._load_pair()
                dtype = cast_dtype(self._dtype, self.device)
                if choose_dtype(self._dtype, self.device) is not None and self._digests is None:
                    self._digests = weight_digests(state, action)  # of what is in the folder, before it is rounded
                for encoder in {id(state): state, id(action): action}.values():
                    encoder.to(device=self.device, dtype=dtype)
                self._encoders = StateEncoder(state, self.config), ActionEncoder(action, self.config)
                self._content = weight_content(state, action)
            return self._encoders

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the source if its weights are still these, else the encoders; locks and loaders stay behind."""
        is_changed = self._is_changed()
        source = None if is_changed else self.source
        kept: dict[str, Any] = {
            "config": self.config, "source": source, "device": self._device, "dtype": self._dtype,
            "cache": self.cache, "workers": self._devices or None, "backend": self._backend,
        }  # fmt: skip
        if source is None:
            kept["pair"] = tuple(encoder.model for encoder in self._loaded())
            # What has been rounded is known by what it was before.
            kept["digests"] = None if is_changed else self._digests
        else:
            # Another one may be in its place when the copy is loaded.
            is_known = self._encoders is None and (self._stamp or self._expected) is not None
            kept["expected"] = self._expected if is_known else self._weights_fingerprint()
            kept["stamp"] = self._stamp if is_known else None
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the encoders again when they are first used."""
        source = state["source"]
        pair, expected, stamp = (state.get(name) for name in ("pair", "expected", "stamp"))

        def load_pair() -> Pair:
            if pair is not None:
                return pair[0], pair[1]
            # Encoders of its own: what comes of this is moved and cast, and perhaps trained.
            model = source.load(device="cpu", shared=False)
            loaded = model.state_encoder.model, model.action_encoder.model
            found = None
            if expected is not None:
                found = fingerprint(state["config"], *loaded, weight_digests(*loaded))
            if expected != found or (stamp is not None and stamp != model._stamp):
                raise ModelMismatchError(
                    f"the model {source.name or 'of this package'} is no longer the one that was copied: it was saved "
                    "anew since; load it with QRAGModel.from_pretrained if it is the one to use, or save the other one "
                    "elsewhere and copy that"
                )
            return loaded

        kept = (state[name] for name in ("device", "dtype", "cache", "workers"))
        self.__init__(state["config"], load_pair, source, *kept, state["backend"].name)  # type: ignore[misc]
        self._backend, self._digests = state["backend"], state.get("digests")
        self._expected, self._stamp = expected, stamp

    def __repr__(self) -> str:
        """Name the source and the settings that matter most."""
        name = "in memory" if self.source is None else self.source.name or "default"
        rounding = "" if is_exact(self.backend) else f", backend={self.backend!r}"
        return f"QRAGModel({name!r}, dim={self.config.dim}, positions={self.config.positions!r}{rounding})"


def _kept_backend(backend: Backend) -> dict[str, Any]:
    """Return what of a backend belongs to a model's identity: exact ones are alike, and chosen by who loads it."""
    return {} if is_exact(backend) else {"backend": backend}


def _checked_state(state: str | StateInput, number: int) -> StateInput:
    if isinstance(state, str):
        check_text(state, f"state {number}")
        return state, ()
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"state {number} must be a query or a pair (query, chunk texts), got {state!r}")
    query, texts = state
    check_text(query, f"the query of state {number}")
    check_list(texts, f"chunk texts in state {number}")
    for text in texts:
        check_text(text, f"a chunk of state {number}")
    return query, tuple(texts)
