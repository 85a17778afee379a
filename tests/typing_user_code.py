"""What users write, for type checkers: mypy in strict mode and pyright must find no error here. Never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from langchain_core.runnables import ConfigurableField, Runnable, RunnableConfig, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document as LlamaIndexDocument
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGConfig, QRAGModel, QRAGRetriever, Selection, Step


def on_page_3(metadata: dict[str, Any]) -> bool:
    """Filter by a function."""
    return bool(metadata.get("page") == 3)


def make(texts: list[str], folder: Path) -> list[QRAGRetriever]:
    """Every way to a retriever."""
    model = QRAGModel.from_pretrained()
    index = ChunkIndex.from_texts(texts, model=model)
    documents = [Document(page_content=text, metadata={"source": "a"}) for text in texts]
    nodes = [TextNode(text=text) for text in texts]
    return [
        QRAGRetriever.from_texts(texts),
        QRAGRetriever.from_texts(texts, [{"page": 3}] * len(texts), ids=[str(i) for i in range(len(texts))], k=3),
        QRAGRetriever.from_texts(tuple(texts), model="a folder", mode="corpus", min_q="auto", beam_width=2),
        QRAGRetriever.from_documents(documents, model=model, score_key=None, hop_key=None),
        QRAGRetriever.from_documents([LlamaIndexDocument(text=text) for text in texts]),
        QRAGRetriever.from_defaults(nodes=nodes, similarity_top_k=2),
        QRAGRetriever.from_defaults(index=index),
        QRAGRetriever.load(folder, device="cpu", k=3),
        QRAGRetriever.load("story.qrag", model=model, reindex=True),
        QRAGRetriever(index=index, k=3, min_q=0.1, order="document", filters={"page": [1, 2]}, batch_wait_ms=5),
        QRAGRetriever(index=index, similarity_top_k=3, tags=["story"], metadata={"team": "a"}, name="story"),
        QRAGRetriever(index=index, filters=lambda metadata: metadata.get("page") == 3),
        QRAGRetriever(index=index, filters=on_page_3),
        QRAGRetriever(index=index, filters=MetadataFilter(key="page", value=3)),
        QRAGRetriever(index=index, filters=MetadataFilters(filters=[MetadataFilter(key="page", value=3)])),
    ]


def search(retriever: QRAGRetriever, question: str) -> list[str]:
    """Searches and what they give."""
    selection: Selection = retriever.search(question, k=2, filters={"page": 3}, min_q=0.5)
    step: Step = selection.steps[0]
    lines: list[str] = [f"{hop.q_value:+.3f} {hop.position} {hop.text}" for hop in selection.steps]
    first: tuple[str, float, dict[str, Any]] = step.id, step.q_value, step.metadata
    lines.append(f"{first} {selection.stop_reason.upper()} {len(selection)} {selection.ids}")
    many: list[Selection] = retriever.search_many([question, question])
    hops = retriever.search_iter(question, k=3)
    for hop in hops:
        lines.append(hop.text)
    if hops.selection is not None:
        lines.append(hops.selection.stop_reason)
    page: Path = selection.to_html("hops.html")
    plain: dict[str, Any] = many[0].to_dict()
    return [*lines, str(page), str(plain)]


async def asearch(retriever: QRAGRetriever, question: str) -> list[str]:
    """The same, asynchronously."""
    selection = await retriever.asearch(question, min_q="auto")
    hops = retriever.asearch_iter(question)
    texts = [step.text async for step in hops]
    documents = await retriever.ainvoke(question, k=2)
    batches = await retriever.abatch([question, question])
    nodes = await retriever.aretrieve(QueryBundle(question))
    await retriever.aadd_texts(["more"])
    texts.extend(document.page_content for found in [documents, *batches] for document in found)
    texts.extend(node.get_content() for node in nodes)
    return [*selection.ids, *texts]


def with_langchain(retriever: QRAGRetriever, question: str, handler: BaseCallbackHandler) -> str:
    """What LangChain's users do."""
    documents: list[Document] = retriever.invoke(question, k=2, filters={"page": 3})
    config: RunnableConfig = {"callbacks": [handler], "configurable": {"k": 2}}
    retriever.invoke(question, config)
    many: list[list[Document]] = retriever.batch([question, question], {"max_concurrency": 8})
    configurable = retriever.configurable_fields(k=ConfigurableField(id="k"))
    found: list[Document] = configurable.with_config(configurable={"k": 2}).invoke(question)
    prompt = ChatPromptTemplate.from_template("{context} {question}")
    chain: Runnable[str, str] = (
        {"context": retriever, "question": RunnablePassthrough()}
        | prompt
        | FakeListChatModel(responses=["yes"])
        | StrOutputParser()
    )
    tool = create_retriever_tool(retriever, "story", "Looks into the story.")
    answer: str = chain.invoke(question)
    return f"{answer} {tool.name} {documents[0].id} {len(many)} {len(found)}"


def with_llama_index(retriever: QRAGRetriever, question: str) -> list[NodeWithScore]:
    """What LlamaIndex's users do."""
    engine = RetrieverQueryEngine.from_args(retriever)
    tool = RetrieverTool.from_defaults(retriever, name="story", description="Looks into the story.")
    nodes: list[NodeWithScore] = retriever.retrieve(question)
    return [*nodes, *engine.retrieve(QueryBundle(f"{question} {tool.metadata.name} {nodes[0].score}"))]


def takes_langchain(retriever: LangChainRetriever) -> str:
    """Stand for a library that wants LangChain's retriever."""
    return retriever.get_name()


def takes_llama_index(retriever: LlamaIndexRetriever) -> list[NodeWithScore]:
    """Stand for a library that wants LlamaIndex's retriever."""
    return retriever.retrieve("question")


def both(retriever: QRAGRetriever) -> tuple[str, list[NodeWithScore]]:
    """Hand one object to libraries of both."""
    return takes_langchain(retriever), takes_llama_index(retriever)


def change(retriever: QRAGRetriever, folder: Path) -> list[str]:
    """Add, delete, save."""
    ids: list[str] = retriever.add_texts(["new"], [{"page": 4}], ["n1"])
    ids += retriever.add_documents([Document(page_content="newer")])
    retriever.delete(ids)
    retriever.save(folder)
    retriever.persist(str(folder))
    retriever.k = 3
    retriever.similarity_top_k = 4
    return ids


def below(texts: list[str]) -> np.ndarray:
    """The index, the model and the selector by themselves."""
    model: QRAGModel = QRAGModel.from_encoder("intfloat/e5-small-v2", num_layers=6)
    config: QRAGConfig = model.config
    index = ChunkIndex.from_embeddings(model.encode_chunks(texts), texts, model=model)
    states = model.encode_states([("question", [texts[0]]), "question"])
    chunk_ids, q_values = index.top_k(states, [[0], []], k=3)
    selector = MultiStepSelector(index, k=3, min_q="auto", beam_width=2, rank_by="last")
    picked: list[Step] = [step for found in selector.select_many(["a", "b"]) for step in found.steps]
    model.save_pretrained("folder", compact=True)
    return chunk_ids[q_values > len(picked) + config.dim]
