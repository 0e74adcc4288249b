"""``openai``: a model behind the Chat Completions or the Responses API, at OpenAI or any compatible server
(vLLM, llama.cpp, Ollama ...), by the official library.

Keys of the agent's table, beside those of every API (``api.KEYS``): ``api`` ("chat", "responses"),
``reasoning`` (an effort: "low", "medium", "high" ...) and ``temperature``. With a ``base_url`` no key is
needed.

A server that tells no usage: the pieces of the answer are counted as its tokens, and the request's are
estimated (``CHARS_PER_TOKEN``); the event and the output say ``estimated``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.errors import ConfigError
from mesh.providers import openai_chat, openai_responses
from mesh.providers.api import Answer, ApiProvider, Asked, Request, Turn
from mesh.providers.base import checked, nearest_name
from mesh.providers.conversation import Conversation, Result
from mesh.providers.kinds import Place
from mesh.providers.tools import Tool

#: How an estimate is made of a text.
CHARS_PER_TOKEN = 4
_APIS: dict[str, Any] = {"chat": openai_chat, "responses": openai_responses}


class OpenAIProvider(ApiProvider):
    """Runs one agent on a model of OpenAI, or of a server that speaks like it."""

    name = "openai"
    key_env = "OPENAI_API_KEY"
    own_keys = ("api", "reasoning", "temperature")
    tested = "the official library on scripted servers; llama.cpp with a tiny model"

    def __init__(self, table: Mapping[str, Any], place: Place) -> None:
        api = checked(table, "api", (str,), "chat")
        if api not in _APIS:
            raise ConfigError(f"api = {api!r:.80}: expected chat or responses{nearest_name(api, _APIS)}")
        self._api = _APIS[api]
        super().__init__(table, place)

    def _connect(self, library: Any, **settings: Any) -> Any:
        return library.AsyncOpenAI(**settings)

    def _call_keys(self) -> tuple[str, ...]:
        return ("reasoning", "temperature")

    def _max_tokens(self, table: Mapping[str, Any]) -> int | None:
        return super()._max_tokens(table) if "max_tokens" in table else None

    def _more(self, table: Mapping[str, Any]) -> dict[str, Any]:
        effort = checked(table, "reasoning", (str,), None)
        return {"own_server": table.get("base_url") is not None, "reasoning": effort,
                "temperature": checked(table, "temperature", (int, float), None)}

    def _opening(self, conversation: Conversation) -> list[Any]:
        messages: list[Any] = self._api.opening(conversation.items)
        return messages

    def _answers(self, results: list[Result], steering: list[str]) -> list[Any]:
        messages: list[Any] = self._api.answers(results, steering)
        return messages

    def _asking(self, asked: Asked, system: list[str], messages: list[Any], tools: list[Tool]) -> Request:
        return Request(self._api.PATH, self._api.request(asked, system, messages, tools))

    def _answer(self, turn: Turn) -> Answer:
        answer: Answer = self._api.Answer(turn)
        return answer

    def _told(self, answer: Any, turn: Turn, system: list[str], messages: list[Any]) -> None:
        if not turn.usage:
            asked_chars = sum(map(len, system)) + len(str(messages))
            turn.usage = {"input_tokens": -(-asked_chars // CHARS_PER_TOKEN), "output_tokens": answer.pieces}
            turn.estimated = True


__all__ = ["CHARS_PER_TOKEN", "OpenAIProvider"]
