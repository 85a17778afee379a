"""Errors that callers may want to tell apart; all are also the built-in error one would expect."""

from __future__ import annotations


class IndexFolderError(ValueError):
    """A folder is not a readable index: foreign, truncated, damaged, or of a newer format."""


class EngineError(ValueError):
    """A table, collection or store is not a readable index, or cannot carry one."""


class StaleVersionError(RuntimeError):
    """Chunks of the version that is searched were deleted or replaced meanwhile; an engine keeps only the newest."""


class ModelFolderError(ValueError):
    """A folder is not a readable model: foreign, incomplete, or of a newer format."""


class CacheError(ValueError):
    """A file is not a readable embedding cache: foreign, damaged, or of a newer format."""


class ModelMismatchError(ValueError):
    """An index, or a copy of a model, belongs to another model than the one that is given or found."""


class DuplicateIdError(ValueError):
    """The same id occurs twice in one call."""


class DataError(ValueError):
    """A data file cannot be used: missing, or a line of it is not as its format has it."""


class UnknownIdError(KeyError):
    """An id is not, and never was, in the index."""

    def __str__(self) -> str:
        return str(self.args[0])


class RecipeError(ValueError):
    """A training recipe has an unknown key or a wrong value."""


class CheckpointError(ValueError):
    """A training checkpoint is damaged, or belongs to another recipe."""


class DivergedError(ArithmeticError):
    """Training has produced values that are not finite; the last good weights are kept."""


class RewardError(RuntimeError):
    """A reward cannot be had: its language model fails, or does not answer in text."""
