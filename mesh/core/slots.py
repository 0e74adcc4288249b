"""Slots: scope -> slot -> partition. A slot never changes; the map from slots to partitions may.

A scope is hashed with xxh3_64: stable over processes, machines and languages (Python's own ``hash``
is salted, and a modulo by the partition count would move nearly every key at a resize).
"""

from __future__ import annotations

import re
from functools import lru_cache

from xxhash import xxh3_64_intdigest

from mesh.core.keys import room_text
from mesh.errors import InvalidArgument, shown

SLOT_COUNT = 4096
#: A slot map is SLOT_COUNT bytes on the wire and in the node's database, so 255 is the end.
PARTITIONS_MAX = 255
#: Sessions whose slot is remembered: creating one asks for it five times.
PLACES_MAX = 1_024

ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
RUN_ID = re.compile(r"run_([0-9a-f]{3})[0-9a-f]{29}\Z")


def route_slot(key_text: str) -> int:
    """The slot of a route key: a room and all its threads share it."""
    return xxh3_64_intdigest(("r:" + room_text(key_text)).encode()) % SLOT_COUNT


@lru_cache(maxsize=PLACES_MAX)
def session_slot(session_id: str) -> int:
    """The slot of a session."""
    return xxh3_64_intdigest(("s:" + session_id).encode()) % SLOT_COUNT


def run_slot(run_id: str) -> int:
    """The slot of a run: its id carries the slot of its session.

    Raises:
        InvalidArgument: ``invalid_id``, not a run id of mesh.
    """
    match = RUN_ID.match(run_id) if isinstance(run_id, str) else None
    if match is None:
        text = f"not a run id: {_id_shown(run_id)} (run_ and 32 hex digits)"
        raise InvalidArgument(text, code="invalid_id")
    return int(match.group(1), 16)


def run_key(run_id: str) -> str:
    """A run's id as its partition sorts it: the time first, then the slot.

    Runs of one moment stand side by side in the store's index, whatever their slots; in the order of their
    ids each would touch a page of its own.
    """
    return run_id[7:] + run_id[4:7] if run_id.startswith("run_") else "?" + run_id


def run_id_for(session_id: str, random_hex: str) -> str:
    """The id of a new run: ``run_``, three hex digits of the slot, 29 random hex digits."""
    return f"run_{session_slot(session_id):03x}{random_hex[:29]}"


def check_id(value: object, what: str = "session id") -> str:
    """Refuse an id that could be a path or a topic of its own.

    Raises:
        InvalidArgument: ``invalid_id``.
    """
    if not isinstance(value, str) or not ID.match(value) or value.strip(".") == "":
        raise InvalidArgument(
            f"invalid {what} {_id_shown(value)}: 1 to 128 of A-Z a-z 0-9 . _ -, and not dots alone",
            code="invalid_id",
        )
    return value


def _id_shown(value: object) -> str:
    """An id for a message; of a record that was given in its place what to give."""
    own = None if isinstance(value, str) else getattr(value, "id", None)
    return f"(a {type(value).__name__}: give its .id)" if isinstance(own, str) else shown(value)


def even_map(partitions: int) -> bytes:
    """The first map of a node: slots dealt out evenly. Byte i is the partition of slot i."""
    return bytes(slot % partitions for slot in range(SLOT_COUNT))


def moved_map(current: bytes, partitions: int) -> bytes:
    """The map for another number of partitions that moves as few slots as it can.

    Slots of vanished partitions, then the surplus of the full ones, go to those that have too few.
    """
    target = [SLOT_COUNT // partitions + (i < SLOT_COUNT % partitions) for i in range(partitions)]
    counts = [0] * partitions
    homeless: list[int] = []
    result = bytearray(current)
    for slot, owner in enumerate(current):
        if owner < partitions and counts[owner] < target[owner]:
            counts[owner] += 1
        else:
            homeless.append(slot)
    poor = (p for p in range(partitions) for _ in range(target[p] - counts[p]))
    for slot, owner in zip(homeless, poor, strict=True):
        result[slot] = owner
    return bytes(result)


__all__ = [
    "PARTITIONS_MAX", "PLACES_MAX", "SLOT_COUNT",
    "check_id", "even_map", "moved_map", "route_slot", "run_id_for", "run_key",
    "run_slot", "session_slot",
]
