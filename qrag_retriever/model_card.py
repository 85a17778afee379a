"""The README of a model folder."""

from __future__ import annotations

from qrag_retriever.config import QRAGConfig

_CARD = """---
library_name: qrag-retriever
pipeline_tag: sentence-similarity
tags: [retrieval, multi-hop, q-rag, sentence-transformers]
---

# A Q-RAG pair of encoders

Multi-step retrieval inside embedding space: a state encoder embeds the question and the chunks picked so far, an action
encoder embeds every chunk once, and the Q-value of picking a chunk is their inner product
(Sorokin et al., *Q-RAG*, ICLR 2026, arXiv 2511.07328).

```python
from qrag_retriever import QRAGModel, QRAGRetriever

retriever = QRAGRetriever.from_texts(chunks, model=QRAGModel.from_pretrained("path/to/this/folder"))
retriever.search("Where was the football before the kitchen?")
```

| setting | value |
|---|---|
{rows}
"""


def model_card(config: QRAGConfig) -> str:
    """Describe a model by its configuration."""
    return _CARD.format(rows="\n".join(f"| {name} | `{value!r}` |" for name, value in config.model_dump().items()))
