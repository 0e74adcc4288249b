"""What the router has taken in for one partition and not seen answered: counts, in all and by client.

Rules of this file:

1. Three things are counted: payloads, their bytes, and waiting reads (these take no place of the others).
2. A client that holds less than is still free may add one more. So alone it can have half of a bound, and
   next to n others that also take all they can one part of n + 2: there is always room for who comes next,
   and no client has to be known, measured or configured.
3. A request is counted when it is taken in and taken back by its reply, which names the client, the kind
   and the size that it answers. Nothing is kept of a client that holds nothing, and nothing of a request.
"""

from __future__ import annotations

from mesh.core import wire

WAIT = int(wire.Kind.WAIT)


class InFlight:
    """The counts of one partition's present incarnation."""

    __slots__ = ("_bytes_max", "_clients", "_payloads_max", "_waits_max", "bytes", "payloads", "waits")

    def __init__(self, *, payloads_max: int, bytes_max: int, waits_max: int) -> None:
        self._payloads_max = payloads_max
        self._bytes_max = bytes_max
        self._waits_max = waits_max
        self.clear()

    def clear(self) -> None:
        """A new incarnation has nothing in flight."""
        self.payloads = self.bytes = self.waits = 0
        self._clients: dict[bytes, list[int]] = {}  #: [payloads, bytes, waits]

    def admit(self, client: bytes, kind: int, size: int) -> bool:
        """Count a request, unless the partition or this client has too much in flight."""
        held = self._clients.get(client)
        if held is None:
            held = self._clients[client] = [0, 0, 0]
        if kind == WAIT:
            if held[2] >= self._waits_max - self.waits:
                return self._refuse(client, held)
            self.waits += 1
            held[2] += 1
            return True
        free, free_bytes = self._payloads_max - self.payloads, self._bytes_max - self.bytes
        if held[0] >= free or held[1] >= free_bytes:
            return self._refuse(client, held)
        self.payloads += 1
        self.bytes += size
        held[0] += 1
        held[1] += size
        return True

    def _refuse(self, client: bytes, held: list[int]) -> bool:
        self._forget(client, held)
        return False

    def release(self, client: bytes, kind: int, size: int) -> None:
        """Take back what a request took: it was answered, or could not be forwarded."""
        held = self._clients.get(client)
        if held is None:
            return
        if kind == WAIT:
            self.waits -= 1
            held[2] -= 1
        else:
            self.payloads -= 1
            self.bytes -= size
            held[0] -= 1
            held[1] -= size
        self._forget(client, held)

    def _forget(self, client: bytes, held: list[int]) -> None:
        if not held[0] and not held[2]:
            del self._clients[client]

    def of(self, client: bytes) -> int:
        """How many payloads of a client are in flight."""
        held = self._clients.get(client)
        return held[0] if held is not None else 0

    def bytes_of(self, client: bytes) -> int:
        """How many bytes of a client are in flight."""
        held = self._clients.get(client)
        return held[1] if held is not None else 0

    def waits_of(self, client: bytes) -> int:
        """How many waiting reads of a client are in flight, parked ones too."""
        held = self._clients.get(client)
        return held[2] if held is not None else 0

    @property
    def clients(self) -> int:
        """How many clients hold something."""
        return len(self._clients)


__all__ = ["WAIT", "InFlight"]
