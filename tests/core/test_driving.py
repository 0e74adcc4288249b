"""Drivers and tokens: who may act on a session, and what each of them is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bench import Bench, new_run_id, started

from mesh.core import access as ac
from mesh.core import wire
from mesh.core.access import AS, NEEDS, SHOWING, Credentials
from mesh.core.driving import TTL_S
from mesh.core.ops import CATALOGUE
from mesh.errors import MeshError

ANN, BOB = b"a" * 16, b"b" * 16
TOKEN = "a token of 16 characters"
RUN, RUN2, RUN3 = (new_run_id("s", n) for n in (1, 2, 3))
#: Ops that name a session or run and ask for nothing, each with its reason.
OPEN = {
    "session.create": "makes it", "session.start": "makes it", "run.once": "makes it",
    "session.import": "makes it", "session.as": "its op is looked at", "session.id_of": "a handle is given",
    "session.list": "shows no content", "session.search": "shows no content",
    "run.search": "shows no content", "event.search": "shows no content", "event.count": "counts",
    "session.renew": "the key is the right", "session.release": "the key is the right",
}


def acting(bench: Bench, op: str, *args: Any, **credentials: Any) -> str:
    return bench.code(AS, credentials, op, list(args))


def changes(bench: Bench, session_id: str = "s") -> list[tuple[Any, Any]]:
    """(driver, reason) of each ``driver_changed``."""
    rows = bench.rows(
        "SELECT e.type, e.fragment FROM event e JOIN session s ON s.n = e.session WHERE s.id = ?"
        " ORDER BY e.seq", session_id)
    found = [wire.unpack(b"\x89" + bytes(fragment))["data"] for code, fragment in rows if code == 30]
    return [(data["driver"], data["reason"]) for data in found]


def test_every_op_on_a_session_is_in_the_table_of_rights() -> None:
    """If a new op names a session or run, then somebody decided who may call it."""
    named = {op.name for op in CATALOGUE if op.name.split(".")[0] in ("session", "run", "event")}
    assert named - set(NEEDS) == set(OPEN) - {"session.renew", "session.release"}
    assert set(NEEDS) | SHOWING | set(OPEN) <= {op.name for op in CATALOGUE}


def test_a_session_that_nobody_claimed_is_everybodys(bench: Bench) -> None:
    """If there is neither token nor driver, then every call is answered as ever, and nothing is stored."""
    started(bench)
    bench.call("session.prompt", "s", RUN, "hi", "follow_up")
    assert bench.state.session("s").access is None and bench.state.leases == {}


def test_while_a_session_is_driven_others_may_not_say_or_decide_anything(bench: Bench) -> None:
    """If Ann drives, then a call of anybody else is not_driver and changes nothing; hers is answered."""
    started(bench)
    bench.call("session.claim", "s", ANN, {"by": "ann"})
    events = bench.events("s")
    for op, *args in (
        ("session.prompt", "s", RUN, "hi", "follow_up"), ("session.prompt", "s", RUN, "hi", "steering"),
        ("session.abort", "s"), ("session.interrupt", "s"), ("session.recall", "s"), ("session.clear", "s"),
        ("session.pause", "s"), ("session.complete", "s"), ("run.submit", RUN, "s", "x"),
        ("run.create", RUN, "s", "x"), ("session.compact", "s", "x"), ("session.set_token", "s", TOKEN),
    ):
        assert bench.code(op, *args) == "not_driver", op
        assert acting(bench, op, *args, driver=BOB) == "not_driver", op
        assert acting(bench, op, *args, viewer=True) == "not_driver", op
    assert bench.events("s") == events and bench.state.work == {}
    assert acting(bench, "session.prompt", "s", RUN, "hi", "follow_up", driver=ANN) == "ok"


def test_calls_on_runs_are_for_the_driver_of_their_session(bench: Bench) -> None:
    """If a run belongs to a driven session, then only the driver cancels it and answers what it asks."""
    started(bench)
    bench.call("run.submit", RUN, "s", "x")
    bench.call("session.claim", "s", ANN)
    for op, *args in (("run.cancel", RUN), ("run.pause", RUN), ("run.decide", RUN, "t", True),
                      ("run.cancel_for_approval", RUN, {}), ("run.interrupt", RUN)):
        assert bench.code(op, *args) == "not_driver", op
    assert acting(bench, "run.decide", RUN, "t", True, driver=ANN) == "approval_not_found"


def test_whoever_operates_the_node_may_always_end_a_session(bench: Bench) -> None:
    """If a driven session runs away, then stop and cancel are answered; only a token keeps them off."""
    started(bench)
    bench.call("session.claim", "s", ANN)
    assert bench.code("session.stop", "s") == "ok"
    assert bench.code("session.cancel", "s") == "ok"
    bench.tick(TTL_S + 1)
    assert changes(bench) == [(None, "claimed")]  # nothing is said behind the end
    assert bench.code("session.claim", "s", BOB) == "session_closed"


@pytest.mark.parametrize("driven", [True, False])
def test_a_viewer_ends_nothing(bench: Bench, driven: bool) -> None:
    """If somebody attends as a viewer, then he cannot end the session either, whoever drives it."""
    started(bench)
    if driven:
        bench.call("session.claim", "s", ANN)
    events = bench.events("s")
    for op in ac.ENDS:
        assert acting(bench, op, "s", viewer=True) == "not_driver", op
    assert bench.events("s") == events and bench.state.session("s").live


def test_a_second_claim_is_refused_until_it_takes_over(bench: Bench) -> None:
    """If Ann drives, then Bob is driver_taken; when he takes over, she learns it in the log."""
    started(bench)
    bench.call("session.claim", "s", ANN, {"by": "ann"})
    reply = bench.replies[bench.post(["session.claim", ["s", BOB, {"by": "bob"}]])]
    assert reply[0][1]["code"] == "driver_taken" and reply[0][1]["details"]["driver"] == "ann"
    bench.call("session.claim", "s", BOB, {"by": "bob", "takeover": True})
    assert changes(bench) == [("ann", "claimed"), ("bob", "takeover")]
    assert bench.code("session.renew", "s", ANN) == "not_driver"
    assert acting(bench, "session.prompt", "s", RUN, "hi", "follow_up", driver=ANN) == "not_driver"
    assert bench.call("session.release", "s", ANN) is False
    assert bench.call("session.release", "s", BOB) is True
    assert changes(bench)[-1] == (None, "released")
    assert acting(bench, "session.prompt", "s", RUN, "hi", "follow_up", driver=ANN) == "not_driver"
    assert bench.code("session.prompt", "s", RUN, "hi", "follow_up") == "ok"


def test_a_claim_repeated_is_one_claim(bench: Bench) -> None:
    """If the driver claims again, then his time begins anew and nothing is announced."""
    started(bench)
    first = bench.call("session.claim", "s", ANN, {"ttl_s": 10})
    bench.now += 5
    assert bench.call("session.claim", "s", ANN, {"ttl_s": 20})["since"] == first["since"]
    assert len(changes(bench)) == 1 and bench.state.leases["s"] == bench.mono + 20


def test_the_lease_of_a_dead_driver_ends_at_a_tick_and_is_announced(bench: Bench) -> None:
    """If nobody renews, then the tick behind the lease's end says that nobody drives, once."""
    started(bench)
    bench.call("session.claim", "s", ANN, {"ttl_s": 3})
    bench.tick(2.9)
    assert changes(bench) == [(None, "claimed")]
    bench.tick(0.2)
    bench.tick(9)
    assert changes(bench) == [(None, "claimed"), (None, "expired")]
    assert bench.state.session("s").access is None and bench.state.leases == {}


