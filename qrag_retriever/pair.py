"""How a pair of encoders comes to be: read from a folder, fetched from the hub, described, identified."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrag_retriever.checksums import CHECKSUMS_NAME, DATA_SUFFIXES, verify_checksums
from qrag_retriever.config import CONFIG_NAME, QRAGConfig
from qrag_retriever.encoders import TOKENIZER_LOCK, position_limit
from qrag_retriever.errors import ModelFolderError
from qrag_retriever.reference_checkpoint import SETTINGS_NAME
from qrag_retriever.safe_loading import check_model_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Pair = tuple["SentenceTransformer", "SentenceTransformer"]
# What of a configuration changes embeddings, and so belongs to the fingerprint of an index.
_FINGERPRINTED = (
    "dim", "positions", "stride", "pooling", "normalize", "output_scale", "query_prompt", "document_prompt",
    "state_order", "max_chunk_tokens", "max_chunk_tokens_in_state", "max_state_tokens",
)  # fmt: skip

# Of a transformer's settings, whatever its family calls them, those that change what is computed and no weight.
_COMPUTED_BY = (
    "num_attention_heads", "num_key_value_heads", "hidden_act", "hidden_activation", "layer_norm_eps", "norm_eps",
    "rms_norm_eps",
)  # fmt: skip
_FINGERPRINT_VERSION = 2
# Tell tokenisers of one vocabulary apart: case, accents, white space, digits, punctuation, other scripts, long words.
_TOKENISED = [
    "The Quick brown fox, isn't it?  Jumped-over 3,141.59 (lazy) dogs.",
    "Stra\u00dfe na\u00efve CAF\u00c9 e\u0301t\u00e9 \ufb01ne \u0130stanbul",
    "\u6771\u4eac \u041c\u043e\u0441\u043a\u0432\u0430 \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600",
    "tab\there\nnew line \u00a0 donaudampfschifffahrtselektrizitaetenhauptbetriebswerk user@example.org #tag",
]


_PLAIN = " (an encoder of sentence-transformers is for QRAGModel.from_encoder, in Python)"


def untrained_config(encoder: SentenceTransformer) -> QRAGConfig:
    """Describe a plain encoder: its own pooling, normalisation, prompts and limits; no positions."""
    modules = {type(module).__name__: module for module in encoder}
    prompts = {name: text for name, text in (encoder.prompts or {}).items() if text}
    default = prompts.get(encoder.default_prompt_name or "", "")
    length = min(int(encoder.max_seq_length or 512), position_limit(encoder) or 512)
    return QRAGConfig(
        dim=int(embedding_dimension(encoder)),
        positions="none",
        pooling=_pooling_of(modules.get("Pooling")),
        # sentence-transformers compares by cosine unless a model says otherwise; inner products then need length 1.
        normalize="Normalize" in modules or encoder.similarity_fn_name == "cosine",
        query_prompt=prompts.get("query", default),
        document_prompt=next((prompts[key] for key in ("document", "passage", "corpus") if key in prompts), default),
        max_chunk_tokens=length,
        max_chunk_tokens_in_state=length,
    )


def _pooling_of(module: Any) -> str:
    if module is None:
        return "none"
    if hasattr(module, "pooling_mode"):
        return module.pooling_mode if isinstance(module.pooling_mode, str) else "+".join(module.pooling_mode)
    return str(module.get_pooling_mode_str())  # before sentence-transformers 6


def embedding_dimension(encoder: SentenceTransformer) -> int:
    """Return the components of an encoder's embeddings."""
    # Renamed in sentence-transformers 5.4; the old name warns there.
    ask = getattr(encoder, "get_embedding_dimension", None) or encoder.get_sentence_embedding_dimension
    return int(ask() or 0)


def fingerprint(
    config: QRAGConfig, state: SentenceTransformer, action: SentenceTransformer, digests: tuple[bytes, bytes]
) -> str:
    """Identify everything that decides embeddings: weights, tokenisers, what is computed, and the fields that matter.

    Args:
        config: Of the pair.
        state: The state encoder.
        action: The action encoder.
        digests: Of their weights; see `weight_digests`.
    """
    fields = [(name, getattr(config, name)) for name in _FINGERPRINTED]
    described = {id(encoder): _description(encoder) for encoder in {id(state): state, id(action): action}.values()}
    content = [_FINGERPRINT_VERSION, fields, described[id(state)], described[id(action)]]
    digest = hashlib.sha256(repr(content).encode())
    digest.update(b"".join(digests))
    return digest.hexdigest()


def _description(encoder: SentenceTransformer) -> list[Any]:
    """Describe what of an encoder is no weight, in words that do not depend on the release of a library."""
    transformer: Any = encoder[0].auto_model
    include_prompt = next((module.include_prompt for module in encoder if hasattr(module, "include_prompt")), True)
    return [
        [(name, getattr(transformer.config, name, None)) for name in _COMPUTED_BY],
        bool(include_prompt),
        _tokens_digest(encoder.tokenizer),
    ]


def _tokens_digest(tokenizer: Any) -> str:
    """Identify a tokeniser by its vocabulary and what it makes of some texts: its file is written anew by releases."""
    with TOKENIZER_LOCK:
        vocabulary = sorted(tokenizer.get_vocab().items())
        tokens = tokenizer(_TOKENISED, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]
    return hashlib.sha256(repr([vocabulary, [list(map(int, ids)) for ids in tokens]]).encode()).hexdigest()


