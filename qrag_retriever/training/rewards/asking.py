"""Asking a language model of either framework, known by its methods alone: no framework is imported."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from qrag_retriever.errors import RewardError

Ask = Callable[[str], Any]


def ask_method(llm: Any) -> Ask:
    """Return the method that puts one prompt to a model: LangChain's ``invoke``, LlamaIndex's ``complete``.

    Raises:
        TypeError: If it is neither a LangChain model nor a LlamaIndex LLM.
    """
    for needed in (("invoke", "batch"), ("complete",)):
        if not isinstance(llm, type) and all(callable(getattr(llm, method, None)) for method in needed):
            ask: Ask = getattr(llm, needed[0])
            return ask
    raise TypeError(
        "llm must be a LangChain chat model (with invoke and batch) or a LlamaIndex LLM (with complete), "
        f"got {f'the class {llm.__name__}' if isinstance(llm, type) else type(llm).__name__}"
    )


def attempt(ask: Ask, prompt: str) -> Any:
    """Return the response to a prompt, or the exception that came instead."""
    try:
        return ask(prompt)
    except Exception as error:
        return error


def ask_many(llm: Any, prompts: Sequence[str]) -> list[Any]:
    """Put several prompts to a model at the same time; an exception stands where one failed.

    LangChain's models have their own way to do so; LlamaIndex's are called from threads, as LangChain does by default.
    """
    if callable(getattr(llm, "batch", None)):
        try:
            responses = list(llm.batch(list(prompts), return_exceptions=True))
            if len(responses) != len(prompts):
                raise ValueError(f"batch returned {len(responses)} responses to {len(prompts)} prompts")
            return responses
        except Exception as error:  # some models raise all the same
            return [error] * len(prompts)
    ask = ask_method(llm)
    if len(prompts) == 1:
        return [attempt(ask, prompts[0])]
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(partial(attempt, ask), prompts))


def ask_once_more(ask: Ask, prompt: str, max_retries: int = 2, wait_seconds: float = 1.0) -> str:
    """Return the text of a model's answer; asked again where it fails, after four times as long a wait each time.

    Raises:
        RewardError: If it fails every time, or answers without text.
    """
    for attempts_left in range(max_retries, -1, -1):
        response = attempt(ask, prompt)
        text = text_of(response)
        if text is not None:
            return text
        if attempts_left:
            time.sleep(wait_seconds)
            wait_seconds *= 4
    what = f"failed: {response!r}" if isinstance(response, Exception) else f"answered without text: {response!r}"
    raise RewardError(f"the language model {what}") from (response if isinstance(response, Exception) else None)


def make_llm(name: str) -> Any:
    """Make the language model that is named as ``package.module:callable``; modules beside the user are found too.

    Raises:
        ValueError: If the name is of another form, cannot be imported, or what it names fails.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"expected 'package.module:callable', a callable that returns a chat model; got {name!r}")
    if os.getcwd() not in sys.path:
        # A script that an installation made has its own folder there, and not the one that it is started in.
        sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module does when it is imported
        raise ValueError(f"the language model {name!r} cannot be imported: {_told(error)}") from error
    try:
        return make()
    except Exception as error:
        raise ValueError(f"calling {name!r} for a language model failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def text_of(response: Any) -> str | None:
    """Return the text of a model's response; None if it has none (an exception, an image, a call of a tool)."""
    if isinstance(response, Exception):
        return None
    content = getattr(response, "content", response)  # LangChain's messages
    if content == "" and getattr(response, "tool_calls", None):
        return None
    if isinstance(content, list):
        blocks = [block.get("text") if isinstance(block, dict) else block for block in content]
        texts = [block for block in blocks if isinstance(block, str)]
        return "".join(texts) if texts else None
    text = content if isinstance(content, str) else getattr(response, "text", None)  # LlamaIndex's completions
    return text if isinstance(text, str) else None
