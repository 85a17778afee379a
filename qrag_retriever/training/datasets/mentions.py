"""Where a paragraph names what another one is about: the links that questions of several hops are made up along."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qrag_retriever.sentences import split_sentences
from qrag_retriever.training.datasets.training_paragraphs import plain_name

# Names of one short word are as often something else.
_SHORTEST_NAME = 5
# "is an American actress who": what a thing is, up to where it is told which one.
_WHAT_IT_IS = re.compile(
    r"\b(?:is|was|are|were) (?:an?|the|one of the) ([\w\- ]{3,60}?)"
    r"(?= (?:who|which|that|from|by|in|of|on|at|for|with|to|based|located|written|directed|known|born|and)\b|[,.;(])"
)
_WORDS_BEFORE, _WORDS_AFTER = 9, 5  # around a name, that ask for its sentence
_FEWEST_TELLING = 2  # of these words
_CLAUSE = re.compile(r"[,;:()\"\[\]]| -+ |[.!?]$")
_LINKING = re.compile(r"^(?:(?:and|or|but|who|which|that|as|where|when|with) )+")
_OPENING = 200  # characters of a paragraph that say what it is about


@dataclass(frozen=True, slots=True)
class Mention:
    """A sentence of one paragraph that has a name that leads to another.

    Attributes:
        title: Whose paragraph the sentence is in.
        before: The sentence up to the name.
        after: The sentence behind the name.
        named: What the name leads to, a title say.
    """

    title: str
    before: str
    after: str
    named: str


def telling_names(titles: Iterable[str]) -> dict[str, str]:
    """Return the titles by their plain names, without those that may mean another thing or that two titles share."""
    of_name: dict[str, list[str]] = defaultdict(list)
    for title in titles:
        of_name[plain_name(title)].append(title)
    return {name: own[0] for name, own in of_name.items() if len(own) == 1 and _is_telling(name, own[0])}


def find_mentions(texts: Mapping[str, str], names: Mapping[str, str]) -> list[Mention]:
    """Find the first sentence of each paragraph that has each name.

    Args:
        texts: The text of each title, which it begins with.
        names: What each name leads to; a title's own name in its own paragraph leads nowhere.
    """
    longest = max((len(name.split()) for name in names), default=0)
    found = []
    for title, text in texts.items():
        seen = {title}
        for sentence in split_sentences(text.removeprefix(f"{title}. ")):
            for start, end, named in _names_in(sentence, names, longest):
                if named not in seen:
                    seen.add(named)
                    found.append(Mention(title, sentence[:start].strip(), sentence[end:].strip(), named))
    return found


def what_it_is(about: str) -> str | None:
    """Return what a paragraph says that its thing is: "American actress"; None if it does not say."""
    found = _WHAT_IT_IS.search(about[:_OPENING])
    return found[1] if found else None


def words_around(mention: Mention) -> str | None:
    """Return the words around a name, without other names and numbers, which would be the answer to a question.

    Returns:
        ``{}`` stands for the name; None if the words are few, or the sentence is about the named thing itself.
    """
    before = _CLAUSE.split(mention.before)[-1].split()[-_WORDS_BEFORE:]
    after = _CLAUSE.split(mention.after)[0].split()[:_WORDS_AFTER]
    words = [*map(_unless_an_answer, before), "{}", *map(_unless_an_answer, after)]
    if plain_name(mention.title) == mention.named or sum(len(word) > 3 for word in words) < _FEWEST_TELLING:
        return None
    return _LINKING.sub("", " ".join(word for word in words if word))


def _unless_an_answer(word: str) -> str:
    return "" if word[0].isupper() or any(map(str.isdigit, word)) else word.strip(".'`")


def _is_telling(name: str, title: str) -> bool:
    """Tell whether a name can hardly mean another thing; a title says in brackets which of many things it is."""
    return len(name) >= _SHORTEST_NAME and (" " in name or name == title)


def _names_in(sentence: str, known: Mapping[str, str], longest: int) -> list[tuple[int, int, str]]:
    """Return where a sentence has known names, and what they lead to; the longest at each place.

    A name that goes on is another one: "New England" in "New England Patriots".
    """
    words = [(match.start(), match.end()) for match in re.finditer(r"[^\s,;:()\"]+", sentence)]
    found, place = [], 0
    while place < len(words):
        for length in range(min(longest, len(words) - place), 0, -1):
            start, end = words[place][0], words[place + length - 1][1]
            name = sentence[start:end].removesuffix(".").removesuffix("'s")
            goes_on = re.match(r" [A-Z]", sentence[start + len(name) :]) is not None
            if name in known and name[0].isupper() and not goes_on:
                found.append((start, start + len(name), known[name]))
                place += length - 1
                break
        place += 1
    return found
