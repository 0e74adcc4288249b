"""A server on loopback that speaks the streams of three APIs as a script says: Messages, Chat Completions and
Responses. The model's name chooses the script; ``requests`` keeps what was asked.

A script is a list of steps, or a function of the request's body that gives one:

| step | meaning |
|---|---|
| ``text("hel")``, ``think("hm")`` | a delta |
| ``call("call_1", "add", '{"a"', ': 2}')`` | a tool call, its arguments in these pieces |
| ``end("end_turn")`` | the end; a reason as mesh names it |
| ``status(429, {...}, headers)`` | an answer that is no stream |
| ``raw(b"...")`` | these bytes as they are |
| ``("alone",)`` as the first | nothing is said but what the script says |
| ``pause(0.1)``, ``hang()``, ``cut()`` | wait, wait for ever, break the connection |
| ``use(7, 3, cached=0)`` | what the answer says it used; ``use(None)``: nothing |
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Step = tuple[Any, ...]
Script = list[Step] | Callable[[dict[str, Any]], list[Step]]


def text(piece: str) -> Step:
    return ("text", piece)


def think(piece: str) -> Step:
    return ("think", piece)


def call(call_id: str, name: str, *parts: str) -> Step:
    return ("call", call_id, name, parts)


def end(reason: str = "end_turn") -> Step:
    return ("end", reason)


def status(code: int, body: Any = None, headers: dict[str, str] | None = None) -> Step:
    return ("status", code, body, headers or {})


def raw(data: bytes) -> Step:
    return ("raw", data)


def pause(seconds: float) -> Step:
    return ("pause", seconds)


def hang() -> Step:
    return ("hang",)


def cut() -> Step:
    return ("cut",)


def use(given: int | None, said: int = 0, *, cached: int = 0) -> Step:
    return ("use", given, said, cached)


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def _event(name: str | None, data: dict[str, Any]) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


_Bytes = Iterator[bytes | Step]


def messages(steps: list[Step], model: str) -> _Bytes:
    """Anthropic's stream."""
    used = next((s for s in steps if s[0] == "use"), use(7, 3))
    usage = {"input_tokens": used[1] or 0, "output_tokens": 0, "cache_read_input_tokens": used[3],
             "cache_creation_input_tokens": 0}
    yield _event("message_start", {"type": "message_start", "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": usage}})
    index, kind = -1, ""
    for step in steps:
        if step[0] not in ("text", "think", "call", "end"):
            yield step
            continue
        if kind and (step[0] != kind or kind == "call"):
            yield _event("content_block_stop", {"type": "content_block_stop", "index": index})
            kind = ""
        if step[0] == "end":
            yield _event("message_delta", {"type": "message_delta", "usage": {"output_tokens": used[2]},
                                           "delta": {"stop_reason": step[1], "stop_sequence": None}})
            yield _event("message_stop", {"type": "message_stop"})
            continue
        if not kind:
            kind, index = step[0], index + 1
            block = {"text": {"type": "text", "text": ""}, "think": {"type": "thinking", "thinking": "",
                                                                      "signature": ""},
                     "call": {"type": "tool_use", "id": step[1], "name": step[-2], "input": {}}}[kind]
            yield _event("content_block_start", {"type": "content_block_start", "index": index,
                                                 "content_block": block})
        for delta in _deltas(step):
            yield _event("content_block_delta", {"type": "content_block_delta", "index": index,
                                                 "delta": delta})


def _deltas(step: Step) -> Iterator[dict[str, Any]]:
    if step[0] == "text":
        yield {"type": "text_delta", "text": step[1]}
    elif step[0] == "think":
        yield {"type": "thinking_delta", "thinking": step[1]}
        yield {"type": "signature_delta", "signature": "sig"}
    else:
        for part in step[3]:
            yield {"type": "input_json_delta", "partial_json": part}


_REASONS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter"}


