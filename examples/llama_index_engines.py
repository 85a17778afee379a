"""LlamaIndex over the hops: a query engine (streamed and async), a chat engine and a workflow, offline.

Run it with: python examples/llama_index_engines.py
MockLLM stands in for a language model: it repeats its prompt, so what is printed is what a model would be given. Any
other LLM of LlamaIndex goes in its place.
"""

import asyncio
import json
from pathlib import Path

from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step

from qrag_retriever import QRAGRetriever

QUESTION = "Who owns the shop where Tom works?"
OTHER_QUESTION = "On which street does Greta work?"


class Retrieved(Event):
    """What the first step hands to the second."""

    question: str
    nodes: list[NodeWithScore]


class Ask(Workflow):
    """Retrieve, then answer; in a workflow of one's own, what comes between the two goes here."""

    def __init__(self, retriever: QRAGRetriever, **options) -> None:
        super().__init__(**options)
        self.retriever = retriever

    @step
    async def retrieve(self, event: StartEvent) -> Retrieved:
        # Off the event loop: other steps and other questions go on meanwhile.
        nodes = await self.retriever.aretrieve(event.question)
        return Retrieved(question=event.question, nodes=nodes)

    @step
    async def answer(self, event: Retrieved) -> StopEvent:
        context = "\n".join(f"[{node.node_id}] {node.text}" for node in event.nodes)
        answer = await MockLLM().acomplete(f"{context}\n{event.question}")
        return StopEvent(result=(event.nodes, answer.text))


def show(title: str, answer: str, nodes: list[NodeWithScore]) -> None:
    print(f"\n{title}: {len(answer.split())} words, ending with: ...{' '.join(answer.split())[-60:]}")
    for node in nodes:
        print(f"  hop {node.metadata['qrag_hop']}, Q={node.score:+.3f} [{node.node_id}] {node.text}")


async def main() -> None:
    with Path(__file__).with_name("town.jsonl").open(encoding="utf-8") as lines:
        sentences = json.loads(next(line for line in lines if '"town-02"' in line))["chunks"]
    ids = [f"sentence {number}" for number in range(len(sentences))]
    retriever = QRAGRetriever.from_texts(sentences, ids=ids, mode="corpus", similarity_top_k=2)
    print(QUESTION)

    response = await RetrieverQueryEngine.from_args(retriever, llm=MockLLM()).aquery(QUESTION)
    show("Query engine", str(response), response.source_nodes)

    streaming = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), streaming=True).query(QUESTION)
    show("Query engine, streamed", "".join(streaming.response_gen), streaming.source_nodes)

    # ContextChatEngine retrieves for the message as it is. CondensePlusContextChatEngine first has the language model
    # rewrite it into a question of its own, for one more call, so that "And on which street is it?" is understood.
    # skip_condense=True leaves that out, as here, where MockLLM cannot rewrite.
    chat = ContextChatEngine.from_defaults(retriever=retriever, llm=MockLLM())
    for message in (QUESTION, OTHER_QUESTION):
        reply = await chat.achat(message)
        show(f"Chat, {message}", str(reply), reply.source_nodes)
    condensing = CondensePlusContextChatEngine.from_defaults(retriever, llm=MockLLM(), skip_condense=True)
    reply = await condensing.achat(QUESTION)
    show("Chat that condenses", str(reply), reply.source_nodes)

    nodes, answer = await Ask(retriever, timeout=60).run(question=QUESTION)
    show("Workflow", answer, nodes)


if __name__ == "__main__":
    asyncio.run(main())