def weight_digests(state: SentenceTransformer, action: SentenceTransformer) -> tuple[bytes, bytes]:
    """Identify the weights of both encoders, whatever number format holds them."""
    digests = {id(encoder): _weights_digest(encoder) for encoder in {id(state): state, id(action): action}.values()}
    return digests[id(state)], digests[id(action)]


def _weights_digest(encoder: SentenceTransformer) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        # BERT's own pooler is not used, and is random where a checkpoint lacks it.
        if ".pooler." not in name:
            # Named anew in sentence-transformers 6; an index must not depend on the release that built it.
            digest.update(name.replace(".auto_model.", ".model.", 1).encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.digest()


def folder_stamp(folder: Path) -> bytes:
    """Tell what was saved to a model folder from what is saved there later: by its configuration and its checksums."""
    digest = hashlib.sha256()
    for path in (folder / name for name in (CONFIG_NAME, CHECKSUMS_NAME, SETTINGS_NAME)):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.digest()


def _check_stamp(folder: Path, stamp: bytes) -> None:
    if folder_stamp(folder) != stamp:
        raise ModelFolderError(
            f"the model in {folder} was saved anew, or removed, since its configuration was read; load it again"
        )


def read_tried(read: Callable[[Path], Pair], folder: Path, dim: int, stamp: bytes) -> Pair:
    """Load both encoders and embed a word with each, so that what cannot work fails here and says so.

    Args:
        read: Loads them from the folder.
        folder: Of the model.
        dim: Components that their embeddings must have, as the configuration says.
        stamp: Of the folder when the configuration was read; see `folder_stamp`.

    Raises:
        ModelFolderError: If they cannot be loaded or embed nothing, have fewer components, or are others than the
            configuration is of.
    """
    _check_stamp(folder, stamp)
    pair = read(folder)
    # What came into the folder meanwhile may have been read in part.
    _check_stamp(folder, stamp)
    for role, encoder in zip(("state", "action"), pair, strict=True):
        try:
            found = int(encoder.encode(["a"], show_progress_bar=False).shape[-1])
        except Exception as error:  # a damaged configuration shows anywhere within the libraries
            reason = f"{type(error).__name__}: {error}"
            raise ModelFolderError(f"the {role} encoder in {folder} cannot embed anything: {reason}") from error
        if found < dim:
            raise ModelFolderError(f"the {role} encoder in {folder} has {found} components, its configuration {dim}")
    return pair


def read_pair(folder: Path) -> Pair:
    """Load both encoders of a model folder, full or compact.

    Raises:
        ModelFolderError: If the folder is incomplete, not what was saved there, or holds what is not to be trusted.
    """
    from sentence_transformers import SentenceTransformer

    from qrag_retriever.compact import ROLES, expand, is_compact

    compact = is_compact(folder)
    for role in ROLES:
        if not compact and not (folder / role).is_dir():
            raise ModelFolderError(f"{folder} is incomplete: {role}/ is missing")
    verify_checksums(folder)
    check_model_folder(folder)
    scratch = Path(tempfile.mkdtemp(prefix="qrag-")) if compact else None
    try:
        if scratch is not None:
            expand(folder, scratch)
        places = [(scratch or folder) / role for role in ROLES]
        with without_bars():
            state, action = (_complete(SentenceTransformer(str(place), device="cpu"), place) for place in places)
        return detached(state), detached(action)
    except ModelFolderError:
        raise
    except Exception as error:  # whatever the libraries make of a folder that is damaged or made to mislead them
        reason = f"{type(error).__name__}: {error}"
        raise ModelFolderError(f"the encoders in {folder} cannot be loaded: {reason}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _complete(encoder: SentenceTransformer, folder: Path) -> SentenceTransformer:
    """Refuse an encoder with more weights than its folder has: the libraries make up what they do not find."""
    from safetensors import safe_open

    stored = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    needed = sum(weight.numel() for name, weight in encoder.named_parameters() if ".pooler." not in name)
    if stored < needed:
        raise ModelFolderError(f"{folder} is incomplete: it has {stored} weights, its encoder needs {needed}")
    return encoder


def detached(encoder: SentenceTransformer) -> SentenceTransformer:
    """Move weights out of the file that they are mapped from: were it cut, reading them would end the process."""
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        tensor.data = tensor.data.clone()
    return encoder


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars for a folder on disk: they are brief, and tear other bars apart."""
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from transformers.utils import logging

    bars: Any = logging  # its functions have no types
    # False, and not None: the user's environment asks for bars.
    if not bars.is_progress_bar_enabled() or HF_HUB_DISABLE_PROGRESS_BARS is False:
        yield
        return
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()


def save_encoder(encoder: SentenceTransformer, folder: Path) -> None:
    """Write one encoder as a folder of its own."""
    # A tokenizer is saved with the cutting and padding of its last call, and two encoders may differ in nothing else.
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    with TOKENIZER_LOCK, without_bars():
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        # Its card would say no more than the pair's own, and the hub is asked for what to write in it.
        encoder.save(str(folder), create_model_card=False)


def download(name: str, revision: str | None) -> Path:
    """Fetch a model from the hub, or from its cache when offline; weights in safetensors only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [CHECKSUMS_NAME, "*.md", *(f"*{suffix}" for suffix in DATA_SUFFIXES)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ModelFolderError(
            f"{name!r} is no folder; as a model of the hub it is not, or not wholly, among the downloaded ones, and "
            f"the hub cannot be reached (HF_HUB_OFFLINE, or no network){_PLAIN}: {str(error).partition(chr(10))[0]}"
        ) from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        hint = "" if Path(name).is_absolute() else _PLAIN
        raise ModelFolderError(f"{name!r} is neither a folder nor a model that the hub has{hint}: {error}") from error
