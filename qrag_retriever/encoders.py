"""The state encoder and the action encoder: sentence-transformers models fed with tokens of our own making.

Texts are tokenised here and not by sentence-transformers, because a state is glued from pieces that are tokenised
apart, and because special-token strings in a user's text must stay plain characters.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from qrag_retriever.state import StateInput

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from qrag_retriever.config import QRAGConfig

logger = logging.getLogger(__name__)

TokenIds = list[int]
# Padded tokens of one batch: enough to keep the cores busy, few enough to stay in cache.
_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536, "mps": 16384}
# A progress bar appears when an encode takes longer than this, in seconds.
_PROGRESS_AFTER = 2.0
# Old fast tokenisers raise "Already borrowed" when two threads use one.
TOKENIZER_LOCK = threading.RLock()


class Encoder:
    """A sentence-transformers model with the limits and the scale of a Q-RAG pair."""

    # Settings of QRAGConfig.normalize by which the embeddings of this half get length 1.
    _normalized_by: ClassVar[tuple[bool | str, ...]] = (True,)

    def __init__(self, model: SentenceTransformer, config: QRAGConfig) -> None:
        """Wrap a loaded model.

        Raises:
            ValueError: If the model does not start with a text transformer and its tokeniser.
        """
        self.model = model.eval()
        self.config = config
        tokenizer = getattr(model, "tokenizer", None)
        if tokenizer is None or not hasattr(model[0], "auto_model"):
            first = type(model[0]).__name__
            raise ValueError(f"expected a model that starts with a transformer and its tokeniser, got {first}")
        self._tokenizer: Any = tokenizer
        # Before transformers 5, padding apart from tokenising is warned about as slow; our batches come from pieces.
        getattr(tokenizer, "deprecation_warnings", {})["Asking-to-pad-a-fast-tokenizer"] = True
        self._prefix, self._suffix = _special_tokens(tokenizer)
        self._separator = _separator(tokenizer, self._suffix)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def num_special_tokens(self) -> int:
        """Tokens that the tokeniser adds around one text."""
        return len(self._prefix) + len(self._suffix)

    def forward(self, batch: Sequence[TokenIds], prompt_tokens: int = 0, pad_to: int | None = None) -> torch.Tensor:
        """Embed token ids, with gradients where they are enabled.

        Args:
            batch: B sequences of token ids, special tokens included.
            prompt_tokens: Leading tokens that belong to a prompt, for models that leave it out of the pooling.
            pad_to: Pad to this many tokens; None pads to the longest of the batch.

        Returns:
            Shape (B, D), float32, normalised and scaled as the configuration says.
        """
        import torch

        with TOKENIZER_LOCK:
            padding = "longest" if pad_to is None else "max_length"
            padded = self._tokenizer.pad(
                {"input_ids": list(batch)}, padding=padding, max_length=pad_to, return_tensors="pt"
            )
        features = {name: value.to(self.device) for name, value in padded.items()}
        if prompt_tokens:
            features["prompt_length"] = prompt_tokens
        embeddings = self._sentence_embeddings(features).float()[:, : self.config.dim]
        if self.config.normalize in self._normalized_by:
            embeddings = torch.nn.functional.normalize(embeddings, dim=1)
        return embeddings * self.config.output_scale

    def _sentence_embeddings(self, features: dict[str, Any]) -> torch.Tensor:
        """Run the model: token ids and mask (B, L) to (B, at least D)."""
        embeddings: torch.Tensor = self.model(features)["sentence_embedding"]
        return embeddings

    def _content(self, texts: Sequence[str]) -> list[TokenIds]:
        """Tokenise texts without special tokens; special-token strings in them are plain characters."""
        if not texts:
            return []
        with TOKENIZER_LOCK:
            encoded = self._tokenizer(
                list(texts),
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )
        return [list(ids) for ids in encoded["input_ids"]]

    def _wrapped(self, content: TokenIds) -> TokenIds:
        return [*self._prefix, *content, *self._suffix]

    def _embed(self, sequences: Sequence[TokenIds], show_progress: bool | None) -> np.ndarray:
        """Embed token sequences without gradients, in batches of similar length; (B, D) float32, in the given order."""
        import torch

        embeddings = np.empty((len(sequences), self.config.dim), np.float32)
        hidden = not show_progress if show_progress is not None else None
        delay = 0.0 if show_progress else _PROGRESS_AFTER
        progress = tqdm(total=len(sequences), desc="encode", unit="text", disable=hidden, delay=delay, leave=False)
        with progress, torch.inference_mode():
            for rows in _length_sorted_batches(sequences, _BATCH_TOKENS.get(self.device.type, 4096)):
                batch = self.forward([sequences[row] for row in rows], self.prompt_tokens)
                embeddings[rows] = batch.cpu().numpy()
                progress.update(len(rows))
        return embeddings

    @property
    def prompt(self) -> str:
        """What goes before a text."""
        raise NotImplementedError

    @cached_property
    def prompt_tokens(self) -> int:
        """Leading tokens to leave out of the pooling: none for most models."""
        prompt = self.prompt
        pooling = next((module for module in self.model if hasattr(module, "include_prompt")), None)
        if not prompt or pooling is None or pooling.include_prompt:
            return 0
        return len(self._prefix) + len(self._content([prompt])[0])


class ActionEncoder(Encoder):
    """Embeds chunks, each once."""

    _normalized_by = (True, "chunks")

    @property
    def prompt(self) -> str:
        """What goes before a chunk."""
        return self.config.document_prompt

    @property
    def content_limit(self) -> int:
        """Tokens of text that a chunk may have: the chunk limit without special tokens and prompt."""
        return max(1, self._limit - len(self._wrapped(self.token_ids(self.config.document_prompt))))

    @cached_property
    def _limit(self) -> int:
        """Tokens that a chunk may have with all that goes around it: the recipe's limit or the position table."""
        return min(self.config.max_chunk_tokens, position_limit(self.model) or self.config.max_chunk_tokens)

    def token_ids(self, text: str) -> TokenIds:
        """Tokenise one text without special tokens, as a text splitter counts it."""
        return self._content([text])[0]

    def tokenize(self, texts: Sequence[str]) -> tuple[list[TokenIds], int]:
        """Tokenise chunks, prompt first, cut to ``max_chunk_tokens`` or what the position table allows.

        Returns:
            Token ids with special tokens, and how many chunks were cut.
        """
        sequences, is_cut = self._tokenized(texts)
        return sequences, int(is_cut.sum())

    def _tokenized(self, texts: Sequence[str]) -> tuple[list[TokenIds], np.ndarray]:
        """Tokenise as `tokenize`, and tell of each text whether it was cut: (B,), bool."""
        room = self._limit - self.num_special_tokens
        contents = self._content([self.config.document_prompt + text for text in texts])
        is_cut = np.array([len(content) > room for content in contents], np.bool_)
        return [self._wrapped(content[:room]) for content in contents], is_cut

    def encode(self, texts: Sequence[str], show_progress: bool | None = None) -> np.ndarray:
        """Embed chunks: shape (B, D), float32. Warns once, with a count, about chunks that had to be cut."""
        embeddings, is_cut = self.embed(texts, show_progress)
        self.warn_of_cut(int(is_cut.sum()), len(texts))
        return embeddings

    def embed(self, texts: Sequence[str], show_progress: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Embed chunks: shape (B, D), float32; also return which had to be cut: (B,), bool."""
        sequences, is_cut = self._tokenized(texts)
        return self._embed(sequences, show_progress), is_cut

    def warn_of_cut(self, num_cut: int, num_texts: int) -> None:
        """Warn that some of the chunks had to be cut, if any."""
        if num_cut:
            logger.warning(
                "%d of %d chunks are longer than %d tokens; only their beginning is embedded. Split them smaller.",
                num_cut,
                num_texts,
                self._limit,
            )


class StateEncoder(Encoder):
    """Embeds states: a query and the chunks picked so far."""

    @property
    def prompt(self) -> str:
        """What goes before the query of a state."""
        return self.config.query_prompt

    def max_state_tokens(self) -> int:
        """Return the tokens a whole state may have: the recipe's limit or the encoder's position table.

        An encoder without a table and a recipe without a limit leave that of a single piece.
        """
        limits = (self.config.max_state_tokens, position_limit(self.model))
        return min((limit for limit in limits if limit is not None), default=self.config.max_chunk_tokens_in_state)

    def tokenize(self, states: Sequence[StateInput]) -> list[TokenIds]:
        """Tokenise states: query and picked chunks, apart, cut, joined by the separator, special tokens once.

        Source: Q-RAG (arXiv 2511.07328), Section 3; the cut pieces are those of the paper's code.
        """
        return self._tokenized(states)[0]

    def _tokenized(self, states: Sequence[StateInput]) -> tuple[list[TokenIds], int]:
        """Tokenise as `tokenize`, and count the states without picks whose query was cut."""
        pieces = [piece for query, texts in states for piece in (self.config.query_prompt + query, *texts)]
        contents = iter(self._content(pieces))
        room = self.config.max_chunk_tokens_in_state - self.num_special_tokens
        limit = self.max_state_tokens() - self.num_special_tokens
        sequences, num_cut = [], 0
        for _, texts in states:
            whole = [next(contents) for _ in range(1 + len(texts))]
            kept = shortened([piece[:room] for piece in whole], limit)
            # A search embeds its query anew at every hop, and is to be told once.
            num_cut += not texts and len(kept[0]) < len(whole[0])
            sequences.append(self._wrapped(self._joined(kept)))
        return sequences, num_cut

    def encode(self, states: Sequence[StateInput], show_progress: bool | None = None) -> np.ndarray:
        """Embed states: shape (B, D), float32. Warns, with a count, about queries without picks that had to be cut."""
        sequences, num_cut = self._tokenized(states)
        if num_cut:
            logger.warning(
                "%d of %d queries are longer than %d tokens; only their beginning is embedded. Put the question there.",
                num_cut,
                len(states),
                min(self.config.max_chunk_tokens_in_state, self.max_state_tokens()),
            )
        return self._embed(sequences, show_progress)

    def _joined(self, pieces: Sequence[TokenIds]) -> TokenIds:
        joined = list(pieces[0])
        for piece in pieces[1:]:
            joined.append(self._separator)
            joined.extend(piece)
        return joined


def shortened(pieces: list[TokenIds], limit: int) -> list[TokenIds]:
    """Fit a query and chunks, joined by one separator each, into ``limit`` tokens.

    All chunks are shortened to an equal share; the query only when nothing of the chunks is left.
    """
    query, chunks = pieces[0], pieces[1:]
    if len(query) + sum(len(chunk) + 1 for chunk in chunks) <= limit:
        return pieces
    room = limit - len(query) - len(chunks)
    if room < len(chunks):
        # Not a token for each: more picks than the encoder can see. The query stays, as much as fits.
        return [query[:limit]]
    share, lengths = 0, sorted(len(chunk) for chunk in chunks)
    for place, length in enumerate(lengths):
        share = room // (len(lengths) - place)
        if length > share:
            break
        room -= length
    return [query, *(chunk[:share] for chunk in chunks)]


def position_limit(model: SentenceTransformer) -> int | None:
    """Return the most tokens that the transformer's positions allow; None where nothing limits them."""
    transformer: Any = model[0].auto_model
    for name, module in transformer.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
            # RoBERTa and its heirs count positions from behind the padding index.
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - offset
    limit = getattr(transformer.config, "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else None


def keep_layers(model: SentenceTransformer, num_layers: int) -> None:
    """Drop all but the first layers of the transformer, in place.

    Raises:
        ValueError: If the transformer has fewer layers, or its layers cannot be found.
    """
    import torch

    transformer: Any = model[0].auto_model
    total = transformer.config.num_hidden_layers
    if not 1 <= num_layers <= total:
        raise ValueError(f"expected num_layers from 1 to {total}, got {num_layers}")
    stacks = [
        (parent, name)
        for parent in transformer.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == total
    ]
    if not stacks:
        raise ValueError(f"cannot find the {total} layers of {type(transformer).__name__}; num_layers must be None")
    for parent, name in stacks:
        setattr(parent, name, getattr(parent, name)[:num_layers])
    transformer.config.num_hidden_layers = num_layers
    if getattr(transformer.config, "layer_types", None):
        transformer.config.layer_types = list(transformer.config.layer_types)[:num_layers]


def _special_tokens(tokenizer: Any) -> tuple[TokenIds, TokenIds]:
    """Return the tokens that the tokeniser puts before and after one text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    raise ValueError(f"cannot tell the special tokens of {type(tokenizer).__name__} from the text's")


def _separator(tokenizer: Any, suffix: TokenIds) -> int:
    """Return the token that joins the pieces of a state: the separator, else the end token."""
    candidates = (tokenizer.sep_token_id, tokenizer.eos_token_id, *suffix[-1:])
    for token in candidates:
        if token is not None:
            return int(token)
    raise ValueError(f"{type(tokenizer).__name__} has neither a separator nor an end token to join a state with")


def _length_sorted_batches(sequences: Sequence[TokenIds], max_tokens: int) -> Iterator[list[int]]:
    """Yield row numbers, longest first, so that each batch times its longest row stays within ``max_tokens``."""
    rows = sorted(range(len(sequences)), key=lambda row: len(sequences[row]), reverse=True)
    start = 0
    while start < len(rows):
        size = max(1, max_tokens // max(1, len(sequences[rows[start]])))
        yield rows[start : start + size]
        start += size
