"""Errors that callers may want to tell apart; all are also the built-in error one would expect."""

from __future__ import annotations


class IndexFolderError(ValueError):
    """A folder is not a readable index: foreign, truncated, damaged, or of a newer format."""


class ModelFolderError(ValueError):
    """A folder is not a readable model: foreign, incomplete, or of a newer format."""


class ModelMismatchError(ValueError):
    """An index was built by another model than the one it is used with."""


class DuplicateIdError(ValueError):
    """The same id occurs twice in one call."""


class UnknownIdError(KeyError):
    """An id is not, and never was, in the index."""

    def __str__(self) -> str:
        return str(self.args[0])
