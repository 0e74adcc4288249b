"""The router's decisions: where a frame goes, what is refused, and whose word counts."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import mailbox, wire
from mesh.core.credit import WINDOW_COST
from mesh.core.fair import cost
from mesh.core.router import HEARD_MAX, HEARD_S, Router
from mesh.core.slots import SLOT_COUNT, even_map
from mesh.errors import RemoteProtocolError, RequestError

CLIENT = b"c" * 16


def router(**changes: Any) -> Router:
    return Router(**{"slot_map": even_map(2), "map_version": 3, "boot": 77, "runners": 2, "inflight_max": 4,
                     "inflight_bytes_max": 10_000, "waits_max": 1_000, **changes})


def ready(core: Router, kind: str = "P", index: int = 0, incarnation: int = 5, pid: int = 50) -> bytes:
    identity = mailbox.identity(kind.encode(), index, incarnation)
    core.on_ready(identity, ["ready", kind, index, incarnation, pid, {"routes": 1}])
    return identity


def payload(kind: wire.Kind = wire.Kind.READ, **fields: int) -> bytes:
    return wire.encode_header(kind, **{"remaining_ms": 100, "request_id": 9, **fields}) + b"\x90"


def reply_to(frame: bytes, partition: int = 0, flags: int = 0) -> bytes:
    header = wire.decode_header(frame[wire.ACTOR_PREFIX_BYTES:])
    size = len(frame) - wire.ACTOR_PREFIX_BYTES
    return frame[:16] + wire.encode_header(
        wire.Kind.REPLY,
        flags=flags,
        answers=header.kind,
        address=partition,
        remaining_ms=size,
        request_id=header.request_id,
    )


def refusal(answer: bytes) -> tuple[wire.Header, str]:
    header = wire.decode_header(answer)
    assert header.flags & wire.Flag.REFUSED and header.number == 77
    return header, wire.unpack(answer[wire.HEADER_BYTES:])["code"]


def child(
    index: int = 0, kind: str = "partition", state: str = "ready", pid: int | None = 50, **more: Any
) -> Any:
    return {
        "name": f"{kind}-{index}",
        "kind": kind,
        "index": index,
        "state": state,
        "pid": pid,
        "incarnation": 5,
        "restarts": 0,
        "cause": None,
        **more,
    }


@pytest.mark.parametrize("slot", [0, 1, 2, 4095])
def test_a_request_goes_to_the_holder_of_its_slot(slot: int) -> None:
    """If a slot is addressed, then the present incarnation of its partition gets client, deadline and
    payload."""
    core = router()
    identities = [ready(core, index=i, pid=50 + i) for i in (0, 1)]
    sent = payload(address=slot)
    identity, frame, actor = core.on_client(CLIENT, sent, 1_000)
    assert identity == identities[slot % 2] and actor is core.partitions[slot % 2]
    assert frame == CLIENT + (1_100).to_bytes(8, "big") + sent


def test_a_stale_map_is_refused_to_be_sent_again() -> None:
    """If a partition is addressed under another map, then the client is told to say HELLO and resend."""
    core = router()
    ready(core)
    identity, answer, _ = core.on_client(CLIENT, payload(flags=wire.Flag.PARTITION, map_version=2), 0)
    header, _ = refusal(answer)
    assert identity is None and header.flags & wire.Flag.STALE_MAP and header.flags & wire.Flag.AGAIN
    assert core.on_client(CLIENT, payload(flags=wire.Flag.PARTITION, map_version=3), 0)[0] is not None


@pytest.mark.parametrize("fields", [{"address": SLOT_COUNT}, {"address": 65535},
                                    {"flags": wire.Flag.PARTITION, "map_version": 3, "address": 2}])
def test_an_address_that_is_none_is_refused(fields: dict[str, int]) -> None:
    """If slot or partition do not exist, then it is a protocol error, not a crash."""
    assert refusal(router().on_client(CLIENT, payload(**fields), 0)[1])[1] == "protocol_error"


def test_a_write_to_a_partition_that_is_no_more_goes_to_its_heir() -> None:
    """If there are fewer partitions now, then what may have happened there is asked of the one that has its
    receipts; nothing else is."""
    core = router()
    ready(core, index=0)
    heir = ready(core, index=1, pid=51)
    flags = wire.Flag.PARTITION | wire.Flag.MOVED
    sent = payload(wire.Kind.WRITE, flags=flags, map_version=3, address=3)
    assert core.on_client(CLIENT, sent, 0)[0] == heir
    for kind, address in ((wire.Kind.READ, 3), (wire.Kind.WRITE, 255), (wire.Kind.WRITE, 65535)):
        sent = payload(kind, flags=flags, map_version=3, address=address)
        assert refusal(core.on_client(CLIENT, sent, 0)[1])[1] == "protocol_error"


@pytest.mark.parametrize(("state", "again"), [("starting", True), ("restarting", True), ("down", False),
                                              ("stopped", True)])
def test_a_missing_partition_is_answered_at_once(state: str, again: bool) -> None:
    """If nobody holds the partition, then the answer says whether it is worth to wait."""
    core = router()
    core.on_roster([child(state=state, pid=None)])
    header, code = refusal(core.on_client(CLIENT, payload(), 0)[1])
    assert code == "partition_unavailable" and bool(header.flags & wire.Flag.AGAIN) == again


def test_inflight_is_bounded_and_given_back() -> None:
    """If as many of a client are in flight as may be, then its next is overloaded until a reply comes; waits
    take no place."""
    core = router()
    identity = ready(core)
    frames = [core.on_client(CLIENT, payload(), 0)[1] for _ in range(2)]
    header, code = refusal(core.on_client(CLIENT, payload(), 0)[1])
    assert code == "overloaded" and header.flags & wire.Flag.AGAIN
    assert core.on_client(CLIENT, payload(wire.Kind.WAIT), 0)[0] == identity
    for frame in frames:
        assert core.on_reply(identity, reply_to(frame))
    actor = core.partitions[0]
    assert (actor.inflight.payloads, actor.inflight.bytes) == (0, 0)
    assert core.on_client(CLIENT, payload(), 0)[0] == identity


def test_a_read_whose_answer_did_not_fit_is_over_and_a_wait_of_which_more_comes_is_not() -> None:
    """If a reply says that there is more, then a read, whose rest is asked again, is given back; a waiting
    read is so with its last part."""
    core = router()
    identity = ready(core)
    inflight = core.partitions[0].inflight
    frame = core.on_client(CLIENT, payload(), 0)[1]
    assert core.on_reply(identity, reply_to(frame, flags=wire.Flag.MORE))
    assert (inflight.payloads, inflight.bytes) == (0, 0)
    frame = core.on_client(CLIENT, payload(wire.Kind.WAIT), 0)[1]
    assert core.on_reply(identity, reply_to(frame, flags=wire.Flag.MORE)) and inflight.waits == 1
    assert core.on_reply(identity, reply_to(frame)) and inflight.waits == 0


def test_bytes_in_flight_are_bounded() -> None:
    """If few but large payloads are in flight, then their bytes are the bound."""
    core = router(inflight_max=100, inflight_bytes_max=100)
    ready(core)
    assert core.on_client(CLIENT, payload() + bytes(200), 0)[0] is not None
    assert refusal(core.on_client(CLIENT, payload(), 0)[1])[1] == "overloaded"


def test_a_long_waiting_read_is_refused() -> None:
    """If a waiting read, whose bytes nobody counts, is large, then it is refused at the door."""
    core = router()
    ready(core)
    assert (
        refusal(core.on_client(CLIENT, payload(wire.Kind.WAIT) + bytes(70_000), 0)[1])[1] == "limit_exceeded"
    )


def test_what_zeromq_did_not_take_leaves_the_count() -> None:
    """If a forwarded frame could not be sent, then it is not in flight and the client is told."""
    core = router()
    ready(core)
    _, frame, actor = core.on_client(CLIENT, payload(), 0)
    assert actor is not None
    assert refusal(core.undelivered(actor, frame, full=True))[1] == "overloaded"
    assert actor.inflight.payloads == 0 and actor.inflight.bytes == 0


def test_a_reply_of_a_dead_incarnation_is_dropped_and_counted() -> None:
    """If a newer incarnation holds the place, then what the old one still says is dropped."""
    core = router()
    old = ready(core, incarnation=5, pid=50)
    frame = core.on_client(CLIENT, payload(), 0)[1]
    new = ready(core, incarnation=6, pid=51)
    assert not core.on_reply(old, reply_to(frame))
    assert core.counters["late_replies"] == 1 and core.partitions[0].inflight.payloads == 0
    assert core.on_client(CLIENT, payload(), 0)[0] == new


def test_a_late_ready_of_a_process_that_is_dead_counts_no_more() -> None:
    """If the supervisor said that a process ended, then its READY, still on the way, brings it not back."""
    core = router()
    core.on_roster([child(pid=50)])
    identity = ready(core, pid=50)
    changed = core.on_roster([child(pid=None, state="restarting")])
    assert [actor.index for actor, _ in changed] == [0] and core.partitions[0].identity is None
    core.on_ready(identity, ["ready", "P", 0, 5, 50, {}])
    assert core.partitions[0].identity is None
    core.on_roster([child(pid=51, state="starting")])
    assert ready(core, incarnation=6, pid=51) == core.partitions[0].identity


def test_a_pid_that_is_used_again_is_welcome() -> None:
    """If the new process got the dead one's number, then it can take the place."""
    core = router()
    core.on_roster([child(pid=50)])
    ready(core, pid=50)
    core.on_roster([child(pid=None, state="restarting")])
    core.on_roster([child(pid=50, state="starting")])
    ready(core, incarnation=6, pid=50)
    assert core.partitions[0].identity is not None


