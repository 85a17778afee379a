"""Index a real book and ask questions that need several pieces of evidence, through both frameworks, offline.

Run it with: python examples/quickstart.py
The text is "Alice's Adventures in Wonderland" (1865), which is in the public domain.
"""

from pathlib import Path

from qrag_retriever import QRAGRetriever

QUESTION = "What happened to Alice after she drank from the bottle that she found on the glass table?"
MORE_QUESTIONS = [
    "Where did the baby that the Duchess threw to Alice turn into a pig?",
    "Who stole the thing that the Queen of Hearts made?",
]


def main() -> None:
    book = Path(__file__).with_name("alice.txt").read_text(encoding="utf-8")
    paragraphs = [paragraph for paragraph in book.split("\n\n") if paragraph.strip()]
    ids = [f"paragraph {number}" for number in range(len(paragraphs))]
    retriever = QRAGRetriever.from_texts(paragraphs, ids=ids, k=3)

    print("The hops of each question, with their Q-values (search -> Selection):")
    for selection in [retriever.search(QUESTION), *retriever.search_many(MORE_QUESTIONS)]:
        print(selection)

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
