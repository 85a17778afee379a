"""The hops over documents that are in a vector store already, and with a vector store as the engine, offline.

Stores of both frameworks hold vectors of some other encoder, made for a single step; the hops need those of the model's
own action encoder, once for every chunk. There are two ways, and a third if such vectors exist:

 1. read the texts out of the store and index them beside it (the usual one);
 2. let an empty store carry the hops' own vectors and do the searching (ChunkIndex.on_store);
 3. index vectors that the action encoder made elsewhere (ChunkIndex.from_embeddings).

Run it with: python examples/vector_store.py
The stores are those that come with LangChain and LlamaIndex, in this process. For PostgreSQL and Qdrant, which need no
second copy of the texts, see docs/scaling.md.
"""

import json
from pathlib import Path

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore

from qrag_retriever import ChunkIndex, QRAGModel, QRAGRetriever


def show(title: str, retriever: QRAGRetriever, question: str) -> None:
    selection = retriever.search(question)
    print(f"\n{title}")
    for hop, step in enumerate(selection.steps, 1):
        print(f"  hop {hop}  Q={step.q_value:+.3f}  [{step.id}] {step.text}")


def main() -> None:
    with Path(__file__).with_name("town.jsonl").open(encoding="utf-8") as lines:
        town = json.loads(next(line for line in lines if '"town-02"' in line))
    texts, question = town["chunks"], town["question"]
    ids = [str(number) for number in range(len(texts))]
    model = QRAGModel.from_pretrained()  # loaded once for all that follows
    print(question)

    # 1. LangChain's interface for stores cannot list what is in them, but every store has a way of its own. Then
    # get_by_ids gives the documents, with their ids and metadata. (The fake embedding stands for the store's encoder.)
    filled = InMemoryVectorStore(DeterministicFakeEmbedding(size=64))
    filled.add_texts(texts, ids=ids)
    documents = filled.get_by_ids(list(filled.store))
    show(
        "1. LangChain: documents read out of the store",
        QRAGRetriever.from_documents(documents, model=model, mode="corpus", k=2),
        question,
    )

    # A LlamaIndex index keeps its nodes in a docstore beside the vectors, from where they are read.
    nodes = [TextNode(text=text, id_=id_) for text, id_ in zip(texts, ids, strict=True)]
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=8))
    show(
        "1. LlamaIndex: nodes read out of the index",
        QRAGRetriever.from_defaults(index=index, model=model, mode="corpus", k=2),
        question,
    )

    # 2. The store takes vectors of one component more than the model's, so that its cosine ranks like a Q-value; a
    # probe finds out whether it does. The index hands it the vectors, whatever the store embeds with otherwise.
    for store in (InMemoryVectorStore(DeterministicFakeEmbedding(size=64)), SimpleVectorStore()):
        carried = ChunkIndex.on_store(store, model=model, mode="corpus")
        carried.add(texts, ids=ids)
        show(f"2. carried by {type(store).__name__}", QRAGRetriever(index=carried, k=2), question)

    # 3. Vectors of the action encoder, from wherever it has run.
    vectors = model.encode_chunks(texts)
    given = ChunkIndex.from_embeddings(vectors, texts, ids, model=model, mode="corpus")
    show(f"3. given vectors of shape {vectors.shape}", QRAGRetriever(index=given, k=2), question)


if __name__ == "__main__":
    main()
