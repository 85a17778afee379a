"""Find notes that lie scattered in a real book, by questions that need several of them, in both frameworks, offline.

Run it with: python examples/quickstart.py
The book is "Alice's Adventures in Wonderland" (1865), which is in the public domain.
"""

from pathlib import Path

from qrag_retriever import QRAGRetriever

NOTES = [
    "Mara works at the Blue Oven.",
    "Jonas took the brass key.",
    "Ben works at the Red Lantern.",
    "Jonas went to the harbour.",
    "The Blue Oven belongs to Mr. Adler.",
    "Jonas went to the library.",
    "Mr. Adler lives in Carl Street.",
    "Jonas left the brass key there.",
    "The Red Lantern belongs to Ms. Roth.",
    "Lena went to the harbour.",
    "Ms. Roth lives in Mill Lane.",
    "Jonas went to the garden.",
]
QUESTION = "Where does the owner of the shop where Mara works live?"
MORE_QUESTIONS = ["Where was the brass key before the library?", "Who owns the shop where Ben works?"]


def book_with_notes() -> tuple[list[str], list[str]]:
    """Return the book's paragraphs with the notes among them, and the ids of both."""
    book = Path(__file__).with_name("alice.txt").read_text(encoding="utf-8")
    chunks = [paragraph for paragraph in book.split("\n\n") if paragraph.strip()]
    ids = [f"paragraph {number}" for number in range(len(chunks))]
    for number, note in enumerate(NOTES):
        place = 60 + 61 * number
        chunks.insert(place, note)
        ids.insert(place, f"note {number}")
    return chunks, ids


def main() -> None:
    chunks, ids = book_with_notes()
    retriever = QRAGRetriever.from_texts(chunks, ids=ids, k=3)

    print(f"{len(NOTES)} notes among {len(chunks):,} chunks.")
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