def test_acting_renews(bench: Bench) -> None:
    """If the driver does something, then his lease lasts as long from there."""
    started(bench)
    bench.call("session.claim", "s", ANN, {"ttl_s": 3})
    for _ in range(5):
        bench.tick(2.0)
        assert acting(bench, "session.interrupt", "s", driver=ANN) == "ok"
    bench.tick(2.0)
    bench.call("session.renew", "s", ANN)
    bench.tick(2.0)
    assert changes(bench) == [(None, "claimed")]


def test_wall_time_ends_no_lease(bench: Bench) -> None:
    """If the clock on the wall jumps by a year, then the driver keeps his lease."""
    started(bench)
    bench.call("session.claim", "s", ANN)
    bench.now += 3e7
    bench.tick(1.0)
    assert changes(bench) == [(None, "claimed")]


@pytest.mark.parametrize("kill", [Bench.kill, Bench.kill_node])
@pytest.mark.parametrize("live", [True, False])
def test_a_restart_keeps_the_driver_and_gives_him_his_time_again(
    bench: Bench, live: bool, kill: Callable[[Bench], None]
) -> None:
    """If partition or node die, then the next one knows who drives, and for how long from its own start."""
    started(bench)
    if not live:
        bench.call("session.stop", "s")
    bench.call("session.claim", "s", ANN, {"by": "ann", "ttl_s": 10})
    bench.mono += 9
    kill(bench)
    bench.mono += 9
    assert bench.code("session.claim", "s", BOB) == "driver_taken"
    assert bench.call("session.renew", "s", ANN)["by"] == "ann"
    kill(bench)
    bench.tick(11)
    assert changes(bench) == [("ann", "claimed"), (None, "expired")]
    assert bench.code("session.claim", "s", BOB) == "ok"


