"""What may be in flight to one partition: the bounds, and each client's share of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.inflight import InFlight

READ, WAIT = int(wire.Kind.READ), int(wire.Kind.WAIT)
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def counts(payloads: int = 100, nbytes: int = 1_000_000, waits: int = 100) -> InFlight:
    return InFlight(payloads_max=payloads, bytes_max=nbytes, waits_max=waits)


def fill(inflight: InFlight, client: bytes, kind: int = READ, size: int = 10) -> int:
    """Add requests of a client until one is refused."""
    taken = 0
    while inflight.admit(client, kind, size):
        taken += 1
    return taken


def test_one_client_gets_half_and_leaves_room_for_the_next() -> None:
    """If a client takes all it can, then it has half; the next half of the rest, and so on."""
    inflight = counts()
    assert [fill(inflight, client) for client in (A, B, C)] == [50, 25, 13]


def test_clients_that_all_take_what_they_can_get_the_same() -> None:
    """If n clients flood together, then each has one part of n + 1, and one part is free."""
    inflight = counts(payloads=1_000)
    clients = [bytes([n]) * 16 for n in range(9)]
    taken = dict.fromkeys(clients, 0)
    while admitted := [client for client in clients if inflight.admit(client, READ, 10)]:
        for client in admitted:
            taken[client] += 1
    assert set(taken.values()) == {100}


def test_a_share_holds_for_bytes_too() -> None:
    """If few but large payloads are in flight, then their bytes decide."""
    inflight = counts(nbytes=1_000)
    assert fill(inflight, A, size=100) == 5
    assert inflight.admit(B, READ, 100)


def test_a_payload_larger_than_the_bound_goes_alone() -> None:
    """If a payload is larger than all that may be in flight, then it still goes when nothing else is."""
    inflight = counts(nbytes=1_000)
    assert inflight.admit(A, READ, 5_000)
    assert not inflight.admit(B, READ, 1)
    inflight.release(A, READ, 5_000)
    assert inflight.admit(B, READ, 1)


def test_waiting_reads_have_a_share_of_their_own() -> None:
    """If a client floods with waiting reads, then its payloads and the waits of others still go."""
    inflight = counts()
    assert fill(inflight, A, WAIT) == 50
    assert inflight.admit(A, READ, 10) and inflight.admit(B, WAIT, 10)
    inflight.release(A, WAIT, 0)
    assert inflight.admit(A, WAIT, 10)


def test_a_reply_to_nobody_known_changes_nothing() -> None:
    """If something is taken back that was never counted, then the counts stay."""
    inflight = counts()
    inflight.admit(A, READ, 10)
    inflight.release(B, READ, 10)
    assert (inflight.payloads, inflight.bytes, inflight.of(A)) == (1, 10, 1)


@given(st.lists(st.tuples(st.sampled_from((A, B, C)), st.sampled_from((READ, WAIT)), st.integers(1, 300),
                          st.booleans())))
def test_counts_are_what_is_open_and_nothing_is_kept_of_who_left(
    steps: list[tuple[bytes, int, int, bool]]
) -> None:
    """If requests and replies come in any order, then the counts are the open ones, within their bounds."""
    inflight = counts(payloads=20, nbytes=2_000, waits=10)
    opened: list[tuple[bytes, int, int]] = []
    for client, kind, size, add in steps:
        if add:
            held = [s for c, k, s in opened if c == client and k == kind]
            free = 10 - inflight.waits if kind == WAIT else 20 - inflight.payloads
            room = len(held) < free and (kind == WAIT or sum(held) < 2_000 - inflight.bytes)
            assert inflight.admit(client, kind, size) == room
            if room:
                opened.append((client, kind, size))
        elif opened:
            client, kind, size = opened.pop(size % len(opened))
            inflight.release(client, kind, 0 if kind == WAIT else size)
        assert inflight.payloads == sum(kind == READ for _, kind, _ in opened) < 20
        assert inflight.bytes == sum(size for _, kind, size in opened if kind == READ)
        assert inflight.waits == sum(kind == WAIT for _, kind, _ in opened) < 10
        assert inflight.clients == len({client for client, _, _ in opened})
