"""Exactly once: which numbered payloads were done, and what was answered.

Rules of this file (design 3):

1. WRITE payloads of one client to one partition are numbered from 1. A number seen before is answered from
   its receipt; one that is being worked on is not begun again; one below ``done_below`` is refused, so that
   what a caller gave up never lands after its later call.
2. A number > 1 of a client nobody remembers is ``client_expired``: we cannot know what happened to 1.
3. The receipt with the highest number of a client is kept beyond ``done_below``: it is how the client, and
   its ``done_below``, are known after a restart.
4. A payload that waits for something (a run to settle) leaves a receipt of the parts that are done, so that
   after a crash only the open parts are executed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mesh.errors import ClientExpired, InvalidArgument, InvalidState, Overloaded

#: The store's integers are signed; nobody counts so far.
NUMBER_MAX = 2**62
#: Clients kept in memory; those silent longest are read from the store again when they come back.
CLIENTS_MAX = 10_000


class Receipt(NamedTuple):
    """The parts of a reply, None where a call is not answered yet, and what its client had settled then."""

    parts: tuple[bytes | None, ...]
    done_below: int = 1

    @property
    def complete(self) -> bool:
        """Whether every part is there."""
        return None not in self.parts


Key = tuple[bytes, int]


class Client:
    """What is remembered of one client."""

    __slots__ = ("done_below", "forgotten", "highest", "open", "receipts", "seen_s")

    def __init__(self, seen_s: float) -> None:
        self.receipts: dict[int, Receipt] = {}
        self.open: set[int] = set()
        self.done_below = 1
        self.forgotten = 1  #: receipts below are gone
        self.highest = 0
        self.seen_s = seen_s


class Receipts:
    """All clients of a partition. ``load`` gives the stored receipts of a client that memory has not."""

    def __init__(self, load: Callable[[bytes], Iterable[tuple[int, Receipt]]], *, open_max: int) -> None:
        self._load = load
        self._open_max = open_max
        self._former: dict[Key, Receipt | None] = {}  #: of ``dirty``, before this batch
        self.clients: dict[bytes, Client] = {}
        self.dirty: dict[Key, Receipt] = {}
        self.settled: dict[bytes, int] = {}

    def admit(self, client_id: bytes, number: int, done_below: int, now_s: float) -> Receipt | bool | None:
        """None: new, execute it. A Receipt: answer (complete) or go on (open parts). True: in progress.

        Raises:
            ClientExpired: see rule 2.
            InvalidArgument: not a number that counts payloads.
            InvalidState: the number was given up by its own client.
            Overloaded: too many open numbers.
        """
        if not 1 <= number <= NUMBER_MAX:
            raise InvalidArgument(f"request numbers go from 1 to 2**62; this is {number}")
        if done_below > number:
            raise InvalidArgument(f"request number {number} is not below itself: done_below is {done_below}")
        client = self.clients.get(client_id) or self._recall(client_id, number, now_s)
        client.seen_s = now_s
        client.done_below = max(client.done_below, done_below)
        if number in client.open:
            return True
        receipt = client.receipts.get(number)
        if receipt is not None:
            return receipt
        if number < client.done_below:
            raise InvalidState(
                f"request number {number} was given up by its client", code="invalid_operation"
            )
        if number - client.done_below > self._open_max:
            raise Overloaded(
                f"a client may have {self._open_max} open numbers", details={"retry_after_ms": 50}
            )
        return None

    def _recall(self, client_id: bytes, number: int, now_s: float) -> Client:
        client = Client(now_s)
        client.receipts = dict(self._load(client_id))
        if not client.receipts and number > 1:
            raise ClientExpired("this client was silent for too long, or the node is another one; begin anew")
        client.highest = max(client.receipts, default=0)
        client.done_below = max((r.done_below for r in client.receipts.values()), default=1)
        client.forgotten = min(client.receipts, default=1)
        self.clients[client_id] = client
        return client

    def begin(self, client_id: bytes, number: int) -> None:
        """The payload is worked on; a repetition is not begun again."""
        self.clients[client_id].open.add(number)

    def record(self, client_id: bytes, number: int, parts: tuple[bytes | None, ...]) -> None:
        """Keep the answer; it is written with the changes that it announces."""
        client = self.clients[client_id]
        key = (client_id, number)
        if key not in self.dirty:
            self._former[key] = client.receipts.get(number)
        receipt = Receipt(parts, client.done_below)
        client.receipts[number] = self.dirty[key] = receipt
        client.highest = max(client.highest, number)
        if receipt.complete:
            client.open.discard(number)
        below = min(client.done_below, client.highest)
        if below > client.forgotten:
            self._forget(client_id, client, below)

    def _forget(self, client_id: bytes, client: Client, below: int) -> None:
        gone = range(client.forgotten, below)
        if len(gone) > len(client.receipts):
            gone = [n for n in client.receipts if n < below]  # type: ignore[assignment]
        for number in gone:
            if number not in client.open:
                client.receipts.pop(number, None)
        client.forgotten = self.settled[client_id] = below

    def undo(self, client_id: bytes, number: int) -> Receipt | None:
        """The transaction failed: as the last commit left it. Returns the receipt of that time, if any."""
        key = (client_id, number)
        former = self._former.pop(key, None)
        self.dirty.pop(key, None)
        client = self.clients.get(client_id)
        if client is None:
            return former
        if former is None:
            client.receipts.pop(number, None)
        else:
            client.receipts[number] = former
        client.open.discard(number)
        client.highest = max(client.receipts, default=0)
        client.forgotten = min(client.forgotten, min(client.receipts, default=1))
        return former

    def drain(self) -> tuple[dict[Key, Receipt], dict[bytes, int]]:
        """What the next transaction writes: receipts, and per client the number below which to delete.

        Follow it by ``committed``, or by ``undo`` of each.
        """
        dirty, settled = self.dirty, self.settled
        self.dirty, self.settled = {}, {}
        return dirty, settled

    def committed(self) -> None:
        """What was drained is in the store."""
        self._former.clear()

    def silent(self, now_s: float, silence_s: float) -> list[bytes]:
        """Forget and return the clients that were silent too long, and those that are too many."""
        idle = [(client.seen_s, c) for c, client in self.clients.items() if not client.open]
        surplus = len(self.clients) - CLIENTS_MAX
        longest = {c for _, c in sorted(idle)[:surplus]} if surplus > 0 else set()
        gone = [c for seen_s, c in idle if now_s - seen_s > silence_s or c in longest]
        for client_id in gone:
            del self.clients[client_id]
        return gone


__all__ = ["CLIENTS_MAX", "NUMBER_MAX", "Key", "Receipt", "Receipts"]
