"""Plans of partitions and the node: answered by the router, so also while partitions are dead."""

from __future__ import annotations

import os
from typing import Any

from mesh.client._protocol import RESTART, STATUS, WRITE, Facts
from mesh.client._surface import FACTS, Ask, Plan, place_route, value_of
from mesh.client._surface_routes import ask_every
from mesh.client._traffic import RESTART_RUNNER
from mesh.core.records import PartitionInfo, PruneResult
from mesh.core.slots import RUN_ID, check_id, run_slot, session_slot
from mesh.errors import InvalidArgument, shown


def slot_of(subject: Any) -> int:
    """The slot of a route key, a session id or a run id.

    Raises:
        InvalidArgument: none of them.
    """
    if isinstance(subject, str) and ":" not in subject:
        return run_slot(subject) if RUN_ID.match(subject) else session_slot(check_id(subject))
    return place_route(subject)[1]


def check_index(index: Any, count: int, what: str = "partition") -> int:
    """A partition, or a runner, of this node.

    Raises:
        InvalidArgument: ``invalid_argument``.
    """
    if type(index) is not int or not 0 <= index < count:
        raise InvalidArgument(
            f"no {what} {shown(index, 40)}: this node has 0 to {count - 1}", code="invalid_argument"
        )
    return index


def count() -> Plan:
    """How many partitions there are."""
    facts: Facts = yield FACTS
    return facts.partitions


def partition_of(subject: Any) -> Plan:
    """The index of the partition that a key, session or run belongs to."""
    slot = slot_of(subject)
    facts: Facts = yield FACTS
    return facts.slot_map[slot]


def status() -> Plan:
    """The router's account of the node."""
    [answer] = yield [Ask(STATUS, ~0, None)]
    return value_of(answer)


def partition_infos() -> Plan:
    """All partitions, dead or alive."""
    rows = (yield from status())["partitions"]
    return [PartitionInfo.from_map(row) for row in rows]


def partition_info(index: Any) -> Plan:
    """One of them."""
    infos: list[PartitionInfo] = yield from partition_infos()
    return infos[check_index(index, len(infos))]


def partition_pid(subject: Any) -> Plan:
    """The process that serves a partition now, or None."""
    if type(subject) is int:
        index = subject
    else:
        index = yield from partition_of(subject)
    info: PartitionInfo = yield from partition_info(index)
    return info.pid


def restart(index: Any) -> Plan:
    """Ask the supervisor to restart a partition."""
    facts: Facts = yield FACTS
    [answer] = yield [Ask(RESTART, ~check_index(index, facts.partitions), None)]
    value_of(answer)


def restart_runner(index: Any) -> Plan:
    """Ask the supervisor to restart a runner."""
    facts: Facts = yield FACTS
    runner = check_index(index, facts.values["runners"], "runner")
    [answer] = yield [Ask(RESTART_RUNNER, ~runner, None)]
    value_of(answer)


def backup(folder: Any, timeout_s: float | None) -> Plan:
    """Have every partition write a consistent copy of its store; returns the files."""
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise InvalidArgument("backup needs a folder on the node's machine")
    answers = yield from ask_every(WRITE, ("partition.backup", (os.fsdecode(folder),)), timeout_s)
    return [value_of(answers[index]) for index in sorted(answers)]


def prune_one(index: Any, timeout_s: float | None) -> Plan:
    """The same in one partition."""
    facts: Facts = yield FACTS
    [answer] = yield [Ask(WRITE, ~check_index(index, facts.partitions), ("route.prune", ()), timeout_s)]
    return PruneResult(value_of(answer), 1)


__all__ = [
    "backup",
    "check_index",
    "count",
    "partition_info",
    "partition_infos",
    "partition_of",
    "partition_pid",
    "prune_one",
    "restart",
    "restart_runner",
    "slot_of",
    "status",
]
