"""Comparing texts with known answers: is an answer contained in a chunk, and is what somebody answered right."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

Answers = Sequence[Sequence[str]]
"""Every inner sequence must be met by one of its aliases."""

# One spelling for signs that texts print differently; removes soft hyphens and zero-width characters.
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
    }
)
# Thai, Lao, Myanmar, Hangul, Khmer, kana and Chinese characters: words there are not set apart by blanks.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7a3"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W{_UNSPACED}]"
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PARTS = (re.compile(r"[;\n]"), re.compile(r",| and "))


def normalise(text: str) -> str:
    """Return a text in the form in which answers are looked for.

    Case-folded, Unicode's compatibility form (ligatures, full-width letters, composed accents), one form of quotation
    marks, apostrophes and dashes, every run of white space one blank. Accents, punctuation and articles are kept:
    "resume" is not "résumé", and leaving "The" out of "The Who" would find it everywhere.
    """
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", text).translate(_SIGNS).casefold()
        text = unicodedata.normalize("NFKC", folded)
    return " ".join(text.casefold().split())


def contains(text: str, alias: str) -> bool:
    """Say whether an alias occurs in a text as whole words; both normalised.

    "Ann" is not in "annual", but in "Ann's" and "Mary-Ann". A number does not end within a longer one: "5" is neither
    in "5.5" nor in "1,500". Where a script does not set words apart by blanks, there is no boundary to be met. An empty
    alias is nowhere.
    """
    return bool(alias) and alias in text and _whole_words(alias).search(text) is not None


@lru_cache(maxsize=4096)
def _whole_words(alias: str) -> re.Pattern[str]:
    first, last = alias[0], alias[-1]
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, first) else ""
    after = rf"(?!{_LETTER})" if re.match(_LETTER, last) else ""
    if first.isdecimal():
        before += r"(?<!\d[.,])"
    if last.isdecimal():
        after += r"(?![.,]\d)"
    return re.compile(before + re.escape(alias) + after)


def _words(text: str) -> list[str]:
    """Return a text's words as SQuAD's evaluation compares them: lower case, no punctuation, no articles."""
    lowered = unicodedata.normalize("NFKC", text).lower()
    kept = (c for c in lowered if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    words = _ARTICLES.sub(" ", "".join(kept)).split()
    # An answer that is an article or a sign ("A", "+") would be equal to saying nothing.
    return words or lowered.split()


def exact_match(answer: str, alias: str) -> float:
    """Return 1.0 if both are the same words in the same order, else 0.0."""
    return float(_words(answer) == _words(alias))


def f1(answer: str, alias: str) -> float:
    """Return the harmonic mean of precision and recall of the answer's words, from 0.0 to 1.0."""
    given, expected = Counter(_words(answer)), Counter(_words(alias))
    total = given.total() + expected.total()
    return 2 * (given & expected).total() / total if total else 0.0


def answer_score(answer: str, answers: Answers, measure: Callable[[str, str], float]) -> float:
    """Compare what somebody answered with the known answers.

    Args:
        answer: The text that was given.
        answers: The known answers; the best alias of each counts.
        measure: `exact_match` or `f1`.

    Returns:
        From 0.0 to 1.0. With one known answer, that of its best alias. With several, the text is taken apart at
        semicolons and line breaks, or else at commas and "and"; the score is the mean over the known answers of their
        best part, or the mean over the parts of their best known answer, whichever is lower: neither leaving one out
        nor naming everything gives 1.0.

    Source: SQuAD (arXiv 1606.05250), exact match and F1.
    """
    parts = [answer]
    if len(answers) > 1:
        separator = _PARTS[0] if _PARTS[0].search(answer.strip()) else _PARTS[1]
        parts = [part for part in separator.split(answer) if part.strip()] or [answer]
    scores = [[max(measure(part, alias) for alias in aliases) for aliases in answers] for part in parts]
    found: float = sum(max(column) for column in zip(*scores, strict=True)) / len(answers)
    right: float = sum(max(row) for row in scores) / len(parts)
    return min(found, right)
