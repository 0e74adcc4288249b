"""Exactly once: which numbered payloads were done, and what was answered.

Rules of this file (design 3):

1. WRITE payloads of one client to one partition are numbered from 1. A number seen before is answered from
   its receipt; one that is being worked on is not begun again; one below ``done_below`` is refused, so that
   what a caller gave up never lands after its later call.
2. A number > 1 of a client nobody remembers is ``client_expired``: we cannot know what happened to 1.
3. The receipt with the highest number of a client is kept beyond ``done_below``: it is how the client is
   known after a restart.
4. A payload that waits for something (a run to settle) leaves a receipt of the parts that are done, so that
   after a crash only the open parts are executed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mesh.errors import ClientExpired, InvalidState, Overloaded


class Receipt(NamedTuple):
    """The parts of a reply; None where a call is not answered yet."""

    parts: tuple[bytes | None, ...]

    @property
    def complete(self) -> bool:
        """Whether every part is there."""
        return None not in self.parts


class Client:
    """What is remembered of one client."""

    __slots__ = ("done_below", "highest", "open", "receipts", "seen_s")

    def __init__(self, seen_s: float) -> None:
        self.receipts: dict[int, Receipt] = {}
        self.open: set[int] = set()
        self.done_below = 0
        self.highest = 0
        self.seen_s = seen_s


class Receipts:
    """All clients of a partition. ``load`` gives the stored receipts of a client that memory has not."""

    def __init__(self, load: Callable[[bytes], Iterable[tuple[int, Receipt]]], *, open_max: int) -> None:
        self._load = load
        self._open_max = open_max
        self.clients: dict[bytes, Client] = {}
        self.dirty: dict[tuple[bytes, int], Receipt] = {}
        self.settled: dict[bytes, int] = {}

    def admit(self, client_id: bytes, number: int, done_below: int, now_s: float) -> Receipt | bool | None:
        """None: new, execute it. A Receipt: answer (complete) or go on (open parts). True: in progress.

        Raises:
            ClientExpired: see rule 2.
            InvalidState: the number was given up by its own client.
            Overloaded: too many open numbers.
        """
        client = self.clients.get(client_id) or self._recall(client_id, number, now_s)
        client.seen_s = now_s
        if done_below > client.done_below:
            client.done_below = done_below
            self._forget(client_id, client)
        if number in client.open:
            return True
        receipt = client.receipts.get(number)
        if receipt is not None:
            return receipt
        if number < client.done_below or number == 0:
            raise InvalidState(f"request number {number} was given up by its client", code="invalid_operation")
        if number - client.done_below > self._open_max:
            raise Overloaded(
                f"a client may have {self._open_max} open numbers", details={"retry_after_ms": 50}
            )
        return None

    def _recall(self, client_id: bytes, number: int, now_s: float) -> Client:
        client = Client(now_s)
        for stored, receipt in self._load(client_id):
            client.receipts[stored] = receipt
            client.highest = max(client.highest, stored)
        if not client.receipts and number > 1:
            raise ClientExpired("this client was silent for too long, or the node is another one; begin anew")
        client.done_below = min(client.receipts, default=1)
        self.clients[client_id] = client
        return client

    def _forget(self, client_id: bytes, client: Client) -> None:
        below = min(client.done_below, client.highest)
        for number in [n for n in client.receipts if n < below]:
            del client.receipts[number]
        self.settled[client_id] = below

    def begin(self, client_id: bytes, number: int) -> None:
        """The payload waits for something; a repetition is not begun again."""
        self.clients[client_id].open.add(number)

    def record(self, client_id: bytes, number: int, receipt: Receipt) -> None:
        """Keep the answer; it is written with the changes that it announces."""
        client = self.clients[client_id]
        client.receipts[number] = receipt
        client.highest = max(client.highest, number)
        if receipt.complete:
            client.open.discard(number)
        self.dirty[client_id, number] = receipt

    def undo(self, client_id: bytes, number: int) -> None:
        """The transaction failed: as if the payload had never come."""
        client = self.clients.get(client_id)
        if client is not None:
            client.receipts.pop(number, None)
            client.open.discard(number)
        self.dirty.pop((client_id, number), None)

    def drain(self) -> tuple[dict[tuple[bytes, int], Receipt], dict[bytes, int]]:
        """What the next transaction writes: receipts, and per client the number below which to delete."""
        dirty, settled = self.dirty, self.settled
        self.dirty, self.settled = {}, {}
        return dirty, settled

    def silent(self, now_s: float, silence_s: float) -> list[bytes]:
        """Forget and return the clients that were silent too long."""
        gone = [c for c, client in self.clients.items() if now_s - client.seen_s > silence_s and not client.open]
        for client_id in gone:
            del self.clients[client_id]
        return gone


__all__ = ["Receipt", "Receipts"]