def test_a_new_router_does_not_say_that_runners_died() -> None:
    """If the router is new and has heard nobody, then its roster names no incarnation as dead."""
    core = router()
    assert core.runner_roster() == [[0, 0, None, "starting", False], [1, 0, None, "starting", False]]
    ready(core, "R", 0, 1_000_002, 60)
    assert core.runner_roster()[0] == [0, 1_000_002, 60, "ready", True]


def test_messages_between_actors_reach_the_named_incarnation_only() -> None:
    """If the named incarnation is gone, then the message is dropped and counted; 0 names whoever is there."""
    core = router()
    partition, runner = ready(core, "P", 0, 5), ready(core, "R", 1, 9, 60)
    body = bytes(8) + b"x"
    assert core.on_actor(runner, wire.actor_id(b"P", 0) + body[8:]) == (
        partition, wire.actor_id(b"R", 1, 9) + bytes(8) + b"x")
    assert core.on_actor(partition, wire.actor_id(b"R", 1, 8) + b"x") is None
    assert core.on_actor(b"nobody", wire.actor_id(b"P", 0) + b"x") is None
    assert core.on_actor(runner, wire.actor_id(b"P", 40) + b"x") is None
    assert core.counters["undeliverable"] == 2 and core.counters["unknown_actors"] == 1


