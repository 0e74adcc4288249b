"""What the providers of API models cost over the bare libraries, on one scripted server.

``python tests/bench/providers.py [--rows first,stream,crowd,cold]`` prints one line for each row. ``bare`` is
the library's own stream, read to its end; ``mesh`` is the provider with the run's drive: checked, redacted,
encoded events. CPU is of this process alone (``crowd``: of the node's runner), so neighbours do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "providers")]

import anthropic  # noqa: E402
import openai  # noqa: E402
from driving import Bench  # noqa: E402

import mesh  # noqa: E402

APIS = ("anthropic", "chat", "responses")
ASKED = [{"role": "user", "content": "hello"}]


@contextmanager
def server() -> Iterator[str]:
    """The scripted server, in a process of its own."""
    script = ROOT / "tests" / "providers" / "scripted.py"
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def table(api: str, url: str, model: str) -> dict[str, Any]:
    """The agent's table."""
    if api == "anthropic":
        return {"provider": "anthropic", "base_url": url, "model": model, "cache": False}
    return {"provider": "openai", "api": api, "base_url": f"{url}/v1", "model": model}


class Bare:
    """The library as its manual says."""

    def __init__(self, api: str, url: str) -> None:
        self.api = api
        self.client: Any = (
            anthropic.AsyncAnthropic(api_key="k", base_url=url) if api == "anthropic"
            else openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1"))

    async def text(self, model: str) -> AsyncIterator[str]:
        if self.api == "anthropic":
            stream = await self.client.messages.create(
                model=model, max_tokens=8192, messages=ASKED, stream=True)
            async for event in stream:
                if event.type == "content_block_delta":
                    yield event.delta.text
        elif self.api == "chat":
            stream = await self.client.chat.completions.create(
                model=model, messages=ASKED, stream=True, stream_options={"include_usage": True})
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content
        else:
            stream = await self.client.responses.create(model=model, input="hello", stream=True, store=False)
            async for event in stream:
                if event.type == "response.output_text.delta":
                    yield event.delta


class Timed:
    """Time to the first piece, to the end, and CPU of one answer."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.first_cpu: list[float] = []
        self.whole: list[float] = []
        self.cpu: list[float] = []

    async def bare(self, bare: Bare, model: str) -> None:
        began, cpu, first, first_cpu = time.perf_counter(), time.process_time(), 0.0, 0.0
        async for _ in bare.text(model):
            first = first or time.perf_counter() - began
            first_cpu = first_cpu or time.process_time() - cpu
        self.first_cpu.append(first_cpu)
        self._note(first, began, cpu)

    async def mesh(self, bench: Bench, api: str) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        drive = bench.begin(api, "hello")
        first, first_cpu = 0.0, 0.0
        keep = drive.pieces._keep

        def kept(text: str) -> None:
            nonlocal first, first_cpu
            first = first or time.perf_counter() - began
            first_cpu = first_cpu or time.process_time() - cpu
            keep(text)

        drive.pieces._keep = kept  # type: ignore[method-assign]
        await bench.done[drive.key[0]].wait()
        self.first_cpu.append(first_cpu)
        self._note(first, began, cpu)
        result = await bench.result(drive)
        assert result.settle["status"] == "completed", result.settle

    def _note(self, first: float, began: float, cpu: float) -> None:
        self.first.append(first)
        self.whole.append(time.perf_counter() - began)
        self.cpu.append(time.process_time() - cpu)


async def both(api: str, url: str, model: str, count: int) -> tuple[Timed, Timed]:
    """Both, in turns."""
    bare, bench = Bare(api, url), Bench({api: table(api, url, model)})
    await bench.registry.loaded()
    alone, ours = Timed(), Timed()
    for n in range(count + 1):
        if n == 1:  # the first opened the connections
            alone, ours = Timed(), Timed()
        await alone.bare(bare, model)
        await ours.mesh(bench, api)
    await bench.registry.close()
    await bare.client.close()
    return alone, ours


def middle(values: list[float]) -> float:
    return statistics.median(values)


def row_first(url: str) -> None:
    for api in APIS:
        alone, ours = asyncio.run(both(api, url, "tokens-1-0", 200))
        more_ms = (middle(ours.first) - middle(alone.first)) * 1000
        cpu_ms = (middle(ours.first_cpu) - middle(alone.first_cpu)) * 1000
        print(f"first token, {api}: bare {middle(alone.first) * 1000:.2f} ms, over it {more_ms:+.2f} ms; "
              f"in CPU: bare {middle(alone.first_cpu) * 1000:.2f} ms, over it {cpu_ms:+.2f} ms")


def row_stream(url: str) -> None:
    for api in APIS:
        alone, ours = asyncio.run(both(api, url, "tokens-1000-1000", 5))
        rate, own = 1000 / middle(alone.whole), 1000 / middle(ours.whole)
        print(f"1 000 tokens at 1 000/s, {api}: bare {rate:.0f}/s, mesh {own:.0f}/s ({own / rate - 1:+.1%}); "
              f"CPU per token {middle(alone.cpu) * 1000:.0f} us, over it "
              f"{(middle(ours.cpu) - middle(alone.cpu)) * 1000:+.0f} us")
        alone, ours = asyncio.run(both(api, url, "tokens-1000-0", 5))
        rate, own = 1000 / middle(alone.whole), 1000 / middle(ours.whole)
        print(f"1 000 tokens as fast as they come, {api}: bare {rate:.0f}/s, mesh {own:.0f}/s")


async def crowd_bare(api: str, url: str, model: str, runs: int) -> tuple[float, list[float]]:
    """The library alone doing the same: CPU, and how late its loop's timers were, in ms."""
    bare, late = Bare(api, url), []

    async def read() -> None:
        async for _ in bare.text(model):
            pass

    async def look() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.05)
            late.append((time.perf_counter() - began - 0.05) * 1000)

    await read_one(bare)
    cpu, looking = time.process_time(), asyncio.create_task(look())
    await asyncio.gather(*(read() for _ in range(runs)))
    looking.cancel()
    await bare.client.close()
    return time.process_time() - cpu, late


