"""Index a real book and ask questions that need several pieces of evidence, through both frameworks, offline.

Run it with: python examples/quickstart.py
The text is "Alice's Adventures in Wonderland" (1865), which is in the public domain.
"""

from pathlib import Path

from qrag_retriever import QRAGRetriever

QUESTION = "What did Alice find in the little bottle that she came upon after finding the golden key?"


def main() -> None:
    book = Path(__file__).with_name("alice.txt").read_text(encoding="utf-8")
    paragraphs = [paragraph for paragraph in book.split("\n\n") if paragraph.strip()]
    retriever = QRAGRetriever.from_texts(paragraphs, k=3)

    print("The hops, with their Q-values:")
    print(retriever.search(QUESTION))

    print("\nThrough LangChain (invoke -> Documents):")
    for document in retriever.invoke(QUESTION):
        print(
            f"  hop {document.metadata['qrag_hop']}  Q={document.metadata['score']:+.3f}  {document.page_content[:70]}"
        )

    print("\nThrough LlamaIndex (retrieve -> NodeWithScore):")
    for node in retriever.retrieve(QUESTION):
        print(f"  hop {node.metadata['qrag_hop']}  Q={node.score:+.3f}  {node.text[:70]}")


if __name__ == "__main__":
    main()
