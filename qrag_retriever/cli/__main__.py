"""``python -m qrag_retriever.cli``."""

from qrag_retriever.cli.main import main

raise SystemExit(main())
