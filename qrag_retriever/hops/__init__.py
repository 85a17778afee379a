"""Pictures of a search: a matplotlib figure, a page of its own, a fragment for notebooks."""
