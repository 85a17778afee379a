"""What qrag-bench compares: multi-step search, its baselines, and the agent that asks a language model at every hop."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, default_model
from qrag_retriever import view as view_module
from qrag_retriever.benchmarks.suite import methods as methods_module
from qrag_retriever.benchmarks.suite.agent import PROMPT, LLMAgent, StandInLLM
from qrag_retriever.benchmarks.suite.embeddings import TextEmbeddings
from qrag_retriever.benchmarks.suite.methods import (
    BM25,
    Baselines,
    MultiStep,
    Random,
    SingleStepDense,
    model_label,
    names_of,
    top,
)
from qrag_retriever.errors import RewardError
from qrag_retriever.training.data import Sample
from tests.conftest import QUESTION, STORY
from tests.tiny_pair import story
from tests.toy_model import ToyModel, embedding_of

WORDS = ("red", "blue", "green", "apple", "sky", "tree")


def asked(question: str, *chunks: str, **fields: Any) -> Sample:
    return Sample(**{"id": "one", "question": question, "chunks": chunks, "supporting": (0,), **fields})


class BagOfWords:
    """An encoder whose embeddings count words; what it does not know is nothing."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def get_embedding_dimension(self) -> int:
        return len(WORDS)

    def encode_query(self, texts: list[str], **options: Any) -> np.ndarray:
        counts = np.array([[text.split().count(word) for word in WORDS] for text in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)

    def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
        self.encoded += texts
        return self.encode_query(texts)


class Scripted:
    """A chat model that gives prepared answers and keeps the prompts."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.prompts = list(answers), []

    def invoke(self, prompt: str) -> Any:
        self.prompts.append(prompt)
        return self.answers.pop(0)

    def batch(self, prompts: Sequence[str], **options: Any) -> list[Any]:
        return list(map(self.invoke, prompts))


# -- embeddings --------------------------------------------------------------------------------------------------------


def test_each_text_is_embedded_once_and_rows_come_in_the_order_asked() -> None:
    calls: list[list[str]] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        time.sleep(0.01)
        return np.array([embedding_of(text) for text in texts])

    table = TextEmbeddings(encode, 8)
    for texts in (["b", "a", "b"], ["a", "c", "b"], ["c", "a"], [f"{i}" for i in range(50)], ["49", "c", "0"]):
        np.testing.assert_array_equal(table.of(texts), [embedding_of(text) for text in texts])
    assert calls == [["b", "a"], ["c"], [f"{i}" for i in range(50)]]
    assert len(table) == 53
    assert table.seconds >= 0.03


def test_embeddings_that_were_returned_may_be_changed_without_harm() -> None:
    table = TextEmbeddings(lambda texts: np.array([embedding_of(text) for text in texts]), 8)
    table.of(["a", "b"])[:] = 99
    np.testing.assert_array_equal(table.of(["a", "b"]), [embedding_of("a"), embedding_of("b")])


# -- multi-step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_width", [1, 3])
def test_multi_step_picks_what_a_selector_over_the_same_chunks_picks(model: QRAGModel, beam_width: int) -> None:
    picks = {}
    for mode in ("document", "corpus"):
        index = ChunkIndex.from_texts(STORY, model=model, mode=mode)
        steps = MultiStepSelector(index, k=5, beam_width=beam_width).select(QUESTION).steps
        found = MultiStep("qrag", model, "tiny", beam_width).find(story(mode=mode), 5)
        picks[mode] = found.chunk_ids
        assert found.chunk_ids == tuple(step.chunk_id for step in steps)
        np.testing.assert_allclose(found.q_values or (), [step.q_value for step in steps], atol=1e-5)
        assert found.llm_calls == 0
    assert picks["document"] != picks["corpus"], "else the test could not tell the modes apart"
    always = MultiStep("baseline", model, "tiny", beam_width, corpus=True)
    assert always.find(story(mode="document"), 5).chunk_ids == picks["corpus"]
    assert len(always.find(story(), 50).chunk_ids) == len(STORY)


def test_questions_that_share_their_chunks_share_one_index(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[list[str]] = []
    build = ChunkIndex.from_embeddings

    def counted(embeddings: np.ndarray, texts: list[str], **options: Any) -> ChunkIndex:
        built.append(texts)
        return build(embeddings, texts, **options)

    monkeypatch.setattr(methods_module.ChunkIndex, "from_embeddings", counted)
    method = MultiStep("qrag", ToyModel(), "toy")
    first, other = story(0), Sample("x", "who?", tuple(reversed(STORY)), (1,))
    for sample in (first, story(1, chunks=first.chunks, question="Who?"), other, first):
        picks = MultiStepSelector(
            build(ToyModel().encode_chunks(sample.chunks), list(sample.chunks), model=ToyModel()), k=3
        )
        assert method.find(sample, 3).chunk_ids == tuple(step.chunk_id for step in picks.select(sample.question).steps)
    assert built == [STORY, STORY[::-1], STORY], "one for each change of the chunks"


def test_the_stop_value_is_that_of_the_mode_searched_in(tiny_encoder: Path) -> None:
    model = QRAGModel.from_encoder(tiny_encoder, min_q={"document": 0.25}, device="cpu")
    samples = story(mode="document"), story(mode="corpus")
    assert [MultiStep("qrag", model, "tiny").min_q(sample) for sample in samples] == [0.25, None]
    assert [MultiStep("qrag", model, "tiny", corpus=True).min_q(sample) for sample in samples] == [None, None]


def test_seconds_are_of_the_search_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    make, clock = view_module.make_scan, [0.0]

    def slow(*arguments: Any) -> Any:
        clock[0] += 5
        return make(*arguments)

    monkeypatch.setattr(view_module, "make_scan", slow)
    monkeypatch.setattr(methods_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert MultiStep("qrag", ToyModel(), "toy").find(story(), 2).seconds == 0
    assert clock == [5]


# -- baselines ---------------------------------------------------------------------------------------------------------


def test_dense_search_ranks_by_the_cosine_of_the_encoder(tiny_encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(tiny_encoder), device="cpu")
    prompts = {"query": "mary took ", "document": "the clock in "}
    encoder = SentenceTransformer(str(tiny_encoder), device="cpu", prompts=prompts)
    chunks = plain.encode([f"the clock in {text}" for text in STORY])
    query = plain.encode(f"mary took {QUESTION}")
    cosines = chunks @ query / np.linalg.norm(chunks, axis=1) / np.linalg.norm(query)
    method = SingleStepDense("dense", encoder, "tiny")
    assert method.find(story(), 12).chunk_ids == tuple(np.argsort(-cosines).tolist())
    assert method.find(story(), 3).chunk_ids == tuple(np.argsort(-cosines)[:3].tolist())
    assert method.embed_seconds > 0


def test_dense_search_embeds_each_chunk_once() -> None:
    encoder = BagOfWords()
    method = SingleStepDense("dense", encoder, "bag")
    assert method.find(asked("blue", "red apple", "blue sky", "red apple"), 2).chunk_ids == (1, 0)
    assert method.find(asked("tree", "green tree", "blue sky"), 5).chunk_ids == (0, 1)
    assert encoder.encoded == ["red apple", "blue sky", "green tree"]


def test_dense_search_takes_encoders_of_sentence_transformers_before_5_4() -> None:
    encoder = BagOfWords()
    old = SimpleNamespace(
        encode_query=encoder.encode_query, encode_document=encoder.encode_document,
        get_sentence_embedding_dimension=encoder.get_embedding_dimension,
    )  # fmt: skip
    assert SingleStepDense("dense", old, "bag").find(asked("sky", "red apple", "blue sky"), 1).chunk_ids == (1,)


HOPS = (
    "Rain fell on the village all day.",
    "The captain of the Albatross was Edward Stone.",
    "Nobody heard the door.",
    "Edward Stone retired to Lisbon.",
    "The clock struck nine.",
)


def test_keyword_search_prefers_chunks_with_the_words_of_the_query() -> None:
    assert BM25().find(asked("Where is the clock?", *HOPS), 1).chunk_ids == (4,)
    assert BM25().find(asked("Albatross or door", *HOPS), 5).chunk_ids[:2] in ((1, 2), (2, 1))
    assert BM25().find(asked("albatross", "door", "albatross"), 9).chunk_ids == (1, 0), "all, where there are fewer"


def test_iterative_keyword_search_finds_a_second_hop_that_a_single_step_cannot() -> None:
    sample = asked("Where is the captain of the Albatross?", *HOPS)
    assert BM25().find(sample, 2).chunk_ids == (1, 0), "nothing else has a word of the question"
    assert BM25(iterative=True).find(sample, 2).chunk_ids == (1, 3)
    assert sorted(BM25(iterative=True).find(sample, 9).chunk_ids) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("iterative", [False, True])
def test_keyword_search_without_a_known_word_gives_any_chunks(iterative: bool) -> None:
    method = BM25(iterative)
    assert len(method.find(asked("zebra", *HOPS), 1).chunk_ids) == 1
    assert len(method.find(asked("the of", *HOPS), 1).chunk_ids) == 1, "a query of stop words"
    assert sorted(method.find(asked("zebra", "the of and", "is it"), 9).chunk_ids) == [0, 1], "chunks of stop words"
    assert method.find(asked("zebra clock", "the", *HOPS), 1).chunk_ids == (5,), "and after them a usual text"


@pytest.mark.parametrize("iterative", [False, True])
def test_equal_statements_are_told_apart_by_chance_and_not_by_their_place(iterative: bool) -> None:
    chunks = ("It rained.", *(f"Mary went to the {place}." for place in ("garden", "office", "hall", "cellar")))
    method = BM25(iterative)
    samples = [Sample(f"question {number}", "Where is Mary?", chunks, (4,)) for number in range(400)]
    firsts = [method.find(sample, 1).chunk_ids[0] for sample in samples]
    assert firsts == [method.find(sample, 1).chunk_ids[0] for sample in samples], "the same at every run"
    shares = np.bincount(firsts, minlength=5) / len(firsts)
    assert shares[0] == 0
    assert shares[1:] == pytest.approx([0.25] * 4, abs=0.08)


def test_keyword_search_tells_how_to_install_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"pip install 'qrag-retriever\[bench\]'"):
        BM25()


def test_random_picks_are_the_same_for_the_same_sample_and_spread_over_all_chunks() -> None:
    picks = [Random().find(story(number), 3).chunk_ids for number in range(2_000)]
    assert picks == [Random().find(story(number), 3).chunk_ids for number in range(2_000)]
    assert all(len(set(own)) == 3 for own in picks)
    counts = Counter(i for own in picks for i in own)
    assert set(counts) == set(range(12))
    assert max(abs(count - 500) for count in counts.values()) < 120, "5 standard deviations"
    assert sorted(Random().find(story(), 50).chunk_ids) == list(range(12))


def test_top_is_a_stable_sort_with_ties_and_few_scores() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        scores = random.integers(0, 4, int(random.integers(1, 12))).astype(np.float32)
        scores[random.random(len(scores)) < 0.2] = -np.inf
        k = int(random.integers(1, 15))
        expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
        assert list(top(scores, k)) == expected


def test_names_of_baselines_are_resolved() -> None:
    assert names_of(["none"]) == []
    assert names_of(["bm25", "random", "bm25"]) == ["bm25", "random"]
    assert names_of(["llm-agent", "all"])[0] == "llm-agent"
    assert set(names_of(["all"])) == set(Baselines.NAMES) - {"llm-agent"}
    assert [model_label(name) for name in (None, "runs/mine/", Path("runs/mine"), "runs/mine/model")] == [
        "default", "mine", "mine", "mine/model",
    ]  # fmt: skip


def test_baselines_are_made_by_name(model: QRAGModel, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "minilm_folder", lambda: tiny_encoder)
    baselines = Baselines(model, "mine", Scripted("Where?"), "cpu")
    made = {name: baselines.make(name) for name in Baselines.NAMES}
    assert {name: method.name for name, method in made.items()} == {name: name for name in Baselines.NAMES}
    assert {name for name, method in made.items() if method.model == "mine"} == {"dense-action"}
    assert {name for name, method in made.items() if not method.model} == {"random", "bm25", "bm25-iterative"}
    corpus = ChunkIndex.from_texts(STORY, model=QRAGModel.from_encoder(tiny_encoder, device="cpu"), mode="corpus")
    steps = MultiStepSelector(corpus, k=4).select(QUESTION).steps
    assert made["multi-step-minilm"].find(story(), 4).chunk_ids == tuple(step.chunk_id for step in steps)
    assert made["dense-action"].find(story(), 4) != made["random"].find(story(), 4)
    with pytest.raises(ValueError, match=r"no baseline 'bm52'; there are random, bm25,"):
        baselines.make("bm52")
    with pytest.raises(ValueError, match="llm-agent needs a language model: --llm"):
        Baselines(model, "mine", None, "cpu").make("llm-agent")


# -- the agent ---------------------------------------------------------------------------------------------------------

COLOURS = ("red apple", "blue\n sky", "green tree", "red tree")


def agent(llm: Any) -> LLMAgent:
    return LLMAgent(SingleStepDense("llm-agent", BagOfWords(), "bag"), llm)


def test_the_agent_searches_with_what_the_model_writes() -> None:
    llm = Scripted(" sky \n", SimpleNamespace(content="green"), "red")
    found = agent(llm).find(asked("red apple", *COLOURS), 4)
    assert found.chunk_ids == (0, 1, 2, 3)
    assert found.llm_calls == len(llm.prompts) == 3
    assert llm.prompts[0] == PROMPT.format(question="red apple", passages="- red apple")
    assert "\n- red apple\n- blue sky\n" in llm.prompts[1], "a passage is one line"
    assert llm.prompts[2].count("\n- ") == 3
    assert all("Question: red apple\n" in prompt for prompt in llm.prompts)


def test_the_agent_picks_no_chunk_twice_and_asks_again_for_a_blank_answer() -> None:
    llm = Scripted(" \n", "red apple", "{nothing} known")
    found = agent(llm).find(asked("red apple", *COLOURS), 9)
    assert found.chunk_ids == (0, 3, 1, 2), "the last by its place, as nothing is like the query"
    assert found.llm_calls == 3
    alone = agent(Scripted()).find(asked("sky", *COLOURS), 1)
    assert (alone.chunk_ids, alone.llm_calls, alone.q_values) == ((1,), 0, None)


def test_an_answer_without_text_ends_the_agent() -> None:
    with pytest.raises(RewardError, match="answered without text: None"):
        agent(Scripted(None, None, None)).find(asked("red", *COLOURS), 2)


def test_the_stand_in_repeats_question_and_last_passage_after_its_time() -> None:
    prompts = [PROMPT.format(question="Who is it?", passages=f"- A man.\n- The {name} - so to say.") for name in "XY"]
    start = time.perf_counter()
    assert StandInLLM(0.05).batch(prompts) == ["Who is it? The X - so to say.", "Who is it? The Y - so to say."]
    assert time.perf_counter() - start >= 0.1
    assert StandInLLM(0).invoke(prompts[0]) == "Who is it? The X - so to say."
    assert agent(StandInLLM(0)).find(asked("red", *COLOURS), 2).chunk_ids == (0, 3)
