"""The retriever as a tool of a LangGraph agent: one call of the tool for a question of two hops, offline.

An agent with a search engine needs one call of its language model for every hop. This tool makes the hops by itself, so
that two calls are enough: one that asks, one that answers.

Run it with: python examples/langgraph_agent.py [--llm PROVIDER:MODEL]
It needs langchain and langgraph (pip install -c constraints.txt '.[examples]'). Without --llm a scripted model calls
the tool with the question as it is, then reads out what came back; with it, any chat model of LangChain that can call
tools.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import create_retriever_tool

from qrag_retriever import QRAGRetriever

TOOL = "search_the_town"


class Scripted(GenericFakeChatModel):
    """Stands in for a language model with tools: first it calls the tool, then it reads out what the tool found."""

    messages: Iterator[AIMessage | str] = iter(())

    def bind_tools(self, tools, **kwargs) -> "Scripted":
        return self

    def _generate(self, messages: list[BaseMessage], *args, **kwargs) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            reply = AIMessage(f"I found: {' '.join(str(last.content).split())}")
        else:
            call = {"name": TOOL, "args": {"query": last.content}, "id": "call-1"}
            reply = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=reply)])


def chat_model(name: str | None) -> BaseChatModel:
    if name is None:
        return Scripted()
    from langchain.chat_models import init_chat_model

    return init_chat_model(name)


def main(llm: str | None) -> None:
    with Path(__file__).with_name("town.jsonl").open(encoding="utf-8") as lines:
        town = json.loads(next(line for line in lines if '"town-02"' in line))
    retriever = QRAGRetriever.from_texts(town["chunks"], mode="corpus", k=2)
    tool = create_retriever_tool(
        retriever,
        name=TOOL,
        description="Facts about the town's people and shops. Ask a whole question: it follows up by itself.",
        response_format="content_and_artifact",  # the documents, with hops and Q-values, come with the message
    )
    agent = create_agent(chat_model(llm), [tool], system_prompt="Answer from what the tool finds.")

    print(town["question"])
    asked = {"messages": [{"role": "user", "content": town["question"]}]}
    for update in agent.stream(asked, stream_mode="updates"):
        for node, state in update.items():
            for message in state["messages"]:
                show(node, message)


def show(node: str, message: BaseMessage) -> None:
    for call in getattr(message, "tool_calls", []):
        print(f"  {node} calls {call['name']}({call['args']['query']!r})")
    if isinstance(message, ToolMessage):
        for document in message.artifact:
            found = f"hop {document.metadata['qrag_hop']}, Q={document.metadata['score']:+.3f}"
            print(f"  {node} return {found}: {document.page_content}")
    elif message.content:
        print(f"  {node} says: {message.content}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm", metavar="PROVIDER:MODEL", help="a chat model, as init_chat_model names it")
    main(parser.parse_args().llm)
