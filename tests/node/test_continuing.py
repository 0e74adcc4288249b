"""A runner reads transcripts: pages that get lost, partitions that forget, folds that are bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from mesh.core import wire
from mesh.core.access import unwrapped
from mesh.core.continuation import transcript_of
from mesh.core.history import FORKS_MAX, PAGE_EVENTS
from mesh.core.slots import session_slot
from mesh.errors import InvalidArgument, MeshError, NotFound, Unavailable
from mesh.node.continuing import Transcripts
from mesh.node.questions import ASKABLE, QUESTIONS_MAX, TURN_BYTES, Asker, Questions


def go(work: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(20):
            return await work

    return asyncio.run(limited())


class Log:
    """Sessions with logs, read as a partition reads them."""

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[tuple[str, list[Any]]] = []
        self.partitions: list[int] = []

    def say(self, session_id: str, count: int, *, chars: int = 1, **fork: Any) -> dict[str, Any]:
        """Append messages; the session as a run command has it."""
        events = self.events.setdefault(session_id, [])
        for _ in range(count):
            events.append({
                "id": "e", "type": "message_sent", "session_id": session_id, "run_id": None, "ts": 1.0,
                "seq": len(events) + 1, "data": {"content": f"{session_id}{len(events) + 1}".ljust(chars)},
                "metadata": {}, "provider": "p",
            })
        self.sessions.setdefault(session_id, {"id": session_id, "parent_session_id": None, "fork_seq": None})
        self.sessions[session_id] |= {"seq": len(events), **fork}
        known = self.sessions[session_id]
        fork_of = None if known["fork_seq"] is None else [known["parent_session_id"], known["fork_seq"]]
        return {"id": session_id, "seq": len(events), "fork": fork_of}

    async def ask(self, partition: int, op: str, args: list[Any]) -> Any:
        self.asked.append((op, args))
        self.partitions.append(partition)
        await asyncio.sleep(0)
        op, args = unwrapped(op, args)  # of an original, what the fork may see
        if op == "session.get":
            if args[0] not in self.sessions:
                raise NotFound("no such session", code="session_not_found")
            return self.sessions[args[0]]
        wanted = args[1]
        rows = [e for e in self.events[args[0]] if wanted["after"] < e["seq"] < wanted["before"]]
        return [rows[: wanted["limit"]], True]

    def transcripts(self, **more: Any) -> Transcripts:
        return Transcripts(self.ask, lambda: bytes(i % 3 for i in range(4096)), **more)


def contents(fold: Any) -> list[str]:
    return [m.content.strip() for m in transcript_of(fold).messages]


# --- folds ---


def test_a_fold_is_kept_and_only_what_is_new_is_read() -> None:
    """If a session runs again, then only the events behind the last run are read, from its own partition."""
    log = Log()
    folds = log.transcripts()

    async def scenario() -> None:
        session = log.say("s", 2)
        assert contents(await folds.fold(session)) == ["s1", "s2"]
        session = log.say("s", 1)
        assert contents(await folds.fold(session)) == ["s1", "s2", "s3"]
        assert [args[1]["after"] for _, args in log.asked] == [0, 2]
        await folds.fold(session)
        assert len(log.asked) == 2 and set(log.partitions) == {session_slot("s") % 3}
        folds.forget("s")
        await folds.fold(session)
        assert len(log.asked) == 3

    go(scenario())


def test_a_long_log_comes_in_bounded_pages() -> None:
    """If a log is longer than a page, then it is read page by page, each event once."""
    log = Log()

    async def scenario() -> None:
        session = log.say("s", 2 * PAGE_EVENTS)
        assert len(contents(await log.transcripts().fold(session))) == 2 * PAGE_EVENTS
        assert [args[1]["after"] for _, args in log.asked] == [0, PAGE_EVENTS]

    go(scenario())


def test_two_runs_that_begin_at_once_read_the_log_once() -> None:
    """If a session has several slots, then its runs share one fold and do not disturb each other."""
    log = Log()
    folds = log.transcripts()

    async def scenario() -> None:
        session = log.say("s", 3)
        found = await asyncio.gather(*(folds.fold(session) for _ in range(5)))
        assert len({id(fold) for fold in found}) == 1 and len(log.asked) == 1
        assert contents(found[0]) == ["s1", "s2", "s3"]

    go(scenario())


def test_all_folds_together_are_bounded() -> None:
    """If the folds of many sessions grow too large, then the one used least recently goes first."""
    log = Log()
    folds = log.transcripts(chars_max=25)

    async def scenario() -> None:
        sessions = [log.say(name, 1, chars=10) for name in "abc"]
        for session in sessions:
            await folds.fold(session)
        assert len(folds) == 2
        await folds.fold(sessions[2])
        assert len(log.asked) == 3
        await folds.fold(sessions[0])
        assert len(log.asked) == 4
        assert contents(await folds.fold(log.say("large", 1, chars=100)))  # given, and not kept
        assert len(folds) == 0

    go(scenario())


def test_a_reading_that_is_cancelled_leaves_a_fold_that_goes_on() -> None:
    """If a run is cancelled while its transcript is read, then the next run has the whole."""
    log = Log()
    folds = log.transcripts()

    async def scenario() -> None:
        session = log.say("s", 3 * PAGE_EVENTS)
        reading = asyncio.ensure_future(folds.fold(session))
        while len(log.asked) < 2:
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert len(contents(await folds.fold(session))) == 3 * PAGE_EVENTS

    go(scenario())


# --- forks ---


def test_a_fork_is_read_through_its_ancestors() -> None:
    """If a session is a fork of a fork, then it begins with the first one's, each up to its seq."""
    log = Log()

    async def scenario() -> None:
        log.say("a", 3)
        log.say("b", 2, parent_session_id="a", fork_seq=2)
        session = log.say("c", 1, parent_session_id="b", fork_seq=1)
        assert contents(await log.transcripts().fold(session)) == ["a1", "a2", "b1", "c1"]

    go(scenario())


