"""Stories of people who carry things (bAbI's second and third task): where each thing has been, and what tells so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

MOVE = re.compile(r"(?P<person>\w+) (?:went|moved|journeyed|travelled)(?: back)? to the (?P<room>\w+)\.")
# "taken" is there if the thing was taken, and not if it was put down.
HANDLING = re.compile(
    r"(?P<person>\w+) (?:(?P<taken>picked up|got|took|grabbed)|dropped|discarded|put down|left) "
    r"the (?P<thing>\w+)(?: there)?\."
)


@dataclass(frozen=True, slots=True)
class Before:
    """A question about where a thing was before it came to a room for the last time.

    Attributes:
        text: What is asked.
        answer: The room before.
        supporting: Indices of the statements that tell: how the thing came to the room before, how it came to the room
            asked about, and who took it or put it down last. Ascending.
    """

    text: str
    answer: str
    supporting: tuple[int, ...]


@dataclass
class _Thing:
    """Rooms that a thing has been in, one after the other, and the statements by which it came there."""

    rooms: list[str] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)
    last_handled: int = -1

    def arrive(self, room: str, statement: int) -> None:
        if not self.rooms or self.rooms[-1] != room:
            self.rooms.append(room)
            self.arrivals.append(statement)


def questions_before(statements: Sequence[str]) -> Iterator[Before]:
    """Ask about every thing and every room that it has been in, but for the first one.

    What is told without the carrier's room being known is left out, as bAbI leaves it out.

    Args:
        statements: A story; statements about anything but moving, taking and putting down are passed over.
    """
    for name, thing in _follow(statements).items():
        for room in dict.fromkeys(thing.rooms):
            last = len(thing.rooms) - 1 - thing.rooms[::-1].index(room)
            if last:
                facts = {thing.arrivals[last - 1], thing.arrivals[last], thing.last_handled}
                yield Before(f"Where was the {name} before the {room}?", thing.rooms[last - 1], tuple(sorted(facts)))


def _follow(statements: Sequence[str]) -> dict[str, _Thing]:
    places: dict[str, tuple[str, int]] = {}  # of people: room, and the statement by which they came there
    carriers: dict[str, str] = {}
    things: dict[str, _Thing] = {}
    for number, statement in enumerate(statements):
        if found := MOVE.fullmatch(statement):
            person, room = found["person"], found["room"]
            places[person] = room, number
            for name, carrier in carriers.items():
                if carrier == person:
                    things[name].arrive(room, number)
        elif found := HANDLING.fullmatch(statement):
            person, name = found["person"], found["thing"]
            thing = things.setdefault(name, _Thing())
            thing.last_handled = number
            if person in places:
                thing.arrive(*places[person])
            if found["taken"]:
                carriers[name] = person
            else:
                carriers.pop(name, None)
    return things