def test_a_claim_whose_transaction_fails_never_was(bench: Bench) -> None:
    """If the disk refuses a takeover, then the former driver goes on."""
    started(bench)
    bench.call("session.claim", "s", ANN)
    bench.store.fail_next = True
    assert bench.code("session.claim", "s", BOB, {"takeover": True}) == "store_unavailable"
    assert acting(bench, "session.interrupt", "s", driver=ANN) == "ok"
    bench.store.fail_next = True
    bench.tick(TTL_S + 1)
    bench.tick(1)
    assert changes(bench) == [(None, "claimed"), (None, "expired")]


def test_a_protected_session_opens_to_its_token_alone(bench: Bench) -> None:
    """If the token is missing, wrong, or that of another session, then unauthorized; and nothing changes."""
    bench.call("session.start", "s", "echo", {"token": TOKEN})
    bench.call("session.start", "t", "echo", {"token": TOKEN[::-1]})
    events = bench.events("s")
    wrong: list[dict[str, Any]] = [
        {}, {"token": TOKEN[::-1]}, {"token": "x" * 16}, {"driver": ANN}, {"viewer": True}]
    for credentials in wrong:
        for op, *args in (
            ("session.prompt", "s", RUN, "hi", "follow_up"), ("session.claim", "s", ANN),
            ("session.stop", "s"), ("session.set_token", "s", None), ("session.delete", "s"),
            ("session.start_or_get", "s", "echo", None), ("run.submit", RUN, "s", "x"),
        ):
            assert acting(bench, op, *args, **credentials) == "unauthorized", (op, credentials)
    assert bench.events("s") == events
    assert bench.code("session.prompt", "s", RUN, "hi", "follow_up") == "unauthorized"
    assert acting(bench, "session.prompt", "s", RUN, "hi", "follow_up", token=TOKEN) == "ok"
    assert bench.code("session.start_or_get", "s", "echo", {"token": TOKEN}) == "ok"
    assert bench.code("session.start_or_get", "s", "echo", {"token": TOKEN[::-1]}) == "unauthorized"
    assert acting(bench, "run.cancel", RUN) == "unauthorized"
    assert acting(bench, "session.claim", "s", ANN, token=TOKEN) == "ok"
    assert acting(bench, "session.abort", "s", token=TOKEN) == "not_driver"
    assert acting(bench, "session.abort", "s", driver=ANN) == "unauthorized"


def test_a_protected_session_stays_so_when_it_is_over(bench: Bench) -> None:
    """If a protected session ended, then what was said in it still needs the token."""
    bench.call("session.start", "s", "echo", {"token": TOKEN})
    assert acting(bench, "session.complete", "s", token=TOKEN) == "ok"
    bench.kill()
    for op in ("session.events", "session.get", "session.runs", "session.snapshot"):
        with pytest.raises(MeshError) as caught:
            bench.ops.driving.check(op, ["s"])
        assert caught.value.code == "unauthorized"
    assert bench.code("session.delete", "s", True) == "unauthorized"
    assert acting(bench, "session.delete", "s", True, token=TOKEN) == "ok"
    assert bench.code("session.create", "s", "echo", None) == "ok"  # another session, and everybody's


def test_a_token_is_changed_and_taken_away(bench: Bench) -> None:
    """If a token is rotated, then the former one opens nothing; without one the session is everybody's."""
    bench.call("session.start", "s", "echo", {"token": TOKEN})
    assert acting(bench, "session.set_token", "s", "n" * 16, token=TOKEN) == "ok"
    assert acting(bench, "session.abort", "s", token=TOKEN) == "unauthorized"
    bench.kill()
    assert acting(bench, "session.abort", "s", token="n" * 16) == "ok"
    assert acting(bench, "session.set_token", "s", None, token="n" * 16) == "ok"
    assert bench.code("session.abort", "s") == "ok"


def test_a_token_stands_nowhere(bench: Bench) -> None:
    """If a session is protected, then no file of the node holds its token or its driver's key."""
    bench.call("session.start", "s", "echo", {"token": TOKEN})
    assert acting(bench, "session.claim", "s", ANN, token=TOKEN) == "ok"
    assert acting(bench, "session.set_token", "s", TOKEN, token=TOKEN, driver=ANN) == "ok"
    shown = repr(bench.state.session("s")) + repr(bench.replies)
    assert TOKEN not in shown
    for path in bench.path.parent.iterdir():
        assert TOKEN.encode() not in path.read_bytes() and ANN not in path.read_bytes(), path