def chat(steps: list[Step], model: str) -> _Bytes:
    """The stream of Chat Completions."""
    used = next((s for s in steps if s[0] == "use"), use(7, 3))
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        return _event(None, {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    yield chunk({"role": "assistant", "content": ""})
    count = 0
    for step in steps:
        if step[0] == "text":
            yield chunk({"content": step[1]})
        elif step[0] == "think":
            yield chunk({"reasoning_content": step[1]})
        elif step[0] == "call":
            yield chunk({"tool_calls": [{"index": count, "id": step[1], "type": "function",
                                         "function": {"name": step[2], "arguments": ""}}]})
            for part in step[3]:
                yield chunk({"tool_calls": [{"index": count, "function": {"arguments": part}}]})
            count += 1
        elif step[0] == "end":
            yield chunk({}, _REASONS.get(step[1], step[1]))
            if used[1] is not None:
                yield _event(None, {**base, "choices": [], "usage": {
                    "prompt_tokens": used[1] + used[3], "completion_tokens": used[2],
                    "total_tokens": used[1] + used[2] + used[3],
                    "prompt_tokens_details": {"cached_tokens": used[3]}}})
            yield b"data: [DONE]\n\n"
        else:
            yield step


def responses(steps: list[Step], model: str) -> _Bytes:
    """The stream of Responses."""
    used = next((s for s in steps if s[0] == "use"), use(7, 3))
    base: dict[str, Any] = {"id": "resp_1", "object": "response", "created_at": 1, "model": model,
                            "status": "in_progress", "output": [], "parallel_tool_calls": True,
                            "tool_choice": "auto", "tools": []}
    number = -1

    def event(kind: str, **data: Any) -> bytes:
        nonlocal number
        number += 1
        return _event(kind, {"type": kind, "sequence_number": number, **data})

    yield event("response.created", response=base)
    said, index = "", -1
    for step in steps:
        if step[0] == "text":
            if not said:
                index += 1
                yield event("response.output_item.added", output_index=index, item={
                    "id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress",
                    "content": []})
            said += step[1]
            yield event("response.output_text.delta", item_id="msg_1", output_index=index, content_index=0,
                        delta=step[1], logprobs=[])
        elif step[0] == "think":
            yield event("response.reasoning_summary_text.delta", item_id="rs_1", output_index=0,
                        summary_index=0, delta=step[1])
        elif step[0] == "call":
            index += 1
            item = {"id": f"fc_{index}", "type": "function_call", "call_id": step[1], "name": step[2],
                    "arguments": "", "status": "in_progress"}
            yield event("response.output_item.added", output_index=index, item=item)
            for part in step[3]:
                yield event("response.function_call_arguments.delta", item_id=item["id"],
                            output_index=index, delta=part)
            yield event("response.output_item.done", output_index=index,
                        item={**item, "arguments": "".join(step[3]), "status": "completed"})
        elif step[0] == "end":
            yield from _ended(step[1], used, said, base, event)
        else:
            yield step


def _ended(
    reason: str, used: Step, said: str, base: dict[str, Any], event: Callable[..., bytes]
) -> Iterator[bytes]:
    if said:
        part = {"type": "output_text", "text": said, "annotations": []}
        yield event("response.output_item.done", output_index=0, item={
            "id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]})
    whole = reason in ("end_turn", "tool_use")
    usage = None if used[1] is None else {
        "input_tokens": used[1] + used[3], "output_tokens": used[2],
        "total_tokens": used[1] + used[2] + used[3],
        "input_tokens_details": {"cached_tokens": used[3]}, "output_tokens_details": {"reasoning_tokens": 0}}
    last = {**base, "status": "completed" if whole else "incomplete", "usage": usage,
            "incomplete_details": None if whole else {"reason": "max_output_tokens"}}
    yield event("response.completed" if whole else "response.incomplete", response=last)


STREAMS: dict[str, Callable[[list[Step], str], _Bytes]] = {
    "/v1/messages": messages, "/v1/chat/completions": chat, "/v1/responses": responses,
}


class Server:
    """The server, on the loop that calls ``start``."""

    def __init__(self, scripts: dict[str, Script]) -> None:
        self.scripts = scripts
        self.requests: list[Request] = []
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                if not await self._answer(request, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        script = self.scripts.get(request.body.get("model", ""))
        if script is None:
            script = [status(404, {"error": {"type": "not_found_error", "message": "no such model"}})]
        steps = script(request.body) if callable(script) else script
        if steps[0][0] == "status":
            return await _plain(steps[0], writer)
        path = request.path.partition("?")[0]
        path = path if path.startswith("/v1") else "/v1" + path
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        whole = steps[1:] if steps[0][0] == "alone" else STREAMS[path](steps, request.body["model"])
        for part in whole:
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
            elif part[0] == "raw":
                writer.write(b"%x\r\n%s\r\n" % (len(part[1]), part[1]))
                await writer.drain()
            elif part[0] == "at":  # since the answer began: what was late does not make the rest late
                await asyncio.sleep(began_s + part[1] - loop.time())
            elif part[0] == "pause":
                await asyncio.sleep(part[1])
            elif part[0] == "hang":
                await asyncio.Event().wait()
            elif part[0] == "cut":
                await writer.drain()
                return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _plain(step: Step, writer: asyncio.StreamWriter) -> bool:
    _, code, body, headers = step
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    lines = [f"HTTP/1.1 {code} X", "Content-Type: application/json", f"Content-Length: {len(data)}",
             *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    await writer.drain()
    return True


async def _read(reader: asyncio.StreamReader) -> Request | None:
    line = await reader.readline()
    if not line:
        return None
    headers = {}
    while (header := (await reader.readline()).decode().strip()):
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(line.decode().split()[1], headers, json.loads(body) if body else {})


class Threaded:
    """The server on a loop and a thread of its own: a context manager."""

    def __init__(self, scripts: dict[str, Script]) -> None:
        self.server = Server(scripts)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def requests(self) -> list[Request]:
        return self.server.requests

    def __enter__(self) -> Threaded:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self._loop).result(20)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


def tokens(count: int, per_s: float = 0.0) -> list[Step]:
    """A long answer, at a rate."""
    steps: list[Step] = [use(10, count)]
    for n in range(count):
        if per_s:
            steps.append(("at", n / per_s))
        steps.append(text(f"w{n} "))
    return [*steps, end()]


async def _main() -> None:
    """Serve ``tokens-COUNT-RATE`` until the input ends; the first line says where."""

    class Any_(dict):  # type: ignore[type-arg]
        def get(self, name: str, default: Any = None) -> Any:
            _, count, rate = name.split("-")
            return tokens(int(count), float(rate))

    server = Server(Any_())
    await server.start()
    print(server.url, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
