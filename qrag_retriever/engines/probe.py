"""Finding out, before a store carries an index, whether it ranks right and what its scores mean."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qrag_retriever.engines.places import END
from qrag_retriever.engines.store_side import Hit, StoreSide
from qrag_retriever.errors import EngineError

_POINTS = 12
_ASKED = 4
_MAX_NORM = 2.0
# What a store of float32 vectors may be off, in units of M |q|.
_TOLERANCE = 1e-5


class ScoreMeaning(NamedTuple):
    """What a store's score says of a stored vector of length M and a query of length |q|.

    Attributes:
        name: For messages.
        inner_product: From (score, |q|, M) to the inner product.
    """

    name: str
    inner_product: Callable[[float, float, float], float]


def _decayed(distance: ScoreMeaning) -> ScoreMeaning:
    """Return the meaning of ``exp(-distance)``, which LlamaIndex's Chroma store makes of Chroma's distances."""
    return ScoreMeaning(
        f"exp(-{distance.name})",
        lambda s, q, m: distance.inner_product(-math.log(s), q, m) if s > 0 else -math.inf,
    )


_DISTANCES = [
    ScoreMeaning("cosine distance", lambda s, q, m: (1 - s) * q * m),
    ScoreMeaning("one minus inner product", lambda s, q, m: 1 - s),
    ScoreMeaning("squared distance", lambda s, q, m: (q * q + m * m - s) / 2),
]
_MEANINGS = [
    ScoreMeaning("cosine similarity", lambda s, q, m: s * q * m),
    ScoreMeaning("inner product", lambda s, q, m: s),
    ScoreMeaning("negative inner product", lambda s, q, m: -s),
    ScoreMeaning("distance", lambda s, q, m: (q * q + m * m - s * s) / 2),
    *_DISTANCES,
    *(_decayed(distance) for distance in _DISTANCES),
]


def lengthened(vectors: np.ndarray, max_norm: float) -> np.ndarray:
    """Append the component ``sqrt(M^2 - |a|^2)`` that makes all vectors (N, D) of length M; (N, D + 1), float32."""
    squares = np.square(vectors.astype(np.float64)).sum(axis=1)
    rest = np.sqrt(np.maximum(max_norm**2 - squares, 0.0))
    return np.concatenate([vectors, rest[:, None].astype(np.float32)], axis=1)


def asked(query: np.ndarray) -> np.ndarray:
    """Append the 0 that keeps the inner products of a query (D,) with lengthened vectors what they were."""
    return np.append(query, np.float32(0))


@dataclass(frozen=True)
class _Points:
    """What the probe stores and asks.

    Attributes:
        vectors: Shape (P, D).
        places: P of them, ascending, behind all that chunks can have.
        ids: P of them.
        queries: Shape (3, D).
    """

    vectors: np.ndarray
    places: list[int]
    ids: list[str]
    queries: np.ndarray

    @classmethod
    def drawn(cls, dim: int) -> _Points:
        random = np.random.default_rng(0)
        vectors = random.standard_normal((_POINTS, dim)).astype(np.float32)
        # Lengths that differ much, so that ranking by the cosine of the bare vectors would show.
        vectors *= (np.linspace(0.1, 1.0, _POINTS) / np.linalg.norm(vectors, axis=1))[:, None].astype(np.float32)
        places = [END + 3 * i for i in range(_POINTS)]
        return cls(vectors, places, [str(uuid.uuid4()) for _ in places], random.standard_normal((3, dim)).astype("f4"))


class _RefusalError(Exception):
    """A store does not do as it must with one kind of filter."""


def probe(side: StoreSide, dim: int, location: str) -> ScoreMeaning:
    """Store a few vectors, search them, delete them.

    Returns:
        What the store's scores mean. The side is left with the range filter that worked.

    Raises:
        EngineError: If the store does not do as it must.
    """
    points = _Points.drawn(dim)
    stored = lengthened(points.vectors, _MAX_NORM)
    with _failing(location, "storing and deleting vectors of dimension D + 1"):
        side.add(points.ids, [f"probe {i}" for i in range(_POINTS)], points.places, stored)
    try:
        meaning = _meaning(side, points, location)
    finally:
        with _failing(location, "deleting vectors by id"):
            side.remove(points.ids)
    if side.query(stored[0], END, points.places[-1] + 1, 1):
        raise EngineError(f"an index cannot be {location}: what is deleted from it can still be found")
    if side.query(stored[0], 0, END, 1):
        raise EngineError(f"there is an index {location} already, which cannot be opened again; use an empty store")
    return meaning


@contextmanager
def _failing(location: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EngineError(f"an index cannot be {location}: {what} fails: {error!r}") from error


def _meaning(side: StoreSide, points: _Points, location: str) -> ScoreMeaning:
    """Try one kind of range filter after the other."""
    reasons = []
    for range_filter in side.range_filters():
        side.use_range_filter(range_filter)
        try:
            return _tried(side, points)
        except Exception as error:  # a filter that a store does not know may raise any error at all
            reasons.append(str(error) or type(error).__name__)
    raise EngineError(f"an index cannot be {location}: {'; or '.join(dict.fromkeys(reasons))}")


def _tried(side: StoreSide, points: _Points) -> ScoreMeaning:
    """Search within ranges that begin and end at stored places."""
    meanings = list(_MEANINGS)
    for query in points.queries:
        for first, last in ((0, _POINTS), (2, 9), (5, 6)):
            places = points.places[first:last]
            exact = dict(zip(places, (points.vectors[first:last] @ query).tolist(), strict=True))
            hits = side.query(asked(query), places[0], [*points.places, END + 3 * _POINTS][last], _ASKED)
            _check_ranking(hits, exact)
            length = float(np.linalg.norm(query))
            meanings = [meaning for meaning in meanings if _fits(meaning, hits, exact, query, length)]
    if not meanings:
        known = ", ".join(meaning.name for meaning in _MEANINGS)
        raise _RefusalError(f"its scores are none of these, to five digits: {known}")
    return meanings[0]


def _check_ranking(hits: Sequence[Hit], exact: dict[int, float]) -> None:
    found = [place for place, _, _ in hits]
    if not set(found) <= set(exact) or len(found) != min(_ASKED, len(exact)):
        raise _RefusalError(
            "it does not honour filters on a range of integers in the metadata (for a LangChain store with filters of "
            "its own kind give range_filter)"
        )
    if found != sorted(exact, key=lambda place: -exact[place])[: len(found)]:
        raise _RefusalError("it does not rank vectors of equal length by inner product")


def _fits(
    meaning: ScoreMeaning, hits: Sequence[Hit], exact: dict[int, float], query: np.ndarray, length: float
) -> bool:
    """Tell whether scores, or the vectors that came back, give the inner products."""
    products = [product_of(hit, meaning, query, length, _MAX_NORM) for hit in hits]
    return all(
        abs(product - exact[place]) <= _TOLERANCE * length * _MAX_NORM
        for product, (place, _, _) in zip(products, hits, strict=True)
    )


def product_of(hit: Hit, meaning: ScoreMeaning, query: np.ndarray, length: float, max_norm: float) -> float:
    """Return the inner product of a query of some length with what was found: exact if the vector came back."""
    _, score, vector = hit
    if vector is None:
        return meaning.inner_product(score, length, max_norm)
    return float(np.asarray(vector, np.float32)[: len(query)] @ query)