def test_gone_tells_partition_and_epoch() -> None:
    """If a partition lost its holder, then clients are told which epoch died."""
    core = router()
    ready(core, incarnation=5)
    header = wire.decode_header(core.gone_frame(core.partitions[0]))
    assert (header.kind, header.address, header.done_below, header.number) == (wire.Kind.GONE, 0, 5, 77)


def test_silent_clients_are_forgotten() -> None:
    """If clients come and go, then the list of those to be told stays small."""
    core = router()
    core.heard = {i.to_bytes(16, "big"): 100.0 for i in range(HEARD_MAX + 5)}
    core.forget_silent(100.0)
    assert len(core.heard) <= HEARD_MAX
    core.forget_silent(100.0 + HEARD_S + 1)
    assert not core.heard


def test_partitions_are_shown_while_dead() -> None:
    """If a partition is dead, then its row holds what was last heard, its cause, and no pid."""
    core = router()
    ready(core)
    core.on_roster([child(state="down", pid=None, cause={"signal": 9})])
    row = core.partition_rows()[0]
    assert (row["state"], row["pid"], row["routes"], row["cause"]) == ("down", None, 1, {"signal": 9})


def test_calls_wait_for_a_partition_that_was_down_once_it_is_restarted_by_hand() -> None:
    """If a partition that is down is restarted by hand, then its calls are to be sent again, at once."""
    core = router()
    core.on_roster([child(state="down", pid=None)])
    assert not refusal(core.on_client(CLIENT, payload(), 0)[1])[0].flags & wire.Flag.AGAIN
    core.restarts(0)
    assert refusal(core.on_client(CLIENT, payload(), 0)[1])[0].flags & wire.Flag.AGAIN
    with pytest.raises(RequestError) as unknown:
        core.restarts(9)
    assert unknown.value.code == "not_found"


