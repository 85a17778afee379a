"""Which split a story, an article or a group of linked paragraphs is in: decided by a hash of what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

from qrag_retriever.errors import DataError

Split = Literal["train", "validation", "test"]


def check_split(split: str, allowed: Sequence[str] = get_args(Split)) -> None:
    """Raise ValueError unless a split is one of those that there are."""
    if split not in allowed:
        raise ValueError(f"split must be one of {', '.join(allowed)}, got {split!r}")


def check_share(validation_share: float) -> None:
    """Raise ValueError unless a share leaves something for training."""
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be at least 0 and below 1, got {validation_share}")


def check_filled(num_questions: int, where: str) -> None:
    """Raise DataError if a source has no question."""
    if num_questions == 0:
        raise DataError(f"{where}: no question is left; check the split and the options, and how many were dropped")


def cut_of(text: str, validation_share: float) -> Split:
    """Tell where a piece of the training data belongs.

    A hash decides, so the answer depends on this text alone: data that is added later moves nothing across the cut.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") < validation_share * 2**64 else "train"


def linked_groups(members: Sequence[Sequence[str]]) -> list[str]:
    """Name the group that each of several sets belongs to, where sets that share a member are in one group.

    Args:
        members: The gold titles of each question, say.

    Returns:
        For each set the smallest member of its group.
    """
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        path = [name]
        while (parent := parents.setdefault(path[-1], path[-1])) != path[-1]:
            path.append(parent)
        for visited in path:
            parents[visited] = path[-1]
        return path[-1]

    for names in members:
        roots = {root(name) for name in names}
        for other in roots:
            parents[other] = min(roots)
    return [root(names[0]) for names in members]


def cut_linked(titles: Sequence[Sequence[str]], validation_share: float) -> list[Split]:
    """Tell for each question, given its gold titles, where it belongs.

    Two questions about the same paragraph teach each other's answer, and a third may link them to more: so whole
    groups go to one side, and no gold title is on both. The hash is of the group's smallest title; only a new question
    that links two groups can move one of them.
    """
    return [cut_of(group, validation_share) for group in linked_groups(titles)]
