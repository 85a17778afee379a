"""A LangChain chain over the hops: retriever | prompt | model, with sources, streamed, offline.

Run it with: python examples/langchain_chain.py [--llm PROVIDER:MODEL]
Without --llm, a stand-in for a language model answers by reading out what it was given. With it, any chat model of
LangChain answers (pip install langchain and the provider's package, for instance langchain-ollama).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableParallel, RunnablePassthrough

from qrag_retriever import QRAGRetriever

QUESTION = "Who owns the shop where Tom works?"
OTHER_QUESTION = "On which street does Greta work?"
PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer from these passages, and name those that you used.\n\n{passages}"),
        ("human", "{question}"),
    ]
)


class StandIn(GenericFakeChatModel):
    """Stands in for a language model: reads out the passages of its prompt, streaming word by word."""

    messages: Iterator[AIMessage | str] = iter(())

    def _generate(self, messages: list[BaseMessage], *args, **kwargs) -> ChatResult:
        passages = str(messages[0].content).partition("\n\n")[2]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"I was given: {passages}"))])


def chat_model(name: str | None) -> BaseChatModel:
    if name is None:
        return StandIn()
    from langchain.chat_models import init_chat_model

    return init_chat_model(name)


def numbered(documents: list[Document]) -> str:
    return "\n".join(f"[{document.id}] {document.page_content}" for document in documents)


def main(llm: str | None) -> None:
    with Path(__file__).with_name("town.jsonl").open(encoding="utf-8") as lines:
        sentences = json.loads(next(line for line in lines if '"town-02"' in line))["chunks"]
    ids = [f"sentence {number}" for number in range(len(sentences))]
    # Loose sentences: mode "corpus". For the chunks of one text, order="document" gives a language model its own order.
    retriever = QRAGRetriever.from_texts(sentences, ids=ids, mode="corpus", k=2)

    answer = (
        RunnablePassthrough.assign(passages=lambda given: numbered(given["documents"]))
        | PROMPT
        | chat_model(llm)
        | StrOutputParser()
    )
    chain = RunnableParallel(documents=retriever, question=RunnablePassthrough()).assign(answer=answer)

    print(f"{QUESTION}\n\nStreamed, sources first:")
    for part in chain.stream(QUESTION):
        for document in part.get("documents", []):
            print(f"  [{document.id}] hop {document.metadata['qrag_hop']}, Q={document.metadata['score']:+.3f}")
        print(part.get("answer", ""), end="", flush=True)

    print("\n\nSeveral questions (batch):")
    for result in chain.batch([QUESTION, OTHER_QUESTION]):
        print(f"  {result['question']} {[document.id for document in result['documents']]}")

    # k, min_q and filters can be given for one call, or bound to a copy for one chain.
    print("\nOne hop only (bind):")
    print(f"  {[document.id for document in retriever.bind(k=1).invoke(QUESTION)]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm", metavar="PROVIDER:MODEL", help="a chat model, as init_chat_model names it")
    main(parser.parse_args().llm)