@pytest.mark.parametrize("state", ["stopped", "restarting"])
def test_runner_that_is_told_to_stop_is_heard_and_gets_no_more_work(state: str) -> None:
    """If a runner is told to stop, then partitions hear what it ends, and hear that it takes no more, until
    its process is gone."""
    core = router(runners=1)
    runner, partition = ready(core, "R", pid=60), ready(core)
    core.on_roster([child(kind="runner", pid=60)])
    assert core.runner_roster() == [[0, 5, 60, "ready", True]]
    core.on_roster([child(kind="runner", pid=60, state=state)])
    assert core.runner_roster() == [[0, 5, 60, "stopping", True]]
    to_partition = wire.actor_id(mailbox.PARTITION, 0) + b"x"
    assert core.on_actor(runner, to_partition)[0] == partition  # type: ignore[index]
    core.on_roster([child(kind="runner", pid=None, state=state)])
    assert core.runner_roster()[0][3:] == [state, False]
    assert core.on_actor(runner, to_partition) is None


def test_what_waits_for_its_turn_is_refused_when_the_partition_goes() -> None:
    """If a partition goes, or another incarnation takes its place, while requests wait in the router, then
    their clients are told to ask again and nothing is in flight."""
    for ends in (lambda core: core.on_gone(core.partitions[0]), lambda core: ready(core, incarnation=6)):
        core = router(inflight_max=1_000, inflight_bytes_max=10**9)
        ready(core)
        asked = [core.on_client(CLIENT, payload() + bytes(WINDOW_COST // 4), 0) for _ in range(10)]
        waiting = [actor for identity, frame, actor in asked if identity is None and not frame]
        assert len(waiting) == len(core.partitions[0].credit) == 6
        ends(core)
        assert [client for client, _ in core.owed] == [CLIENT] * 6
        for _, answer in core.owed:
            header, code = refusal(answer)
            assert header.flags & wire.Flag.AGAIN and code == "partition_unavailable"
        assert core.partitions[0].inflight.payloads == len(core.partitions[0].credit) == 0


@pytest.mark.parametrize(
    "message", [["took"], ["took", -1], ["took", True], ["took", "1"], ["took", 1, 2], "took"]
)
def test_a_strange_word_about_what_was_taken_is_counted(message: Any) -> None:
    """If a partition's TOOK is no whole number of work, then it counts as malformed and makes no room."""
    core = router()
    assert core.on_own(ready(core), wire.pack(message)) is None
    assert core.counters["malformed"] == 1


@given(data=st.binary(max_size=60))
def test_any_bytes_are_forwarded_or_refused(data: bytes) -> None:
    """If a client sends anything, then the router answers or raises the one protocol error."""
    core = router()
    ready(core)
    try:
        _, answer, _ = core.on_client(CLIENT, data, 0)
    except RemoteProtocolError as error:
        answer = core.refusal(data, error)
    assert answer


@pytest.mark.parametrize("seed", range(10))
def test_counts_of_inflight_never_drift(seed: int) -> None:
    """If requests, replies, deaths and rosters come in any order, then in flight is what is unanswered."""
    chance = random.Random(seed)
    core = router(inflight_max=50, inflight_bytes_max=10**6)
    incarnation, identity, open_frames, taken = 5, ready(core, pid=5), [], 0
    for _ in range(2_000):
        what = chance.random()
        if what < 0.55:
            kind = chance.choice([wire.Kind.READ, wire.Kind.WRITE, wire.Kind.WAIT])
            to, frame, _ = core.on_client(CLIENT, payload(kind) + bytes(chance.randrange(30)), 0)
            if to is not None:
                open_frames.append((kind, frame))
        elif what < 0.97 and open_frames:
            kind, frame = open_frames.pop(chance.randrange(len(open_frames)))
            assert core.on_reply(identity, reply_to(frame))
            taken += cost(frame)
            core.partitions[0].credit.took(taken)
        elif what >= 0.97:
            incarnation, taken = incarnation + 1, 0
            identity, open_frames = ready(core, incarnation=incarnation, pid=incarnation), []
        counted = [frame for kind, frame in open_frames if kind != wire.Kind.WAIT]
        actor = core.partitions[0]
        assert actor.inflight.payloads == len(counted)
        assert actor.inflight.waits == len(open_frames) - len(counted)
        assert actor.inflight.clients == bool(open_frames)
        assert actor.inflight.bytes == sum(len(f) - wire.ACTOR_PREFIX_BYTES for f in counted)
