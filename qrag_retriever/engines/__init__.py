"""Search on engines beyond one machine's memory: PostgreSQL, Qdrant, and vector stores of LangChain and LlamaIndex.

An engine answers one hop as one batch of range-filtered inner-product queries (`StepSearch`), because rotating a chunk
forward or the state backward gives the same product: chunks are stored once, unrotated, under an integer *place* that
never changes, and every run of chunks of equal position is one query with its own rotated state.
"""

from qrag_retriever.engines.base import Engine, StepSearch

__all__ = ["Engine", "StepSearch"]
