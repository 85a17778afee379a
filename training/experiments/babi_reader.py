"""A chat model that reads bAbI's sentences by rule: a stand-in for an LLM that costs nothing and never errs."""

from __future__ import annotations

import re
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

_MOVE = re.compile(r"(\w+) (?:went|moved|journeyed|travelled)(?: back)? to the (\w+)\.")
_QUESTION = re.compile(r"Question: Where is (\w+)\?")


class BabiReader(BaseChatModel):
    """Answers "Where is Mary?" with the place that the last passage about Mary's moves names, else "unknown"."""

    @property
    def _llm_type(self) -> str:
        return "babi-reader"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        text = "\n".join(str(message.content) for message in messages)
        asked = _QUESTION.search(text)
        places = [place for person, place in _MOVE.findall(text) if asked and person == asked[1]]
        answer = places[-1] if places else "unknown"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer))])
