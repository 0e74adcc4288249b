"""The measurements of many sessions for ``mesh bench``: a long log read back, a thousand runs that stream at
once, sessions that are live and idle."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from mesh.cli.measure import COROUTINES, Figure, concurrent, percentile
from mesh.cli.measure_node import resident_bytes

if TYPE_CHECKING:
    import mesh

#: Runs that stream at once, and the events of each in a second.
STREAMS, STREAM_RATE = 1_000, 30
READS = 5


async def read_log(client: mesh.AsyncClient, agent: str, count: int) -> Figure:
    """Events of one session, read from its log by cursor: the best of some reads."""
    session = await client.sessions.start(agent)
    run = await client.runs.submit(session.id, {"prompt": str(count)})
    await client.runs.wait(run.id)
    taken_s = []
    for _ in range(READS):
        began_s = time.perf_counter()
        events = await client.sessions.events(session.id)
        taken_s.append(time.perf_counter() - began_s)
        assert [event.seq for event in events] == list(range(1, len(events) + 1)) and len(events) > count
    await client.sessions.complete(session.id)
    return Figure("events of a session, read by cursor", len(events) / min(taken_s), "/s",
                  {"events": len(events), "reads": READS})


async def streams(client: mesh.AsyncClient, agent: str, seconds: float) -> list[Figure]:
    """A thousand runs stream at once; one listener hears all of it, in order and without a gap.

    The rate is that of the time in which all of them stream, from the first event of the last run that begins
    until the first one ends; where there is no such time, that of all. The delay is that of every event.
    """
    sessions = await _started(client, agent, STREAMS)
    listener = await client.listen("session.")
    each = int(STREAM_RATE * seconds)
    seen = dict.fromkeys(sessions, 0)
    last_seq: dict[str, int] = {}
    late_ms: list[float] = []
    silent, streaming = set(sessions), set(sessions)
    began = ended = (0.0, 0)  #: a time, and the events until then
    try:
        prompt = {"prompt": f"{each} {STREAM_RATE}"}
        first = time.perf_counter(), 0
        await asyncio.gather(*(client.runs.submit(session_id, prompt) for session_id in sessions))
        async for note in listener:
            data: dict[str, Any] = note.data
            session_id = data["session_id"]
            assert data["seq"] == last_seq.setdefault(session_id, data["seq"] - 1) + 1, "a hole"
            last_seq[session_id] = data["seq"]
            if data["type"] == "message_streamed":
                seen[session_id] += 1
                late_ms.append((time.time() - data["ts"]) * 1000)
                if silent:
                    silent.discard(session_id)
                    began = time.perf_counter(), len(late_ms)
            elif data["type"] in ("run_completed", "run_failed"):
                if len(streaming) == len(sessions):
                    ended = time.perf_counter(), len(late_ms)
                streaming.discard(session_id)
                if not streaming:
                    break
    finally:
        await listener.aclose()
    assert set(seen.values()) == {each}, "a run lost events"
    if ended[1] <= began[1]:  # the first run ended before the last one said a word
        began, ended = first, (time.perf_counter(), len(late_ms))
    late_ms.sort()
    p50, p99 = percentile(late_ms, 0.5), percentile(late_ms, 0.99)
    seconds = ended[0] - began[0]
    details = {"runs": STREAMS, "events": len(late_ms), "seconds": round(seconds, 2), "p50_ms": round(p50, 1)}
    name = f"{STREAMS:,} runs stream at once"
    return [
        Figure(f"{name}, delivered", (ended[1] - began[1]) / seconds, "/s", details),
        Figure(f"{name}, delay p99", p99, "ms", details),
    ]


async def idle_sessions(client: mesh.AsyncClient, count: int) -> list[Figure]:
    """Live sessions that did one run each: what all processes of the node hold together."""
    status = await client.status()
    children = [status["router"], *status["partitions"], *status["runners"]]
    pids = [status["pid"], *(row["pid"] for row in children if row["pid"])]
    before = sum(map(resident_bytes, pids))
    sessions = await _started(client, "echo", count)

    async def prompt(place: int) -> None:
        prompted = await client.sessions.prompt(sessions[place], "hello")
        await client.runs.wait(prompted.run_id)

    await concurrent("", prompt, count)
    live = sum(row["live"] for row in (await client.status())["partitions"])
    after = sum(map(resident_bytes, pids))
    details = {"live": live, "processes": len(pids), "bytes_each": round((after - before) / count)}
    return [Figure(f"node with {count:,} live idle sessions", after / 2**20, "MiB", details)]


async def _started(client: mesh.AsyncClient, agent: str, count: int) -> list[str]:
    found: list[str] = []
    for place in range(0, count, COROUTINES):
        some = (client.sessions.start(agent) for _ in range(min(COROUTINES, count - place)))
        found += [session.id for session in await asyncio.gather(*some)]
    return found


__all__ = ["READS", "STREAMS", "STREAM_RATE", "idle_sessions", "read_log", "streams"]
