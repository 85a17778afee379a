"""An async server: searches as JSON, and answers streamed with their passages first; offline.

Run it with: python examples/serve_fastapi.py [--port PORT]
             python examples/serve_fastapi.py --check     asks itself, without a port, and ends
It needs fastapi and uvicorn, and httpx for --check (pip install -c constraints.txt '.[examples]'). Then:

    curl localhost:8000/search --json '{"question": "Where does Tom work?", "k": 1}'
    curl -N localhost:8000/answer --json '{"question": "Who owns the shop where Tom works?"}'

Searches run in threads, so the event loop stays free; with batch_wait_ms those that arrive together are embedded
together, which takes far less time for each. A stand-in that reads out the passages takes the language model's place.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from qrag_retriever import QRAGRetriever

QUESTIONS = [
    "Who owns the shop where Tom works?",
    "On which street does Greta work?",
    "Who keeps a grey parrot?",
    "When is the library closed?",
]


class Ask(BaseModel):
    """What a client sends."""

    question: str = Field(min_length=1, max_length=2000)
    k: int = Field(default=2, ge=1, le=20)


async def words(passage: str) -> AsyncIterator[str]:
    """Stand in for the stream of a language model, such as ``chain.astream`` or ``llm.astream_complete``."""
    for word in passage.split(" "):
        await asyncio.sleep(0)
        yield word + " "


def make_app(retriever: QRAGRetriever) -> FastAPI:
    app = FastAPI(title="qrag-retriever")

    @app.get("/health")
    async def health() -> dict:
        return {"chunks": len(retriever.index), "mode": retriever.mode}

    @app.post("/search")
    async def search(ask: Ask) -> dict:
        return (await retriever.asearch(ask.question, k=ask.k)).to_dict()

    @app.post("/answer")
    async def answer(ask: Ask) -> StreamingResponse:
        # Before the response begins, so that an error of the search is still an HTTP error.
        documents = await retriever.ainvoke(ask.question, k=ask.k)

        async def lines() -> AsyncIterator[str]:
            passages = [{"id": found.id, "text": found.page_content, **found.metadata} for found in documents]
            yield json.dumps({"passages": passages}) + "\n"
            async for word in words("I was given: " + " ".join(found.page_content for found in documents)):
                yield json.dumps({"token": word}) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    return app


async def check(app: FastAPI) -> None:
    """Ask all questions at the same time, then stream one answer, then send nonsense."""
    import httpx

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://check") as client:
        print("GET /health", (await client.get("/health")).raise_for_status().json())
        replies = await asyncio.gather(*(client.post("/search", json={"question": asked}) for asked in QUESTIONS))
        for reply in replies:
            selection = reply.raise_for_status().json()
            print("POST /search", selection["query"], [step["id"] for step in selection["steps"]])
        async with client.stream("POST", "/answer", json={"question": QUESTIONS[0]}) as reply:
            streamed = [json.loads(line) async for line in reply.aiter_lines()]
        print("POST /answer", [passage["id"] for passage in streamed[0]["passages"]], f"{len(streamed) - 1} tokens:")
        print(" ", "".join(part["token"] for part in streamed[1:]))
        refused = await client.post("/search", json={"question": QUESTIONS[0], "k": 0})
        print("POST /search with k=0", refused.status_code, refused.json()["detail"][0]["msg"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="ask the server without a port, and end")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()

    with Path(__file__).with_name("town.jsonl").open(encoding="utf-8") as lines:
        sentences = json.loads(next(line for line in lines if '"town-02"' in line))["chunks"]
    ids = [f"sentence {number}" for number in range(len(sentences))]
    # A real server opens an index that was made before: QRAGRetriever.load("story.qrag", batch_wait_ms=5).
    app = make_app(QRAGRetriever.from_texts(sentences, ids=ids, mode="corpus", batch_wait_ms=5))
    if arguments.check:
        asyncio.run(check(app))
    else:
        uvicorn.run(app, host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    main()