def test_calls_with_credentials_are_audited_under_their_own_name(bench: Bench) -> None:
    """If a control call carries credentials, then its entry names the op, its target and the outcome."""
    bench.call("session.start", "s", "echo", {"token": TOKEN})
    acting(bench, "session.claim", "s", ANN, token=TOKEN)
    acting(bench, "session.prompt", "s", RUN, "hi", "follow_up", driver=ANN, token=TOKEN)
    acting(bench, "session.abort", "s", token="x" * 16)
    assert bench.rows("SELECT op, target, outcome FROM audit ORDER BY id") == [
        ("session.start", "s", "ok"), ("session.claim", "s", "ok"), ("session.abort", "s", "unauthorized")]


@pytest.mark.parametrize("args", [
    [], [{}], [{}, "session.abort"], [{}, "session.abort", "s"], [None, "session.abort", ["s"]],
    [{"token": "short"}, "session.abort", ["s"]], [{"token": 5}, "session.abort", ["s"]],
    [{"driver": "text"}, "session.abort", ["s"]], [{"driver": b""}, "session.abort", ["s"]],
    [{"viewer": 1}, "session.abort", ["s"]], [{"node": True}, "session.abort", ["s"]],
    [{}, AS, [{}, "session.abort", ["s"]]],
])  # fmt: skip
def test_nonsense_for_credentials_is_refused(bench: Bench, args: list[Any]) -> None:
    """If credentials are not a map of what they may hold, then validation_error, and the op is not called."""
    started(bench)
    assert bench.code(AS, *args) == "validation_error"
    assert bench.state.presented == ac.NOBODY


def test_an_op_that_does_not_exist_is_unknown_with_credentials_too(bench: Bench) -> None:
    """If the op inside is none, then unknown_op."""
    for op in ("session.nope", "route.set", "session.get"):
        assert bench.code(AS, {}, op, ["s"]) == "unknown_op"


@pytest.mark.parametrize(("key", "options"), [
    ("text", None), (b"short", None), (None, None), (ANN, []), (ANN, {"x": 1}), (ANN, {"ttl_s": 0.5}),
    (ANN, {"ttl_s": float("nan")}), (ANN, {"ttl_s": 1e9}), (ANN, {"ttl_s": True}), (ANN, {"by": 5}),
    (ANN, {"by": "x" * 2_001}), (ANN, {"takeover": 1}),
])  # fmt: skip
def test_nonsense_for_a_claim_is_refused(bench: Bench, key: Any, options: Any) -> None:
    """If a claim is not as the catalogue says, then validation_error and nobody drives."""
    started(bench)
    assert bench.code("session.claim", "s", key, options) == "validation_error"
    assert bench.state.session("s").access is None


@pytest.mark.parametrize("token", ["", "x" * 15, "x" * 257, 5, b"x" * 20])
def test_a_weak_token_is_refused_and_not_shown(bench: Bench, token: Any) -> None:
    """If a token is too short or no text, then the refusal does not repeat it."""
    reply = bench.replies[bench.post(["session.create", ["s", "echo", {"token": token}]])]
    assert reply[0][1]["code"] == "validation_error" and "xxx" not in reply[0][1]["message"]


def test_the_node_itself_sees_everything() -> None:
    """If the node reads a log for a run, then no token is asked; a client cannot be the node."""
    access = ac.with_token(None, ac.token_hash("s", TOKEN))
    assert ac.opens(access, "s", ac.NODE) and not ac.opens(access, "s", ac.NOBODY)
    assert ac.opens(access, "s", Credentials(TOKEN)) and not ac.opens(access, "t", Credentials(TOKEN))
    with pytest.raises(MeshError):
        ac.envelope([{"node": True}, "session.get", ["s"]])


def test_a_full_table_of_drivers_lets_a_takeover_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If as many sessions have a driver as may, then another one gets none, and a driven one its next."""
    for sid in ("s", "t"):
        bench.call("session.start", sid, "echo", {})
    monkeypatch.setattr("mesh.core.driving.DRIVEN_MAX", 1)
    bench.call("session.claim", "s", b"a" * 16, {})
    assert bench.code("session.claim", "t", b"b" * 16, {}) == "overloaded"
    assert bench.call("session.claim", "s", b"b" * 16, {"takeover": True})["claim"]
