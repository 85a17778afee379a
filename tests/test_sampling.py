"""Drawing from several sources, the fixed questions of a validation, and the cut between training and validation."""

from __future__ import annotations

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
from qrag_retriever.training.sampling import Mixture, Task, fixed_episodes, split_by_id


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
        message = "the reward can judge none of 50 samples drawn; the last one because its supporting chunks are not"
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


class TestSplit:
    @given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40), st.randoms(), st.floats(0, 1))
    @settings(max_examples=60, deadline=None)
    def test_a_question_is_on_one_side_wherever_it_stands(
        self, questions: list[str], random: Any, share: float
    ) -> None:
        training, held_out = split_by_id(Listed(questions), share)
        assert sorted([*training, *held_out]) == list(range(len(questions)))
        sides = [{questions[i] for i in numbers} for numbers in (training, held_out)]
        assert not sides[0] & sides[1], "also where it occurs twice"
        shuffled = [*random.sample(questions, len(questions)), "one more"]
        again = split_by_id(Listed(shuffled), share)
        assert [{shuffled[i] for i in numbers} - {"one more"} for numbers in again] == [
            side - {"one more"} for side in sides
        ]

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
    def test_share(self, share: float) -> None:
        training, held_out = split_by_id(Listed([f"question {i}?" for i in range(3000)]), share)
        assert len(held_out) / 3000 == pytest.approx(share, abs=0.025)
        assert len(training) + len(held_out) == 3000
        assert share not in (0.0, 1.0) or len(held_out) == 3000 * share

    def test_a_larger_share_only_adds(self) -> None:
        source = Listed([f"question {i}?" for i in range(300)])
        assert set(split_by_id(source, 0.1)[1]) < set(split_by_id(source, 0.3)[1])


def test_fixed_questions_leave_out_what_the_reward_cannot_judge() -> None:
    class HalfAnnotated(Listed):
        def sample(self, number: int, random: np.random.Generator, era: int = 0) -> Sample:
            return Sample(f"line {number}", self.questions[number], ("a", "b"), (0,) if number % 2 else None)

    task = Task(HalfAnnotated(["Who?", "What?", "Where?", "When?"]), np.arange(4), step_limit=2)
    judged = fixed_episodes([task], 2, 0, SupportingFactsReward())
    assert sorted(sample.id for sample, _ in chain(*judged)) == ["line 1", "line 3"]
    assert len(fixed_episodes([task], 4, 0)[0]) == 4


class TestHardest:
    def test_a_draw_takes_the_hardest_of_those_it_looks_at(self) -> None:
        mixture, random = Mixture([task(Numbered("a", 10))], REWARD, hardest_of=3), np.random.default_rng(0)
        ids = [mixture.draw(random)[0].id for _ in range(300)]
        assert len(set(ids)) == 10
        mixture.note(mixture.places_of([(sample_id, float(sample_id[-1])) for sample_id in sorted(set(ids))]))
        drawn = [int(mixture.draw(random)[0].id[-1]) for _ in range(4000)]
        # The highest of three places, each of them any of ten.
        expected = [((i + 1) ** 3 - i**3) / 1000 for i in range(10)]
        np.testing.assert_allclose(np.bincount(drawn, minlength=10) / 4000, expected, atol=0.03)

    def test_what_has_not_been_trained_on_comes_first(self) -> None:
        mixture, random = Mixture([task(Numbered("a", 4))], REWARD, hardest_of=50), np.random.default_rng(0)
        seen = []
        for _ in range(4):
            sample_id = mixture.draw(random)[0].id
            seen.append(sample_id)
            mixture.note(mixture.places_of([(sample_id, 100.0)]))
        assert len(set(seen)) == 4

    def test_half_of_what_was_noted_before_stays(self) -> None:
        mixture = Mixture([task(Numbered("a", 3)), task(Numbered("b", 3))], REWARD)
        for loss in (4.0, 2.0, 0.0):
            mixture.note([(1, 2, loss)])
        (first, second), _ = mixture.state()
        assert np.isinf(first).all()
        assert second.tolist() == [np.inf, np.inf, 1.5]

    def test_it_goes_on_from_its_state(self) -> None:
        one, other = (Mixture([task(Numbered("a", 9))], REWARD, hardest_of=4) for _ in range(2))
        random = np.random.default_rng(0)
        sample_ids = [one.draw(random)[0].id for _ in range(20)]
        one.note(one.places_of([(sample_id, float(i)) for i, sample_id in enumerate(sample_ids)]))
        other.restore(*one.state())
        assert other.places_of([(sample_ids[0], 1.0)]) == one.places_of([(sample_ids[0], 1.0)])
        streams = np.random.default_rng(5), np.random.default_rng(5)
        assert [one.draw(streams[0])[0].id for _ in range(30)] == [other.draw(streams[1])[0].id for _ in range(30)]
        with pytest.raises(ValueError, match="9 questions have become 8"):
            Mixture([task(Numbered("a", 8))], REWARD).restore(*one.state())


class TestEraQuestions:
    def drawn(self, mixture: Mixture, era: int, count: int = 200) -> set[str]:
        mixture.era = era
        return {mixture.draw(np.random.default_rng(i))[0].id for i in range(count)}

    def test_an_era_keeps_to_some_questions(self) -> None:
        mixture = Mixture([task(Numbered("a", 500), era_questions=7)], REWARD, seed=3)
        first = self.drawn(mixture, 0)
        assert len(first) == 7
        assert len(self.drawn(mixture, 1)) == 7
        assert self.drawn(mixture, 1) != first
        assert self.drawn(mixture, 0) == first
        again = Mixture([task(Numbered("a", 500), era_questions=7)], REWARD, seed=3)
        assert self.drawn(again, 0) == first
        other = Mixture([task(Numbered("a", 500), era_questions=7)], REWARD, seed=4)
        assert self.drawn(other, 0) != first

    def test_more_than_there_are_is_all(self) -> None:
        mixture = Mixture([task(Numbered("a", 5), era_questions=9)], REWARD)
        assert len(self.drawn(mixture, 0)) == 5

    def test_every_task_has_its_own(self) -> None:
        tasks = [task(Numbered("a", 100), era_questions=3), task(Numbered("b", 100))]
        drawn = self.drawn(Mixture(tasks, REWARD), 0, 600)
        assert len({name for name in drawn if name.startswith("a")}) == 3
        assert len({name for name in drawn if name.startswith("b")}) > 50
