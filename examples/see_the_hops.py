"""See why chunks were picked: a picture of the hops and a page to look around in, offline.

Run it with: python examples/see_the_hops.py [FOLDER]
It needs matplotlib for the picture (pip install '.[plot]'); the page needs nothing else.
"""

import sys
from pathlib import Path

from qrag_retriever import QRAGRetriever

QUESTION = "Where did the baby that the Duchess threw to Alice turn into a pig?"


def main(folder: Path) -> None:
    book = Path(__file__).with_name("alice.txt").read_text(encoding="utf-8")
    paragraphs = [paragraph for paragraph in book.split("\n\n") if paragraph.strip()]
    ids = [f"paragraph {number}" for number in range(len(paragraphs))]
    selection = QRAGRetriever.from_texts(paragraphs, ids=ids, k=3).search(QUESTION)
    print(selection)

    folder.mkdir(parents=True, exist_ok=True)
    selection.plot().savefig(folder / "hops.png", dpi=150)
    selection.to_html(folder / "hops.html")
    print(f"\nWritten to {folder}: hops.png and hops.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
