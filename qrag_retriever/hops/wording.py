"""Foreign text made fit to be shown, and the words for what the hops say."""

from __future__ import annotations

import re

from qrag_retriever.steps import StopReason

# C0 and C1 controls other than tab and newline, and halves of surrogate pairs: HTML has no way to write them.
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: str) -> str:
    """Replace what cannot stand in a document: controls by their pictures, anything else by the replacement sign."""
    return _UNWRITABLE.sub(_picture, text.replace("\r\n", "\n"))


def clipped(text: str, most_characters: int) -> str:
    """Return text on one line, cut to a length."""
    text = " ".join(visible(text).split())
    return text if len(text) <= most_characters else text[: most_characters - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def signed(value: float) -> str:
    """Write a Q-value or a difference, with a true minus sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def stop_sentence(reason: StopReason, num_hops: int, min_q: float | None, best_left: float | None) -> str:
    """Say why a search stopped.

    Args:
        reason: Of the selection.
        num_hops: Chunks that were picked.
        min_q: The threshold, if it is known.
        best_left: The best Q-value in the state in which it stopped, if that is known.
    """
    if reason == "k":
        return f"It picked as many chunks as asked for ({num_hops})."
    if reason == "exhausted":
        return "No chunk was left to pick."
    threshold = "min_q" if min_q is None else f"min_q = {min_q:g}".replace("-", "\N{MINUS SIGN}")
    if best_left is None:
        return f"No chunk was worth more than {threshold}."
    return f"No chunk was worth more than {threshold}; the best one left had Q = {signed(best_left)}."


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
