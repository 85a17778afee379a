"""The networks that are trained: the live pair of encoders and their slowly moving targets."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from qrag_retriever.config import QRAGConfig
from qrag_retriever.encoders import ActionEncoder, Encoder, StateEncoder, TokenIds, position_limit
from qrag_retriever.state import StateInput

EncoderType = TypeVar("EncoderType", bound=Encoder)
Targets = Literal["none", "state", "both"]
Frozen = Literal["none", "word_embeddings", "embeddings"]

# A batch is closed when it holds this many padded tokens: enough to keep a device busy, few enough to stay in cache.
_BATCH_TOKENS = {"cpu": 4096, "cuda": 131072, "mps": 32768}
# Below this many tokens a batch is not worth a pass of its own, however much shorter its texts are. With gradients a
# pass writes those of all weights once more, whatever its size.
_WORTHWHILE_TOKENS = {"cpu": 512, "cuda": 8192, "mps": 4096}
_WORTHWHILE_WITH_GRADIENTS = 2
# Texts may be padded to this multiple of their own length.
_MOST_PADDING = 1.3


class TrainedPair:
    """A state encoder and an action encoder with gradients, and target copies of them.

    Attributes:
        config: What goes into the model folder with the weights.
        state_encoder: The live state encoder.
        action_encoder: The live action encoder; its own weights, but for frozen word embeddings, which both share.
        target_state: Moving average of the state encoder; the state encoder itself when there are no targets.
        target_action: The same of the action encoder; the action encoder itself when values look at cached embeddings.
    """

    def __init__(
        self,
        config: QRAGConfig,
        state_encoder: StateEncoder,
        action_encoder: ActionEncoder,
        frozen: Frozen = "word_embeddings",
        targets: Targets = "state",
        compute_dtype: torch.dtype | None = None,
        dropout: float = 0.0,
        plain_batches: bool = False,
    ) -> None:
        """Prepare both encoders for training, in place.

        Args:
            config: Of the pair; must be the encoders' own.
            state_encoder: Embeds states.
            action_encoder: Embeds chunks; must not share trainable weights with the state encoder.
            frozen: What is not trained: nothing, the table of word embeddings (most of a small encoder's weights),
                or all of the embedding layer.
            targets: Of which encoders moving averages are kept: of none, of the state encoder (values then look at
                chunk embeddings that a `ChunkCache` holds, which lag behind by themselves where an era is long), or of
                both.
            compute_dtype: Number format of the arithmetic (autocast); None is float32. Weights stay float32.
            dropout: Of the live encoders wherever gradients are enabled; everything else runs without.
            plain_batches: Pad batches to powers of two as the paper's code does, never sort them by length, and embed
                a text as often as it is there (for comparisons).

        Raises:
            ValueError: If both encoders are one network.
        """
        if state_encoder.model is action_encoder.model:
            raise ValueError("expected two networks, got one for states and chunks; train a copy of it for one of them")
        self.config = config
        self.state_encoder, self.action_encoder = state_encoder, action_encoder
        self._compute_dtype = compute_dtype
        self.dropout = dropout
        self._plain_batches = plain_batches
        for encoder in (state_encoder, action_encoder):
            _freeze(encoder, frozen)
        if frozen != "none":
            _share_frozen(state_encoder, action_encoder)
        self.targets: Targets = targets
        self.target_state = state_encoder if targets == "none" else _target_of(state_encoder)
        self.target_action = _target_of(action_encoder) if targets == "both" else action_encoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.state_encoder.device

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the weights with gradients by name, the state encoder's first; unused poolers are left out."""
        return {
            f"{role}.{name}": parameter
            for role, encoder in (("state", self.state_encoder), ("action", self.action_encoder))
            for name, parameter in encoder.model.named_parameters()
            if parameter.requires_grad
        }

    def target_weights(self) -> dict[str, torch.Tensor]:
        """Return the target of each trainable weight that has one, by the same names."""
        pairs = {"state": (self.state_encoder, self.target_state), "action": (self.action_encoder, self.target_action)}
        found: dict[str, torch.Tensor] = {}
        for role, (live, target) in pairs.items():
            if target is not live:
                trained = {name for name, parameter in live.model.named_parameters() if parameter.requires_grad}
                weights = target.model.named_parameters()
                found.update({f"{role}.{name}": weight.data for name, weight in weights if name in trained})
        return found

    @torch.no_grad()
    def move_targets(self, tau: float) -> None:
        """Move every target weight by ``tau`` of its distance to the live weight (1 copies)."""
        targets, live = self.target_weights(), self.trainable()
        if targets:
            torch._foreach_lerp_(list(targets.values()), [live[name].data for name in targets], tau)

    @contextlib.contextmanager
    def one_update(self) -> Iterator[None]:
        """Within this block weights do not change: what autocast makes of them is made once for all passes."""
        # The cache of autocast lives as long as the outermost block, enabled or not.
        with torch.autocast(self.device.type, enabled=False):
            yield

    def embed_states(self, states: Sequence[StateInput], target: bool = False) -> torch.Tensor:
        """Embed states, each different one once.

        Returns:
            Shape (B, D), float32, with gradients where they are enabled.
        """
        encoder = self.target_state if target else self.state_encoder
        return self._embed(encoder, encoder.tokenize(states))

    def embed_chunks(self, texts: Sequence[str], target: bool = False) -> torch.Tensor:
        """Embed chunks, each different one once; shape (B, D), not rotated."""
        encoder = self.target_action if target else self.action_encoder
        return self._embed(encoder, encoder.tokenize(texts)[0])

    def _embed(self, encoder: Encoder, sequences: Sequence[TokenIds]) -> torch.Tensor:
        if not sequences:
            return torch.zeros(0, self.config.dim, device=self.device)
        each = list(map(tuple, sequences))
        unique = each if self._plain_batches else list(dict.fromkeys(each))
        batches = self._batches([len(ids) for ids in unique])
        if self.dropout:
            encoder.model.train(torch.is_grad_enabled() and any(p.requires_grad for p in encoder.model.parameters()))
        texts = [list(ids) for ids in unique]
        with self._arithmetic(encoder):
            parts = [
                encoder.forward([texts[row] for row in rows], encoder.prompt_tokens, self._pad_to(encoder, texts, rows))
                for rows in batches
            ]
        order = torch.empty(len(texts), dtype=torch.long)
        order[[row for rows in batches for row in rows]] = torch.arange(len(texts))
        row_of = {ids: row for row, ids in enumerate(unique)}
        wanted = order[[row_of[ids] for ids in each]].to(self.device)
        return torch.nn.functional.embedding(wanted, torch.cat(parts))

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        if self._plain_batches:
            return [list(range(len(lengths)))]
        return list(length_buckets(lengths, self.device.type, torch.is_grad_enabled()))

    def _pad_to(self, encoder: Encoder, texts: Sequence[TokenIds], rows: Sequence[int]) -> int | None:
        if not self._plain_batches:
            return None
        longest = max(len(texts[row]) for row in rows)
        return min(1 << (longest - 1).bit_length(), position_limit(encoder.model) or sys.maxsize)

    @contextlib.contextmanager
    def _arithmetic(self, encoder: Encoder) -> Iterator[None]:
        kind = self.device.type
        with contextlib.ExitStack() as stack:
            if self._compute_dtype is not None:
                # What is cast without gradients must not be taken for what is cast with them.
                keep = torch.is_grad_enabled()
                stack.enter_context(torch.autocast(kind, self._compute_dtype, cache_enabled=keep))
            low = self._compute_dtype in (torch.bfloat16, torch.float16)
            if kind == "cpu" and low and torch.is_grad_enabled() and not self._plain_batches:
                # The fused attention of the CPU is quick forward but slow backward in bfloat16: the whole backward
                # pass of 48 texts of 40 tokens takes twice as long with it. torch's own plain form of it computes in
                # float32 and looks for rows that are masked whole, of which there are none; that takes longer, for
                # gradients that are hardly more exact.
                stack.enter_context(_eager_attention(encoder))
            yield


def length_buckets(
    lengths: Sequence[int], device_type: str = "cpu", with_gradients: bool = False
) -> Iterator[list[int]]:
    """Sort texts by length and cut them into batches in which little is padding.

    Args:
        lengths: Tokens of each text.
        device_type: "cpu", "cuda" or "mps", which have different appetites.
        with_gradients: Whether gradients follow, which makes every batch cost more.

    Yields:
        Row numbers, longest text first.
    """
    most = _BATCH_TOKENS.get(device_type, 4096)
    worthwhile = _WORTHWHILE_TOKENS.get(device_type, 384) * (_WORTHWHILE_WITH_GRADIENTS if with_gradients else 1)
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batch: list[int] = []
    for row in rows:
        if batch:
            longest = lengths[batch[0]]
            padded = longest * (len(batch) + 1)
            wasteful = longest > _MOST_PADDING * lengths[row] and padded > worthwhile
            if padded > most or wasteful:
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch


@contextlib.contextmanager
def _eager_attention(encoder: Encoder) -> Iterator[None]:
    """Let a transformer that uses torch's attention use the plain one of transformers for a while, or else torch's."""
    transformer: Any = encoder.model[0].auto_model
    # Before transformers 5 a BERT keeps the attention that it was made with.
    if not getattr(transformer, "_can_set_attn_implementation", lambda: False)():
        with sdpa_kernel(SDPBackend.MATH):
            yield
        return
    if transformer.config._attn_implementation != "sdpa":
        yield
        return
    transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        transformer.set_attn_implementation("sdpa")


def _freeze(encoder: Encoder, frozen: Frozen) -> None:
    transformer: Any = encoder.model[0].auto_model
    for name, parameter in encoder.model.named_parameters():
        # BERT's pooler does not take part in pooling by mean, first or last token.
        parameter.requires_grad_(parameter.requires_grad and ".pooler." not in name)
    if frozen != "none":
        transformer.get_input_embeddings().requires_grad_(False)
    if frozen == "embeddings":
        for name, module in transformer.named_modules():
            if name.endswith("embeddings"):
                module.requires_grad_(False)


def _share_frozen(first: Encoder, second: Encoder) -> None:
    """Let both encoders hold one copy of equal frozen word embeddings."""
    transformers: list[Any] = [encoder.model[0].auto_model for encoder in (first, second)]
    mine, other = (transformer.get_input_embeddings() for transformer in transformers)
    if mine.weight.shape == other.weight.shape and torch.equal(mine.weight, other.weight):
        other.weight = mine.weight


def _target_of(encoder: EncoderType) -> EncoderType:
    frozen = {id(parameter): parameter for parameter in encoder.model.parameters() if not parameter.requires_grad}
    # A frozen weight is the same in its target: kept once.
    model = copy.deepcopy(encoder.model, dict(frozen)).requires_grad_(False)
    return type(encoder)(model, encoder.config)
