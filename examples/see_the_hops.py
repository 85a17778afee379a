"""See why chunks were picked: a picture of the hops and a page to look around in, offline.

Run it with: python examples/see_the_hops.py [FOLDER]
It needs matplotlib for the picture (pip install -c constraints.txt '.[plot]'); the page needs nothing else.
"""

import sys
from pathlib import Path

from quickstart import QUESTION, book_with_notes

from qrag_retriever import QRAGRetriever


def main(folder: Path) -> None:
    chunks, ids = book_with_notes()
    selection = QRAGRetriever.from_texts(chunks, ids=ids, k=3).search(QUESTION)
    print(selection)

    folder.mkdir(parents=True, exist_ok=True)
    selection.plot().savefig(folder / "hops.png", dpi=150)
    selection.to_html(folder / "hops.html")
    print(f"\nWritten to {folder}: hops.png and hops.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
