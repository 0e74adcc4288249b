"""What a search asks for: filters, order, limit and where to go on, checked the same way by SDK and node.

Rules of this file:

1. Filters combine with AND. A filter that is unknown, or of a wrong type, is refused by name.
2. Orders are total: the sort value, then the row number. A place in an order is such a pair (a *key*), so
   going on behind one is exact, whatever was written meanwhile.
3. Some orders have an index (SCANNED by it); the others are a *best of*: everything that matches is looked
   at in small steps, and each step gives the best that it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mesh.core.events import type_code
from mesh.core.records import RunStatus, SessionStatus
from mesh.core.run import STATUS_CODE as RUN_CODE
from mesh.core.session import STATUS_CODE as SESSION_CODE
from mesh.core.slots import check_id, run_slot
from mesh.errors import InvalidArgument, shown

LIMIT_MAX = 1_000
IDS_MAX = 1_000
SESSION_ORDERS = ("updated_at_desc", "updated_at_asc", "created_at_asc", "created_at_desc")
RUN_ORDERS = ("started_at_desc", "started_at_asc", "token_usage_desc")
AUDIT_ORDERS = ("newest_first",)
EVENT_ORDERS = ("sequence_asc", "timestamp_asc", "timestamp_desc")
ORDERS = {"sessions": SESSION_ORDERS, "runs": RUN_ORDERS, "events": EVENT_ORDERS,
          "audit": AUDIT_ORDERS}

#: (sort value, row number)
Key = tuple[float, int]


class Query(NamedTuple):
    """A checked search. ``after`` is the key to go on behind; ``reached`` and ``worst`` are for a *best of*:
    where the looking stands, and the key that a row must precede to be of interest."""

    order: str
    filters: dict[str, Any]
    limit: int
    after: Key | None = None
    reached: int = 0
    worst: Key | None = None

    @property
    def descending(self) -> bool:
        """Whether greater keys come first."""
        return self.order.endswith(("_desc", "newest_first"))

    def precedes(self, one: Key, other: Key) -> bool:
        """Whether a key stands before another in this order."""
        return one > other if self.descending else one < other


def check_limit(limit: Any) -> int:
    """A page size from 1 to LIMIT_MAX.

    Raises:
        InvalidArgument: ``validation_error``.
    """
    if type(limit) is not int or not 1 <= limit <= LIMIT_MAX:
        raise InvalidArgument(f"limit must be a whole number from 1 to {LIMIT_MAX}, not {shown(limit, 40)}")
    return limit


def check_order(kind: str, order: Any) -> str:
    """One of the orders of a kind.

    Raises:
        InvalidArgument: ``validation_error``.
    """
    if type(order) is not str or order not in ORDERS[kind]:
        raise InvalidArgument(f"order must be one of {', '.join(ORDERS[kind])}, not {shown(order, 40)}")
    return order


def check_filters(kind: str, filters: Any) -> dict[str, Any]:
    """The filters that were given, in the form in which they travel.

    Raises:
        InvalidArgument: names the filter.
    """
    if not isinstance(filters, Mapping):
        raise InvalidArgument(f"filters must be a map, not {type(filters).__name__}")
    known = _FILTERS[kind]
    checked = {}
    for name, value in filters.items():
        if name not in known:
            raise InvalidArgument(f"unknown filter {shown(name, 40)}; known: {', '.join(sorted(known))}")
        if value is not None:
            checked[name] = known[name](name, value)
    return checked


def check_query(kind: str, args: list[Any]) -> Query:
    """The arguments of a ``*.search`` op: filters, order, limit, after?, reached?, worst?.

    Raises:
        InvalidArgument: names the argument; ``invalid_cursor`` for a place that is none.
    """
    if not 3 <= len(args) <= 6:
        raise InvalidArgument(f"expected 3 to 6 arguments, not {len(args)}")
    filters, order, limit, after, reached, worst = args + [None] * (6 - len(args))
    return Query(
        check_order(kind, order), check_filters(kind, filters or {}), check_limit(limit), check_key(after),
        check_row(reached), check_key(worst),
    )


def check_key(value: Any) -> Key | None:
    """A place in an order.

    Raises:
        InvalidArgument: ``invalid_cursor``.
    """
    if value is None:
        return None
    if type(value) in (list, tuple) and len(value) == 2 and type(value[0]) in (int, float):
        sort, row = value
        if type(row) is int and abs(row) < 1 << 63 and abs(sort) < 1 << 63:
            return sort, row
    raise InvalidArgument(f"not a place in this order: {shown(value, 60)}", code="invalid_cursor")


def check_row(value: Any) -> int:
    """A row number that was reached; nil is 0.

    Raises:
        InvalidArgument: ``invalid_cursor``.
    """
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InvalidArgument(f"not a row number: {shown(value, 60)}", code="invalid_cursor")
    return value


# --- filters ---


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{name} must be a non-empty str, not {shown(value, 60)}")
    return str(value)


def _texts(name: str, value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset) or len(items) > IDS_MAX:
        raise InvalidArgument(f"{name} must be a list of at most {IDS_MAX} strs, not {shown(value, 60)}")
    return [_text(name, item) for item in items]


def _session_id(name: str, value: Any) -> str:
    return check_id(value, name)


def _session_ids(name: str, value: Any) -> list[str]:
    return [check_id(item, name) for item in _texts(name, value)]


def _run_id(_name: str, value: Any) -> str:
    run_slot(value)
    return str(value)


def _run_ids(name: str, value: Any) -> list[str]:
    return [_run_id(name, item) for item in _texts(name, value)]


def _types(name: str, value: Any) -> list[str]:
    names = _texts(name, value)
    for one in names:
        type_code(one)
    return names


def _time(name: str, value: Any) -> float:
    if hasattr(value, "timestamp"):
        value = value.timestamp()
    if type(value) not in (int, float) or not abs(value) < 10**12:
        raise InvalidArgument(f"{name} must be seconds since the epoch or a datetime, not {shown(value, 60)}")
    return float(value)


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InvalidArgument(f"{name} must be a whole number from 0, not {shown(value, 60)}")
    return value


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise InvalidArgument(f"{name} must be True or False, not {shown(value, 60)}")
    return value


def _statuses(codes: Mapping[Any, int], statuses: type[SessionStatus] | type[RunStatus]) -> Check:
    def check(name: str, value: Any) -> list[str]:
        names = _texts(name, value)
        for one in names:
            if one not in list(statuses):
                known = [status.value for status in codes]
                text = f"unknown status {shown(one, 40)} (known: {', '.join(known)})"
                raise InvalidArgument(text, code="invalid_status", details={"known": known})
        return names

    return check


Check = Callable[[str, Any], Any]
_FILTERS: dict[str, dict[str, Check]] = {
    "sessions": {
        "agent_id": _text, "status": _statuses(SESSION_CODE, SessionStatus), "provider": _text,
        "tags": _texts, "created_after": _time, "created_before": _time, "include_deleted": _flag,
    },
    "runs": {
        "session_id": _session_id, "provider": _text, "status": _statuses(RUN_CODE, RunStatus),
        "started_after": _time, "started_before": _time, "min_tokens": _count,
    },
    "events": {
        "session_ids": _session_ids, "run_ids": _run_ids, "types": _types, "providers": _texts,
        "since": _time, "until": _time, "correlation_id": _text,
    },
    "audit": {
        "op": _text, "target": _text, "client": _text, "outcome": _text, "since": _time, "until": _time,
    },
    "usage": {
        "session_id": _session_id, "agent_id": _text, "provider": _text, "since": _time, "until": _time,
    },
}

__all__ = [
    "EVENT_ORDERS", "IDS_MAX", "LIMIT_MAX", "ORDERS", "RUN_ORDERS", "SESSION_ORDERS", "Key", "Query",
    "check_filters", "check_key", "check_limit", "check_order", "check_query", "check_row",
]