async def read_one(bare: Bare) -> None:
    async for _ in bare.text("tokens-1-0"):
        pass


def row_crowd(url: str, runs: int = 200, rate: int = 30, seconds: int = 10) -> None:
    tokens = rate * seconds
    for api in APIS:
        config = {"agents": {"m": table(api, url, f"tokens-{tokens}-{rate}")}, "limits": {"running": 400}}
        with mesh.LocalNode(runners=1, config=config) as node, node.client(timeout_s=120) as client:
            client.run_once("m", "warm")
            pid = next(c["pid"] for c in client.status()["children"] if c["kind"] == "runner")
            sessions = [client.sessions.start("m").id for _ in range(runs)]
            began, cpu = time.perf_counter(), _cpu_s(pid)
            ids = [client.runs.submit(session, "hello").id for session in sessions]
            lags = []
            while time.perf_counter() - began < seconds - 1:
                time.sleep(0.5)
                lags.append(max(r.get("lag_ms", 0) for r in client.status()["runners"]))
            took = []
            for run_id in ids:
                client.runs.wait(run_id)
                run = client.runs.get(run_id)
                took.append(run.ended_at - run.started_at)
            used = _cpu_s(pid) - cpu
        alone, late = asyncio.run(crowd_bare(api, url, f"tokens-{tokens}-{rate}", runs))
        each = alone / (runs * tokens) * 1e6
        print(f"the same by the bare library, {api}: CPU {alone:.1f} s, {each:.0f} us per token; its "
              f"loop late by {middle(late):.0f} ms, p99 {sorted(late)[int(len(late) * 0.99)]:.0f}")
        print(f"{runs} runs of {tokens} tokens at {rate}/s in one runner, {api}: each {min(took):.1f} to "
              f"{max(took):.1f} s (the script: {seconds} s), lag of the loop {middle(lags):.0f} ms, at most "
              f"{max(lags):.0f}; runner's CPU {used:.1f} s, {used / (runs * tokens) * 1e6:.0f} us per token")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def row_cold(url: str, count: int = 5) -> None:
    """From the command to the first byte of the request: the server's clock and ours are the same.

    The first time is not counted: then Python writes down what it compiled, as an installation does.
    """
    from scripted import Threaded, end, text

    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for api in APIS:
        took = []
        for _ in range(count + 1):
            arrived: list[float] = []

            def script(body: dict[str, Any], arrived: list[float] = arrived) -> Any:
                arrived.append(time.time())
                return [text("hello"), end()]

            with Threaded({"m": script}) as there, tempfile.TemporaryDirectory() as folder:
                config = Path(folder) / "mesh.toml"
                lines = [f'{key} = {_toml(value)}' for key, value in table(api, there.url, "m").items()]
                config.write_text("[agents.m]\n" + "\n".join(lines) + "\n")
                began = time.time()
                subprocess.run(
                    [sys.executable, "-m", "mesh", "run", "--config", str(config), "m", "hi"],
                    check=True, capture_output=True, cwd=ROOT, env=env)
                took.append(arrived[0] - began)
        del took[0]
        print(f"mesh run, cold, to its request at the server, {api}: {middle(took):.2f} s "
              f"({min(took):.2f} to {max(took):.2f})")


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


ROWS: dict[str, Callable[[str], None]] = {
    "first": row_first, "stream": row_stream, "crowd": row_crowd, "cold": row_cold,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    with server() as url:
        for name in parser.parse_args().rows.split(","):
            ROWS[name](url)


if __name__ == "__main__":
    main()
