"""Drawing from several sources, the fixed questions of a validation, and the cut between training and validation."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrag_retriever.training import sampling
from qrag_retriever.training.data import Sample
from qrag_retriever.training.rewards import SupportingFactsReward
from qrag_retriever.training.sampling import Mixture, Task, fixed_episodes, held_out


class Numbered:
    """A source whose samples tell their number and era, and whose noise comes from the stream."""

    def __init__(self, name: str, size: int, unknown: Sequence[int] = (), facts: tuple[int, ...] = (0, 1)) -> None:
        self.name, self._size, self._unknown, self._facts = name, size, set(unknown), facts
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self._size

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        self.asked.append((number, era))
        chunks = (*(f"chunk {i}" for i in range(4)), f"noise {random.integers(10**9)} of era {era}")
        supporting = None if number in self._unknown else self._facts
        return Sample(f"{self.name}-{number}", f"question {number} of {self.name}?", chunks, supporting)


def task(source: Numbered, numbers: Sequence[int] | None = None, **fields: Any) -> Task:
    return Task(source, np.arange(len(source)) if numbers is None else np.array(numbers, np.int64), **fields)


REWARD = SupportingFactsReward()


class TestTask:
    @pytest.mark.parametrize(("given_limit", "facts", "expected"), [(None, (0, 1), 4), (None, (2,), 3), (7, (0, 1), 7)])
    def test_step_limit(self, given_limit: int | None, facts: tuple[int, ...], expected: int) -> None:
        source = Numbered("a", 3, facts=facts)
        assert task(source, step_limit=given_limit).episode(1, np.random.default_rng(0))[1] == expected

    def test_step_limit_without_annotated_facts(self) -> None:
        assert task(Numbered("a", 3, unknown=[1])).episode(1, np.random.default_rng(0))[1] == 4

    def test_facts_may_be_withheld(self) -> None:
        sample, limit = task(Numbered("a", 3, facts=(0, 1, 2)), withhold_supporting=True).episode(
            1, np.random.default_rng(0)
        )
        assert sample.supporting is None
        assert limit == 5, "the limit is the same as with them"
        assert task(Numbered("a", 3)).episode(1, np.random.default_rng(0))[0].supporting == (0, 1)


class TestMixture:
    @pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.2, 0.5, 0.3), (5,)])
    def test_draws_in_proportion_to_the_weights(self, weights: tuple[float, ...]) -> None:
        names = "abc"[: len(weights)]
        # The number of samples of a source has no say.
        tasks = [task(Numbered(name, 5 * 10**i), weight=weights[i]) for i, name in enumerate(names)]
        mixture, random = Mixture(tasks, REWARD), np.random.default_rng(0)
        counts = Counter(mixture.draw(random)[0].id[0] for _ in range(4000))
        for name, weight in zip(names, weights, strict=True):
            assert counts[name] / 4000 == pytest.approx(weight / sum(weights), abs=0.03)

    def test_draws_from_all_of_a_task_s_numbers_and_no_others(self) -> None:
        mixture, random = Mixture([task(Numbered("a", 50), [3, 7, 8])], REWARD), np.random.default_rng(0)
        counts = Counter(mixture.draw(random)[0].id for _ in range(3000))
        assert set(counts) == {"a-3", "a-7", "a-8"}
        assert min(counts.values()) > 850

    def test_repeats_with_the_stream(self) -> None:
        drawn = []
        for seed in (1, 1, 2):
            mixture = Mixture([task(Numbered("a", 9)), task(Numbered("b", 9))], REWARD)
            random = np.random.default_rng(seed)
            drawn.append([mixture.draw(random) for _ in range(20)])
        assert drawn[0] == drawn[1]
        assert drawn[0] != drawn[2]

    def test_gives_the_task_s_step_limit(self) -> None:
        tasks = [task(Numbered("a", 5), step_limit=2), task(Numbered("b", 5), step_limit=6)]
        mixture, random = Mixture(tasks, REWARD), np.random.default_rng(0)
        assert {(sample.id[0], limit) for sample, limit in (mixture.draw(random) for _ in range(50))} == {
            ("a", 2),
            ("b", 6),
        }

    def test_skips_what_the_reward_cannot_judge_and_counts_each_once(self) -> None:
        mixture, random = Mixture([task(Numbered("a", 10, unknown=[2, 5, 9]))], REWARD), np.random.default_rng(0)
        drawn = {mixture.draw(random)[0].id for _ in range(300)}
        assert drawn == {f"a-{i}" for i in range(10)} - {"a-2", "a-5", "a-9"}
        assert dict(mixture.skipped) == {"its supporting chunks are not annotated": 3}

    def test_of_nothing_that_can_be_judged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "_MOST_ATTEMPTS", 50)
        mixture = Mixture([task(Numbered("a", 3), withhold_supporting=True)], REWARD)
        message = (
            "the reward can judge none of the 3 questions drawn; the last one because its supporting chunks are not"
        )
        with pytest.raises(ValueError, match=message):
            mixture.draw(np.random.default_rng(0))

    def test_hands_the_era_on(self) -> None:
        source = Numbered("a", 5)
        mixture, random = Mixture([task(source)], REWARD), np.random.default_rng(0)
        mixture.draw(random)
        mixture.era = 7
        assert mixture.draw(random)[0].chunks[-1].endswith("of era 7")
        assert [era for _, era in source.asked] == [0, 7]

    def test_of_an_empty_task(self) -> None:
        with pytest.raises(ValueError, match="b has no samples left to draw"):
            Mixture([task(Numbered("a", 5)), task(Numbered("b", 5), [])], REWARD)


class TestFixedEpisodes:
    def tasks(self) -> list[Task]:
        return [task(Numbered("a", 40)), task(Numbered("b", 6), step_limit=3), task(Numbered("c", 40), range(20, 40))]

    def test_are_the_same_at_every_call(self) -> None:
        first, again, other = (fixed_episodes(self.tasks(), 15, seed) for seed in (1, 1, 2))
        assert first == again, "noise included"
        assert [s.id for s, _ in chain(*first)] != [s.id for s, _ in chain(*other)]

    @pytest.mark.parametrize(
        ("wanted", "expected"), [(15, (5, 5, 5)), (17, (6, 6, 5)), (30, (10, 6, 10)), (1, (1, 0, 0))]
    )
    def test_come_from_all_tasks_in_equal_parts(self, wanted: int, expected: tuple[int, ...]) -> None:
        by_task = fixed_episodes(self.tasks(), wanted, 1)
        assert tuple(map(len, by_task)) == expected
        episodes = list(chain(*by_task))
        ids = [sample.id for sample, _ in episodes]
        assert len(set(ids)) == len(ids)
        counts = Counter(sample_id[0] for sample_id in ids)
        assert tuple(counts[name] for name in "abc") == expected
        assert all(int(sample_id[2:]) >= 20 for sample_id in ids if sample_id[0] == "c")
        assert {limit for sample, limit in episodes if sample.id[0] == "b"} <= {3}

    def test_a_question_s_document_does_not_depend_on_how_many_are_asked(self) -> None:
        few, many = (dict((s.id, s) for s, _ in chain(*fixed_episodes(self.tasks(), n, 1))) for n in (9, 18))
        assert few.keys() <= many.keys()
        assert all(many[name] == sample for name, sample in few.items())
        assert len({sample.chunks[-1] for sample in many.values()}) == len(many), "each has noise of its own"

    def test_are_spread_over_a_source(self) -> None:
        numbers = [int(sample.id[2:]) for sample, _ in chain(*fixed_episodes([task(Numbered("a", 1000))], 100, 1))]
        assert numbers == sorted(numbers)
        assert 400 < np.mean(numbers) < 600


class Listed:
    """A source of given questions."""

    name = "listed"

    def __init__(self, questions: Sequence[str]) -> None:
        self.questions = list(questions)

    def __len__(self) -> int:
        return len(self.questions)

    def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
        return Sample(f"line {number}", self.questions[number], ("chunk",), (0,))


def cut(lines: Sequence[tuple[str, str]], share: float = 0.1) -> np.ndarray:
    """Cut pairs of a question and the document that it is about."""
    hashes = [[zlib.crc32(name.encode()) * 2654435761 for name in names] for names in zip(*lines, strict=True)]
    return held_out(*np.array(hashes, np.uint64), share)


def sides(lines: Sequence[Any], chosen: np.ndarray) -> tuple[set[Any], set[Any]]:
    kept, out = ({line for line, is_out in zip(lines, chosen, strict=True) if is_out == side} for side in (0, 1))
    return kept, out


class TestHeldOut:
    LINES = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("stuvwxyz")), min_size=1, max_size=40)

    @given(LINES, st.randoms(), st.floats(0, 1))
    @settings(max_examples=100, deadline=None)
    def test_no_question_is_on_both_sides_wherever_it_stands(
        self, lines: list[tuple[str, str]], random: Any, share: float
    ) -> None:
        chosen = cut(lines, share)
        assert (chosen.shape, chosen.dtype) == ((len(lines),), np.bool_)
        kept, out = sides([question for question, _ in lines], chosen)
        assert not kept & out or len(kept | out) == 1
        shuffled = random.sample(lines, len(lines))
        assert sides(shuffled, cut(shuffled, share)) == sides(lines, chosen)

    @given(LINES, st.floats(0, 1))
    @settings(max_examples=100, deadline=None)
    def test_no_document_is_on_both_sides_if_there_are_documents_that_share_no_question(
        self, lines: list[tuple[str, str]], share: float
    ) -> None:
        lines = [*lines, ("another", "one")]
        kept, out = sides([document for _, document in lines], cut(lines, share))
        assert not kept & out

    def test_questions_about_one_document_are_cut_by_their_text(self) -> None:
        chosen = cut([(f"question {i // 2}?", "the only one") for i in range(200)])
        assert chosen.sum() == 20
        assert (chosen[::2] == chosen[1::2]).all()

    def test_documents_that_are_all_asked_the_same_are_cut_by_themselves(self) -> None:
        chosen = cut([("Who pays?", f"contract {i // 2}") for i in range(200)])
        assert chosen.sum() == 20
        assert (chosen[::2] == chosen[1::2]).all()

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
    def test_share(self, share: float) -> None:
        assert cut([(f"question {i}?", f"document {i}") for i in range(3000)], share).sum() == 3000 * share
        few = cut([(f"question {i}?", f"document {i % 5}") for i in range(100)], share)
        assert few.sum() == {0.0: 0, 0.1: 20, 0.5: 60, 1.0: 100}[share], "whole documents"

    def test_a_document_of_most_questions_is_trained_on(self) -> None:
        lines = [(f"question {i}?", "long" if i < 60 else f"short {i}") for i in range(100)]
        chosen = cut(lines)
        assert not chosen[:60].any()
        assert chosen.sum() == 10

    def test_nothing_is_left_for_a_single_question(self) -> None:
        assert not cut([("question?", "document")]).any()

    def test_a_larger_share_only_adds(self) -> None:
        lines = [(f"question {i}?", f"document {i}") for i in range(300)]
        assert (cut(lines, 0.1) <= cut(lines, 0.3)).all()


def test_fixed_questions_leave_out_what_the_reward_cannot_judge() -> None:
    class HalfAnnotated(Listed):
        def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
            return Sample(f"line {number}", self.questions[number], ("a", "b"), (0,) if number % 2 else None)

    task = Task(HalfAnnotated(["Who?", "What?", "Where?", "When?"]), np.arange(4), step_limit=2)
    judged = fixed_episodes([task], 2, 0, SupportingFactsReward())
    assert sorted(sample.id for sample, _ in chain(*judged)) == ["line 1", "line 3"]
    assert len(fixed_episodes([task], 4, 0)[0]) == 4
