from __future__ import annotations

import dataclasses

import pytest

from qrag_retriever.state import RetrievalState


def test_append_is_a_new_state() -> None:
    state = RetrievalState("q")
    longer = state.append(7, "seven").append(2, "two")
    assert state.picked == ()
    assert longer.picked == (7, 2)
    assert longer.texts == ("seven", "two")


def test_render_sorts_by_place_only_in_document_order() -> None:
    state = RetrievalState("q").append(7, "seven").append(2, "two")
    assert state.render("document") == ("q", ("two", "seven"))
    assert state.render("retrieved") == ("q", ("seven", "two"))


def test_a_chunk_is_picked_once() -> None:
    with pytest.raises(ValueError, match="chunk 7 has been picked already"):
        RetrievalState("q").append(7, "seven").append(7, "seven")


def test_states_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetrievalState("q").query = "other"
