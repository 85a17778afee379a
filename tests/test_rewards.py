"""Rewards: the paper's for supporting facts, and those that need no annotated evidence."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from pydantic import Field

from qrag_retriever.errors import RewardError
from qrag_retriever.training.data import Sample
from qrag_retriever.training.environment import RetrievalEnv
from qrag_retriever.training.rewards import (
    AnswerContainedReward,
    Feedback,
    LLMAnswerReward,
    Outcome,
    SupportingFactsReward,
    false_positive_rate,
)
from qrag_retriever.training.rewards.answer_text import answer_score, contains, exact_match, f1, normalise

CASES = json.loads((Path(__file__).parent / "golden" / "feedback.json").read_text())["cases"]
TOLERANCE = 1e-5

CHUNKS = (
    "Mary took the football.",
    "Rain fell on the old village.",
    "Mary went to the kitchen.",
    "An annual fair was held in Ann Arbor.",
    "The cook left the kitchen.",
)


def sample(**fields: Any) -> Sample:
    values = {"id": "s1", "question": "Where is the football?", "chunks": CHUNKS, "supporting": (0, 2)}
    return Sample(**{**values, "answers": (("kitchen", "cookhouse"),), **fields})


def episode(reward: Any, picks: list[int], of: Sample | None = None) -> list[Feedback]:
    """Judge a whole episode, pick by pick; the last pick is the last of the episode."""
    of = of or sample()
    return [
        reward.judge([Outcome(of, tuple(picks[:count]), last=count == len(picks))])[0]
        for count in range(1, len(picks) + 1)
    ]


class TestSupportingFactsOfThePaper:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['name']}-{case['picks']}-{case['settings']}")
    def test_rewards(self, case: dict) -> None:
        settings = dict(case["settings"])
        terminate = not settings.pop("never_terminate", False)
        reward = SupportingFactsReward(**{"penalize_extra_steps": False, **settings, "terminate": terminate})
        of = sample(chunks=tuple("abcdefghijkl"), supporting=tuple(case["sf_idx"]))
        feedback = episode(reward, case["picks"], of)
        ours = [given.reward for given in feedback]
        if case["sf_idx"]:
            assert ours == pytest.approx(case["rewards"], abs=TOLERANCE)
            assert [given.ends for given in feedback] == case["terminated"]
        else:
            # Theirs finds the facts complete, and pays for it, after any first pick; then the first pick of a question
            # that has no evidence is worth more than stopping. Ours pays a pick that completes something.
            assert case["rewards"][0] >= 0.5
            assert ours == [0.0] * len(ours)
            assert all(given.settled for given in feedback)


class TestSupportingFacts:
    def test_settled_from_completion_on(self) -> None:
        feedback = episode(SupportingFactsReward(), [2, 1, 0, 3])
        assert [given.settled for given in feedback] == [False, False, True, True]
        assert [given.ends for given in feedback] == [False] * 4
        assert [given.reward for given in feedback] == pytest.approx([0, 0, 0.5 + 0.5 * 2 / 3, 0])

    def test_environments_are_judged_apart(self) -> None:
        outcomes = [Outcome(sample(), (0, 2), False), Outcome(sample(supporting=(4,)), (0, 2), False)]
        assert [given.reward for given in SupportingFactsReward().judge(outcomes)] == [1.0, 0.0]

    def test_the_most_is_what_the_best_episode_earns(self) -> None:
        for reward in (SupportingFactsReward(), SupportingFactsReward(2.0, 0.1, penalize_extra_steps=False)):
            assert reward.most(sample()) == pytest.approx(sum(given.reward for given in episode(reward, [2, 0])))
            assert reward.most(sample(supporting=())) == 0.0

    def test_without_annotation(self) -> None:
        unknown = sample(supporting=None)
        assert SupportingFactsReward().unusable(unknown) == "its supporting chunks are not annotated"
        assert SupportingFactsReward().unusable(sample()) is None
        with pytest.raises(ValueError, match="supporting chunks of sample 's1' are not annotated"):
            episode(SupportingFactsReward(), [0], unknown)

    def test_bad_settings(self) -> None:
        for settings in ({"completion_reward": -1.0}, {"per_fact_reward": float("nan")}):
            with pytest.raises(ValueError, match=r"_reward must be a finite number of at least 0"):
                SupportingFactsReward(**settings)


REWARDS = [
    SupportingFactsReward(),
    SupportingFactsReward(penalize_extra_steps=False),
    SupportingFactsReward(2.0, 0.1),
    SupportingFactsReward(0.0, 0.5, terminate=True),
]


def best_returns(reward: SupportingFactsReward, of: Sample, step_limit: int, gamma: float) -> Callable:
    """Search all episodes: the return of the best one from a state on, and with a given next pick."""
    env = RetrievalEnv(step_limit)

    @cache
    def best(picked: frozenset[int]) -> float:
        available = set(range(len(of.chunks))) - picked
        return max((value(picked, chunk_id) for chunk_id in available), default=0.0) if not over(picked) else 0.0

    @cache
    def value(picked: frozenset[int], chunk_id: int) -> float:
        env.reset(of)
        for earlier in picked:
            env.step(earlier)
        feedback = reward.judge([env.step(chunk_id)])[0]
        return feedback.reward + (0.0 if feedback.ends else gamma * best(picked | {chunk_id}))

    def over(picked: frozenset[int]) -> bool:
        return len(picked) == min(step_limit, len(of.chunks))

    return value


@pytest.mark.parametrize("reward", REWARDS, ids=repr)
@pytest.mark.parametrize("facts", [(), (1,), (0, 2), (0, 1, 4)], ids=str)
@pytest.mark.parametrize("step_limit", [1, 2, 4])
def test_the_closed_form_is_what_the_best_of_all_episodes_earns(
    reward: SupportingFactsReward, facts: tuple[int, ...], step_limit: int
) -> None:
    of, gamma = sample(supporting=facts), 0.9
    value = best_returns(reward, of, step_limit, gamma)
    reached, seen = {frozenset[int]()}, 0
    while reached:
        following = set()
        for picked in reached:
            if len(picked) == step_limit:
                continue
            num_missing = len(set(facts) - picked)
            for chunk_id in set(range(len(CHUNKS))) - picked:
                seen += 1
                if chunk_id in facts:
                    ours = reward.optimal_return(len(facts), len(picked), num_missing, step_limit, gamma)
                else:
                    ours = gamma * reward.optimal_return(len(facts), len(picked) + 1, num_missing, step_limit, gamma)
                if not (num_missing == 0 and reward.terminate):  # such states are never reached
                    assert ours == pytest.approx(value(picked, chunk_id)), (picked, chunk_id)
                following.add(picked | {chunk_id})
        reached = following
    assert seen >= 5


@pytest.mark.parametrize(
    ("num_facts", "num_picked", "num_missing"), [(1, 0, 1), (2, 0, 2), (2, 3, 1), (4, 2, 3), (3, 5, 0)]
)
def test_the_closed_form_is_that_of_the_design(num_facts: int, num_picked: int, num_missing: int) -> None:
    reward, step_limit, gamma = SupportingFactsReward(), 6, 0.99
    f, p, m = num_facts, num_picked, num_missing
    right = gamma ** (m - 1) * (0.5 + 0.5 * f / (p + m)) if m and p + m <= step_limit else 0.0
    wrong = gamma**m * (0.5 + 0.5 * f / (p + 1 + m)) if m and p + 1 + m <= step_limit else 0.0
    assert reward.optimal_return(f, p, m, step_limit, gamma) == pytest.approx(right)
    assert gamma * reward.optimal_return(f, p + 1, m, step_limit, gamma) == pytest.approx(wrong)


@pytest.mark.parametrize("counts", [(2, 0, 3), (2, 0, -1), (3, 1, 1), (2, -1, 2)], ids=str)
def test_the_closed_form_of_an_impossible_state(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"no state has|expected 0 <= "):
        SupportingFactsReward().optimal_return(*counts, 4, 0.9)
    with pytest.raises(ValueError, match="gamma must be from 0 to 1"):
        SupportingFactsReward().optimal_return(1, 0, 1, 4, 1.1)


class TestContains:
    @pytest.mark.parametrize(
        ("text", "alias"),
        [
            ("An annual fair in Ann Arbor", "ann"),
            ("Ann's house", "Ann"),
            ("the  Ann\nArbor fair", "ANN ARBOR"),
            ("He was born in 1914, they say", "1914"),
            ("1914\u20131918", "1914-1918"),
            ("It cost $5.", "5"),
            ("O\u2019Brien came", "O'Brien"),
            ("the e\ufb03cient o\ufb03ce", "office"),
            ("Rene\u0301 came", "Ren\u00e9"),
            ("STRASSE", "straße"),
            ("written in C++ then", "C++"),
            ("\u79c1\u306f\u6771\u4eac\u306b\u3044\u307e\u3059", "\u6771\u4eac"),
            ("Wash\u00adington", "washington"),
        ],
    )
    def test_is_contained(self, text: str, alias: str) -> None:
        assert contains(normalise(text), normalise(alias))

    @pytest.mark.parametrize(
        ("text", "alias"),
        [
            ("an annual fair", "Ann"),
            ("Joann came", "Ann"),
            ("the r\u00e9sum\u00e9", "resume"),
            ("about 5.5 or 1,500 or 15", "5"),
            ("$1,500", "1"),
            ("It was who knows", "The Who"),
            ("anything", ""),
            ("anything", " \u00ad "),
        ],
    )
    def test_is_not_contained(self, text: str, alias: str) -> None:
        assert not contains(normalise(text), normalise(alias))

    @given(st.text(max_size=12), st.text(max_size=5), st.text(max_size=5))
    def test_normalising_twice_changes_nothing_and_blanks_set_words_apart(
        self, alias: str, left: str, right: str
    ) -> None:
        assert normalise(normalise(alias)) == normalise(alias)
        if normalise(alias):
            assert contains(normalise(f"{left} | {alias} | {right}"), normalise(alias))


class TestAnswerContained:
    def test_pays_once_at_the_first_pick_that_holds_the_answer(self) -> None:
        feedback = episode(AnswerContainedReward(), [0, 4, 2, 3])
        assert [given.reward for given in feedback] == [0, 1, 0, 0]
        assert [given.settled for given in feedback] == [False, True, True, True]
        assert not any(given.ends for given in feedback)

    def test_every_answer_is_needed_by_one_of_its_aliases(self) -> None:
        of = sample(answers=(("kitchen",), ("village", "hamlet")))
        assert [given.reward for given in episode(AnswerContainedReward(), [2, 4, 1], of)] == [0, 0, 1]

    def test_settings(self) -> None:
        reward = AnswerContainedReward(2.0, penalize_extra_steps=True, terminate=True)
        feedback = episode(reward, [0, 1, 2])
        assert feedback[-1] == Feedback(2.0 * (0.5 + 0.5 / 3), ends=True, settled=True)
        assert not feedback[0].ends
        assert reward.most(sample()) == 2.0
        with pytest.raises(ValueError, match="reward must be a finite number"):
            AnswerContainedReward(-1.0)

    @pytest.mark.parametrize(
        ("answers", "reason"),
        [
            (None, "its answers are not known"),
            ((), "its answers are not known"),
            ((("Yes",),), "its answer ['Yes'] is not something that is written in a text"),
            ((("kitchen",), ("no",)), "its answer ['no'] is not something"),
            ((("noanswer",),), "its answer ['noanswer'] is not something"),
            (((),), "its answer [] is not something"),
            ((("kitchen",), ("garden", "park")), "no chunk contains its answer ['garden', 'park']"),
        ],
    )
    def test_unusable(self, answers: Any, reason: str) -> None:
        assert AnswerContainedReward().unusable(sample(answers=answers)).startswith(reason)

    def test_a_verdict_beside_another_alias_is_not_looked_for(self) -> None:
        of = sample(chunks=("There is no rain.", "Oslo is in Norway."), answers=(("Norway", "NO"),))
        assert AnswerContainedReward().unusable(of) is None
        assert [given.reward for given in episode(AnswerContainedReward(), [0, 1], of)] == [0, 1]

    def test_answers_that_are_not_known(self) -> None:
        with pytest.raises(ValueError, match="answers of sample 's1' are not known"):
            episode(AnswerContainedReward(), [0], sample(answers=None))


def test_false_positive_rate() -> None:
    fooled = sample(id="by one chunk")  # chunk 4 has the kitchen too
    by_two = sample(id="by two", chunks=("x y", "x", "y"), supporting=(0,), answers=(("x",), ("y",)))
    honest = sample(id="honest", chunks=("x y", "x", "z"), supporting=(0,), answers=(("x",), ("y",)))
    left_out = [sample(supporting=None), sample(supporting=()), sample(answers=None), sample(answers=(("yes",),))]
    found = false_positive_rate([fooled, by_two, honest, *left_out])
    assert (found.num_questions, found.num_fooled, found.num_skipped) == (3, 2, 4)
    assert found.rate == pytest.approx(2 / 3)
    # Chunks with all answers: two kitchens, and the first of each of the others.
    assert (found.num_chunks, found.num_chunks_not_supporting) == (4, 1)
    assert found.chunk_rate == 0.25
    assert false_positive_rate([]).rate == false_positive_rate([]).chunk_rate == 0.0


class TestAnswerScore:
    def test_exact_match_is_squad_s(self) -> None:
        assert exact_match("The Eiffel Tower.", "eiffel tower") == 1.0
        assert exact_match("Eiffel", "Eiffel Tower") == 0.0
        assert exact_match("\u201cA Tale\u201d", "tale") == 1.0
        assert exact_match("", "The") == 0.0, "silence is no answer, even where the articles are taken away"
        assert exact_match("A", "the") == 0.0

    def test_f1_is_squad_s(self) -> None:
        assert f1("the big tower", "Eiffel Tower") == pytest.approx(0.5)
        assert f1("tower tower", "tower") == pytest.approx(2 / 3)
        assert f1("nothing", "tower") == f1("", "tower") == f1("", "") == 0.0

    def test_the_best_alias_counts(self) -> None:
        assert answer_score("NYC", [["New York City", "NYC"]], exact_match) == 1.0
        assert answer_score("York", [["Paris", "New York"]], f1) == pytest.approx(2 / 3)

    def test_one_answer_is_not_taken_apart(self) -> None:
        assert answer_score("Paris, Texas", [["Paris, Texas"]], exact_match) == 1.0
        assert answer_score("Paris, Rome", [["Paris"]], exact_match) == 0.0

    @pytest.mark.parametrize(
        ("answer", "score"),
        [
            ("7; 9", 1.0),
            ("9, 7", 1.0),
            ("9 and 7", 1.0),
            ("7\n9\n", 1.0),
            ("7", 0.5),
            ("7; 8; 9; 10", 0.5),
            ("8; 10", 0.0),
            ("", 0.0),
        ],
    )
    def test_several_answers(self, answer: str, score: float) -> None:
        assert answer_score(answer, [["7", "seven"], ["9"]], exact_match) == score


def chat(*responses: str) -> FakeListChatModel:
    return FakeListChatModel(responses=list(responses))


class ScriptedChat(BaseChatModel):
    """A LangChain chat model that answers by a function of the prompt, and keeps the prompts."""

    script: Callable[[str], Any]
    prompts: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.prompts.append(messages[-1].content)
        content = self.script(messages[-1].content)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=content))])


class ScriptedLLM(CustomLLM):
    """A LlamaIndex LLM that answers by a function of the prompt, and keeps the prompts."""

    script: Callable[[str], Any]
    prompts: list[str] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.prompts.append(prompt)
        return CompletionResponse(text=self.script(prompt))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


SCRIPTED = pytest.mark.parametrize("scripted", [ScriptedChat, ScriptedLLM], ids=["langchain", "llama_index"])


def kitchen_if_seen(prompt: str) -> str:
    return "The kitchen." if "Mary went to the kitchen" in prompt else "unknown"


class TestLLMAnswer:
    @SCRIPTED
    def test_is_asked_at_the_end_and_sees_the_picked_chunks(self, scripted: type) -> None:
        llm = scripted(script=kitchen_if_seen)
        reward = LLMAnswerReward(llm)
        feedback = episode(reward, [2, 1, 0])
        assert feedback == [Feedback(0.0), Feedback(0.0), Feedback(1.0, settled=True)]
        assert len(llm.prompts) == reward.num_calls == 1
        prompt = llm.prompts[0]
        places = [prompt.index(CHUNKS[chunk_id]) for chunk_id in (0, 1, 2)]
        assert places == sorted(places), "document order in document mode"
        assert "Question: Where is the football?" in prompt
        assert CHUNKS[3] not in prompt
        assert episode(reward, [1, 0])[-1] == Feedback(0.0, settled=True)

    def test_pick_order_in_corpus_mode(self) -> None:
        llm = ScriptedLLM(script=kitchen_if_seen)
        episode(LLMAnswerReward(llm), [2, 0], sample(mode="corpus"))
        assert llm.prompts[0].index(CHUNKS[2]) < llm.prompts[0].index(CHUNKS[0])

    def test_f1_pays_from_a_threshold_or_in_proportion(self) -> None:
        for threshold, paid in ((0.5, 2.0), (0.7, 0.0), (None, 2.0 * 2 / 3)):
            reward = LLMAnswerReward(chat("old kitchen"), "f1", threshold=threshold, reward=2.0)
            assert episode(reward, [2])[0].reward == pytest.approx(paid)
        assert episode(LLMAnswerReward(chat("old kitchen")), [2])[0].reward == 0.0
        assert LLMAnswerReward(chat("x"), reward=2.0).most(sample()) == 2.0

    @SCRIPTED
    def test_identical_prompts_are_asked_once(self, scripted: type) -> None:
        llm = scripted(script=kitchen_if_seen)
        reward = LLMAnswerReward(llm)
        same = [Outcome(sample(), picked, True) for picked in ((0, 2), (2, 0), (1, 0), (2, 0))]
        assert [given.reward for given in reward.judge(same)] == [1, 1, 0, 1]
        assert (len(llm.prompts), reward.num_calls, reward.num_cache_hits) == (2, 2, 2)
        reward.judge(same)
        assert (len(llm.prompts), reward.num_calls, reward.num_cache_hits) == (2, 2, 6)

    def test_the_cache_forgets_what_was_used_longest_ago(self) -> None:
        llm = ScriptedLLM(script=kitchen_if_seen)
        reward = LLMAnswerReward(llm, cache_size=2)
        for picked in ((0,), (1,), (0,), (2,), (0,)):
            reward.judge([Outcome(sample(), picked, True)])
        assert (reward.num_calls, reward.num_cache_hits) == (3, 2)
        reward.judge([Outcome(sample(), (1,), True)])
        assert reward.num_calls == 4
        without = LLMAnswerReward(llm, cache_size=0)
        for _ in range(2):
            without.judge([Outcome(sample(), (0,), True)] * 2)
        assert without.num_calls == 2, "within one step, equal prompts are asked once all the same"

    @SCRIPTED
    def test_every_step_pays_the_first_right_answer_once(self, scripted: type) -> None:
        # Right after chunk 2, wrong again when chunk 4 confuses it.
        def script(prompt: str) -> str:
            return "unknown" if CHUNKS[4] in prompt else kitchen_if_seen(prompt)

        llm = scripted(script=script)
        reward = LLMAnswerReward(llm, every_step=True)
        feedback = episode(reward, [0, 2, 4, 1])
        assert [given.reward for given in feedback] == [0, 1, 0, 0]
        assert [given.settled for given in feedback] == [False, True, True, True]
        assert not any(given.ends for given in feedback)
        assert reward.num_calls == 2, "nothing is asked after the right answer"

    def test_every_step_keeps_no_state(self) -> None:
        """A resumed run, whose cache is empty, judges the same."""
        outcomes = [Outcome(sample(), picked, False) for picked in ((0, 2), (0, 2, 4), (0, 1), (2,))]
        with_cache = LLMAnswerReward(ScriptedLLM(script=kitchen_if_seen), every_step=True, terminate=True)
        first = with_cache.judge(outcomes)
        fresh = [
            LLMAnswerReward(ScriptedLLM(script=kitchen_if_seen), every_step=True, terminate=True).judge([outcome])[0]
            for outcome in outcomes
        ]
        assert first == with_cache.judge(outcomes) == fresh
        assert [given.reward for given in first] == [1, 0, 0, 1]
        assert [given.ends for given in first] == [True, True, False, True]

    def test_no_more_than_a_batch_at_a_time(self) -> None:
        lock, running, most = threading.Lock(), [0], [0]
        gate = threading.Barrier(3, timeout=20)

        def script(prompt: str) -> str:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            gate.wait()  # passes only if three are asked at the same time
            with lock:
                running[0] -= 1
            gate.wait()
            return "kitchen"

        reward = LLMAnswerReward(ScriptedLLM(script=script), batch_size=3)
        of = sample(chunks=tuple("abcdef"))
        feedback = reward.judge([Outcome(of, (i,), True) for i in range(6)])
        assert [given.reward for given in feedback] == [1.0] * 6
        assert most == [3]

    def test_the_prompt_is_the_user_s_and_texts_stay_literal(self) -> None:
        llm = ScriptedLLM(script=kitchen_if_seen)
        reward = LLMAnswerReward(llm, prompt="{question} {json} <{passages}>")
        of = sample(chunks=("see {question} and {passages} \\1",), question="why {passages}?")
        episode(reward, [0], of)
        assert llm.prompts == ["why {passages}? {json} <see {question} and {passages} \\1>"]

    def test_unusable(self) -> None:
        reward = LLMAnswerReward(chat("x"))
        assert reward.unusable(sample()) is None
        assert reward.unusable(sample(answers=(("yes",),))) is None, "a verdict can be judged"
        for answers in (None, (), ((),)):
            assert reward.unusable(sample(answers=answers)) == "its answers are not known"
        assert reward.unusable(sample(answers=(("noanswer",),))) == "it has no answer"
        with pytest.raises(ValueError, match="sample 's1' cannot be judged: its answers are not known"):
            episode(reward, [0], sample(answers=None))

    def test_llama_index_s_mock_and_langchain_s_list(self) -> None:
        # The mock repeats its prompt, in which the answer is not alone.
        assert episode(LLMAnswerReward(MockLLM()), [2])[0].reward == 0.0
        assert episode(LLMAnswerReward(chat("kitchen")), [2])[0].reward == 1.0

    def test_blocks_of_text(self) -> None:
        blocks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "the "}, "kitchen"]
        assert episode(LLMAnswerReward(ScriptedChat(script=lambda _: blocks)), [2])[0].reward == 1.0


class TestLLMFailures:
    @SCRIPTED
    def test_a_failure_is_tried_again(self, scripted: type) -> None:
        failures = iter([TimeoutError("slow"), TimeoutError("slow")])

        def script(prompt: str) -> str:
            for failure in failures:
                raise failure
            return kitchen_if_seen(prompt)

        reward = LLMAnswerReward(scripted(script=script), retry_wait_seconds=0)
        assert episode(reward, [2])[0].reward == 1.0
        assert reward.num_calls == 3

    @SCRIPTED
    def test_after_the_retries_the_error_names_model_question_and_cause(self, scripted: type) -> None:
        def script(prompt: str) -> str:
            if "old village" in prompt:
                raise TimeoutError("no route to host")
            return kitchen_if_seen(prompt)

        llm = scripted(script=script)
        reward = LLMAnswerReward(llm, max_retries=3, retry_wait_seconds=0)
        outcomes = [Outcome(sample(question=f"question {i}"), (i,), True) for i in (0, 1, 2)]
        with pytest.raises(
            RewardError,
            match=f"{scripted.__name__} failed 4 times on the question 'question 1': TimeoutError: no route to host",
        ) as caught:
            reward.judge(outcomes)
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert len(llm.prompts) == reward.num_calls == 6
        assert [given.reward for given in reward.judge([outcomes[0], outcomes[2]])] == [0.0, 1.0]
        assert len(llm.prompts) == 6, "the answers that came are kept"

    def test_waits_double(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[float] = []
        monkeypatch.setattr("qrag_retriever.training.rewards.llm.time.sleep", waits.append)

        def script(prompt: str) -> str:
            raise TimeoutError

        with pytest.raises(RewardError, match="failed 4 times"):
            episode(LLMAnswerReward(ScriptedLLM(script=script), max_retries=3, retry_wait_seconds=0.5), [0])
        assert waits == [0.5, 1.0, 2.0]

    def test_a_chat_model_whose_batch_raises_although_it_is_told_to_return_exceptions(self) -> None:
        class Raising(FakeListChatModel):
            def batch(self, *args: Any, **kwargs: Any) -> Any:
                raise ConnectionError("batch endpoint is down")

        llm = Raising(responses=["kitchen"])
        reward = LLMAnswerReward(llm, retry_wait_seconds=0)
        assert episode(reward, [2])[0].reward == 1.0, "the retries go one at a time"
        with pytest.raises(RewardError, match=r"Raising failed 1 times .* batch endpoint is down"):
            episode(LLMAnswerReward(llm, max_retries=0), [2])

    @pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": "data:"}], []], ids=["image", "nothing"])
    def test_an_answer_that_is_not_text(self, content: list) -> None:
        llm = ScriptedChat(script=lambda _: content)
        with pytest.raises(
            RewardError, match="ScriptedChat gave no text to the question 'Where is the football\\?': AIMessage"
        ):
            episode(LLMAnswerReward(llm), [0])
        assert len(llm.prompts) == 1, "trying again would not help"

    @pytest.mark.parametrize("llm", ["gpt", None, object(), FakeListChatModel], ids=["str", "None", "object", "class"])
    def test_not_a_language_model(self, llm: Any) -> None:
        with pytest.raises(TypeError, match=r"llm must be a LangChain chat model .* or a LlamaIndex LLM .* got "):
            LLMAnswerReward(llm)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"judge": "bleu"}, "judge must be one of"),
            ({"threshold": 0}, "threshold must be above 0"),
            ({"threshold": None, "every_step": True}, "every_step needs a threshold"),
            ({"prompt": "{passages}"}, r"the prompt lacks \{question\}"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"cache_size": -1}, "cache_size must be"),
            ({"max_retries": -1}, "max_retries must be"),
            ({"reward": -1.0}, "reward must be"),
        ],
    )
    def test_bad_settings(self, settings: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LLMAnswerReward(chat("x"), **settings)
