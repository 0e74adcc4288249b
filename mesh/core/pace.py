"""When a flood rests: who asks for little is to find a core free, and no long line in front.

Rules of this file:

1. A flood is a client whose requests wait in the router (``core/credit.py``). It is a closed loop: who is not
   answered does not ask, and sleeps. So where the router holds its requests back, its own process, the router
   and the partition give back the cores that they take from others.
2. It rests for others only: while a client was heard in the last ``HEARD_S`` that asks for little and is no
   flood itself. Without such a client everything is as fast as it goes, also of two floods beside each other.
3. Then a partition is given one turn (``TURN_COST``) of what waits at a time, and when it took that, nothing
   of it for as long as that took: half of the time belongs to others, whatever the work is and however slow
   the machine. A rest has an end (``REST_MAX_S``), so every flood goes on.

The time is the shell's: it says what it is, and asks when it is to look again.
"""

from __future__ import annotations

#: So long after a client that asks for little was heard it is expected again.
HEARD_S = 0.1
#: About 1 ms of a partition's work. It tells what it took in steps of this, so the end of each turn is told.
TURN_COST = 16 * 1024
REST_MAX_S = 0.05
#: So many floods are known by name; with more, some may be taken for clients that ask for little.
FLOODS_MAX = 1_024
NEVER = float("inf")


class Pace:
    """What all partitions of a router share: the time, and who was heard lately.

    All share one, since a flood of one partition takes the cores that another's clients need.
    """

    __slots__ = ("_floods", "_little_s", "due_s", "now_s", "since_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.due_s = NEVER  #: when a rest is over, and what waits is to be looked at
        self.since_s = 0.0  #: when floods began to rest
        self._little_s = -HEARD_S
        self._floods: dict[bytes, float] = {}

    @property
    def slow(self) -> bool:
        """Whether floods rest between their turns."""
        return self.now_s - self._little_s < HEARD_S

    def much(self, client: bytes) -> None:
        """A client was heard that has much in flight."""
        floods = self._floods
        if len(floods) >= FLOODS_MAX and client not in floods:
            floods.clear()
        floods[client] = self.now_s

    def little(self, client: bytes) -> None:
        """A client was heard that has little in flight, while a partition has enough to do."""
        if self.now_s - self._floods.get(client, -HEARD_S) >= HEARD_S:
            if not self.slow:
                self.since_s = self.now_s
            self._little_s = self.now_s

    def look_at(self, due_s: float) -> None:
        """Something waits that may go then."""
        self.due_s = min(self.due_s, due_s)

    def timeout_ms(self, most_s: float) -> int:
        """How long to sleep at most."""
        return int(1000 * min(most_s, max(0.0, self.due_s - self.now_s) + 0.001))

    def due(self) -> bool:
        """Whether to look at what waits now; whoever still rests is to say so again."""
        if self.now_s < self.due_s:
            return False
        self.due_s = NEVER
        return True


class Turns:
    """The turns and rests of what waits for one partition, while floods rest."""

    __slots__ = ("_began_s", "_left", "_pace", "_rest_s")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.clear()

    def clear(self) -> None:
        """There is no turn, and no rest."""
        self._began_s = -NEVER  #: of the turn that is not over
        self._left = 0  #: of the turn, the work that was not given yet
        self._rest_s = 0.0  #: the end of the rest

    def on(self, on_its_way: int) -> bool:
        """Whether what waits may be sent, with so much work on its way to the partition."""
        pace = self._pace
        if self._left > 0 and pace.now_s - self._began_s < REST_MAX_S:
            return True
        if on_its_way >= TURN_COST:
            return False
        self.end(on_its_way)
        if pace.now_s < self._rest_s:
            pace.look_at(self._rest_s)
            return False
        self._began_s, self._left = pace.now_s, TURN_COST
        return True

    def end(self, on_its_way: int) -> None:
        """A turn that was given and taken is over, and the rest begins, whether something waits or not.
        One that was not used up earns no rest: nothing waited meanwhile."""
        if self._left > 0 or on_its_way >= TURN_COST:
            return
        pace = self._pace
        if self._began_s >= pace.since_s:
            given = TURN_COST - self._left
            took_s = (pace.now_s - self._began_s) * given / max(given - on_its_way, given // 8)
            self._rest_s = min(pace.now_s + REST_MAX_S, self._began_s + 2 * took_s)
        self._began_s = -NEVER

    def gave(self, work: int) -> None:
        """So much of the turn was sent."""
        self._left -= work


__all__ = ["FLOODS_MAX", "HEARD_S", "NEVER", "REST_MAX_S", "TURN_COST", "Pace", "Turns"]