def test_a_fork_of_what_is_gone_or_never_was_says_so() -> None:
    """If the original is deleted, shorter than claimed, or itself the fork, then there is a typed error."""
    log = Log()
    folds = log.transcripts()

    async def refused(session: dict[str, Any], kind: type[MeshError], code: str) -> None:
        with pytest.raises(kind) as error:
            await folds.fold(session)
        assert error.value.code == code

    async def scenario() -> None:
        gone = log.say("f", 1, parent_session_id="gone", fork_seq=1)
        await refused(gone, NotFound, "session_not_found")
        log.say("short", 1)
        far = log.say("g", 1, parent_session_id="short", fork_seq=9)
        await refused(far, InvalidArgument, "invalid_cursor")
        log.say("x", 1, parent_session_id="y", fork_seq=1)
        loop = log.say("y", 1, parent_session_id="x", fork_seq=1)
        await refused(loop, InvalidArgument, "limit_exceeded")
        assert sum(op == "session.get" for op, _ in log.asked) <= FORKS_MAX + 3

    go(scenario())


# --- questions and answers ---


class Wire:
    """What a runner sends, and the partitions that may forget it."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[Any]]] = []
        self.asker = Asker(lambda partition, message: self.sent.append((partition, wire.unpack(message))))

    async def asked(self, count: int) -> list[tuple[int, list[Any]]]:
        while len(self.sent) < count:
            await asyncio.sleep(0)
        return self.sent


def test_a_question_is_asked_again_until_it_is_answered() -> None:
    """If question or answer is lost, or the partition is another one now, then it is asked again, once."""
    made = Wire()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(made.asker.ask(2, "session.get", ["s"]))
        [(partition, (_, token, op, args))] = await made.asked(1)
        assert (partition, op, args) == (2, "session.get", ["s"])
        made.asker.again(loop.time())
        made.asker.again(loop.time(), 1)
        assert len(made.sent) == 1
        made.asker.again(loop.time(), 2)
        made.asker.again(loop.time() + 100)
        made.asker.again(loop.time(), everything=True)
        assert [message[1] for _, message in made.sent] == [token] * 4
        made.asker.answered(token, wire.ok("yes"))
        made.asker.answered(token, wire.ok("again"))
        assert await waiting == "yes"
        made.asker.answered(token, wire.ok("late"))
        made.asker.again(loop.time() + 100)
        assert len(made.sent) == 4

    go(scenario())


def test_an_error_is_raised_and_one_that_passes_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the read is refused, then the asker is told; if the store is only busy, it is asked anew."""
    monkeypatch.setattr("mesh.node.questions.AGAIN_S", 0.0)
    made = Wire()

    async def scenario() -> None:
        waiting = asyncio.ensure_future(made.asker.ask(0, "session.get", ["s"]))
        await made.asked(1)
        busy = Unavailable("later", code="session_unavailable")
        assert busy.retryable
        made.asker.answered(made.sent[0][1][1], wire.failure(busy))
        await made.asked(2)
        made.asker.answered(made.sent[1][1][1], wire.failure(NotFound("no", code="session_not_found")))
        with pytest.raises(NotFound):
            await waiting

    go(scenario())


class Reads:
    def read_inside(self, op: str, args: list[Any]) -> bytes:
        return wire.ok([op, args])


def test_a_partition_answers_its_share_per_turn_and_the_same_question_once() -> None:
    """If many runs ask at once, then a turn answers no more than its share, and a repetition is one."""
    questions, sent = Questions(Reads()), []  # type: ignore[arg-type]
    for token in (*range(10), *range(10)):
        questions.take(1, 7, ["read", token, "session.get", [token]])
    assert len(questions) == 10
    questions.answer(sent.append)
    assert (len(sent), len(questions)) == (10, 0)
    for token in range(10):
        questions.take(1, 7, ["read", token, "session.get", ["x" * (TURN_BYTES // 3)]])
    questions.answer(sent.append)
    assert (len(sent), len(questions)) == (10 + 3, 7)
    assert wire.parse_actor_id(sent[0][:16]) == (b"R", 1, 7)
    kind, token, answer = wire.unpack(sent[0][wire.CLIENT_ID_BYTES:])
    assert (kind, token, wire.unpack(answer)) == ("answer", 0, [0, ["session.get", [0]]])


def test_a_runner_may_ask_for_the_log_and_nothing_else() -> None:
    """If a runner asks for another read, then it is an unknown one; too many are dropped."""
    questions, sent = Questions(Reads()), []  # type: ignore[arg-type]
    questions.take(0, 1, ["read", 1, "route.get", ["k"]])
    questions.answer(sent.append)
    assert wire.unpack(wire.unpack(sent[0][wire.CLIENT_ID_BYTES:])[2])[1][0] == "'route.get'"
    assert {"session.events", "session.get", "budget.used"} == ASKABLE
    for token in range(QUESTIONS_MAX + 5):
        questions.take(0, 1, ["read", token, "session.get", ["s"]])
    assert len(questions) == QUESTIONS_MAX
