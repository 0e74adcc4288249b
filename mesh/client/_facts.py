"""What HELLO says of a node, and the words for what went wrong on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from mesh.client._answers import RAW_OPS, parts, raw_pairs
from mesh.client._found import Found
from mesh.client._gather import spread
from mesh.client._payload import Pair, Payload, error_pair
from mesh.core import wire
from mesh.core.records import error_of
from mesh.core.slots import SLOT_COUNT
from mesh.core.wire import Flag
from mesh.errors import DeadlineExceeded, MeshError, NodeUnreachable, RemoteProtocolError, shown

AGAIN_S = 0.02
AGAIN_MAX_S = 0.2
OVERLOADED_MAX_S = 1.0


class Facts(NamedTuple):
    """What HELLO said about the node."""

    boot: int
    map_version: int
    slot_map: bytes
    partitions: int
    fallback_after_s: float
    frame_bytes: int
    values: dict[str, Any]


def body_of(frame: bytes) -> Any:
    """The value behind a frame's header; None when there is nothing.

    Raises:
        RemoteProtocolError: bytes that are not msgpack.
    """
    return wire.unpack_reply(frame)


def answers_of(frame: bytes, op: str) -> Sequence[Pair]:
    """The pairs of a reply. Those of ``op`` route.get_many hold ``Found``, those of ``RAW_OPS`` what is read
    when it is looked at.

    Raises:
        RemoteProtocolError: bytes that are no array of pairs.
    """
    read = raw_pairs if op in RAW_OPS else _READERS.get(op)
    if read is not None:
        try:
            found: Sequence[Pair] = read(memoryview(frame)[wire.HEADER_BYTES :])
        except (msgspec.MsgspecError, RemoteProtocolError, ValueError, RecursionError) as exc:
            raise RemoteProtocolError(f"not the answer to {op}: {exc}"[:200]) from exc
        return found
    pairs = body_of(frame)
    if type(pairs) is not list or set(map(type, pairs)) != _LISTS or set(map(len, pairs)) != _TWO:
        raise RemoteProtocolError("not an array of [status, value]")
    return pairs


def pairs_of(payload: Payload, frame: bytes) -> Iterable[Pair]:
    """The pairs of a reply that answers all calls of a payload; of one that cannot be read, errors."""
    try:
        if not payload.calls:
            return ((0, body_of(frame)),)
        spans = payload.spans
        pairs = answers_of(frame, payload.op)
        if len(pairs) != len(spans):
            raise RemoteProtocolError(f"not the answers to {len(spans)} calls")
        return spread(pairs, spans)
    except RemoteProtocolError as error:
        return repeat(error_pair(error), len(payload.tokens))


def parts_of(payload: Payload, frame: bytes) -> Sequence[tuple[int, Pair]]:
    """(place of the call, its pair) of a reply to some of several waiting reads."""
    try:
        return parts(frame)
    except RemoteProtocolError as error:
        pair = error_pair(error)
        return [(place, pair) for place in range(len(payload.calls))]


_LISTS, _TWO = {list}, {2}
_Error = dict[str, Any]
_READERS: dict[str, Callable[[memoryview], Any]] = {
    "route.get_many": msgspec.msgpack.Decoder(list[tuple[int, Found | _Error]]).decode,
}


def facts_of(frame: bytes) -> Facts:
    """Read the answer to HELLO.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        values = body_of(frame)
        slot_map = values["slots"]
        if type(slot_map) is not bytes or len(slot_map) != SLOT_COUNT:
            raise RemoteProtocolError(f"HELLO without a placement map of {SLOT_COUNT} slots")
        return Facts(
            boot=_whole(values, "boot", 64),
            map_version=_whole(values, "map_version", 32),
            slot_map=slot_map,
            partitions=max(_whole(values, "partitions", 16), max(slot_map) + 1),
            fallback_after_s=_whole({"fallback_after_ms": 500, **values}, "fallback_after_ms", 62) / 1000,
            frame_bytes=min(_whole({"frame_bytes": wire.FRAME_BYTES_MAX, **values}, "frame_bytes", 62),
                            wire.FRAME_BYTES_MAX),
            values=values,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"not an answer to HELLO: {shown(exc, 80)}") from exc


def _whole(values: dict[str, Any], name: str, bits: int) -> int:
    value = values[name]
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise RemoteProtocolError(f"HELLO with a wrong {name}")
    return value


def refusal_of(frame: bytes) -> dict[str, Any]:
    """The error map of a refused payload, with its three keys and their types."""
    try:
        error = body_of(frame)
    except RemoteProtocolError:
        error = None
    if type(error) is not dict or "code" not in error:
        return RemoteProtocolError("a refusal without a reason").to_wire()
    return error_of(error).to_wire()


def again_s(payload: Payload, error: dict[str, Any], flags: int) -> float | None:
    """How long to wait before the payload is sent again; None when the refusal is the answer."""
    if error["code"] == "overloaded":
        asked_ms = error["details"].get("retry_after_ms")
        wanted_s = asked_ms / 1000 if isinstance(asked_ms, int) and asked_ms > 0 else AGAIN_S
        return min(wanted_s * 2.0 ** min(payload.refusals // 2, 10), OVERLOADED_MAX_S)
    if not flags & Flag.AGAIN:
        return None
    return min(AGAIN_S * 2.0 ** min(payload.refusals // 3, 10), AGAIN_MAX_S)


def too_late(payload: Payload, address: str, now_s: float) -> MeshError:
    """Why a payload is given up: nobody was there, or nobody answered in time."""
    if not payload.attempts:
        return unreachable(address)
    waited_s = now_s - payload.opened_s
    details: dict[str, Any] = {
        "op": payload.calls[0][0] if payload.calls else payload.what,
        "partition": payload.partition,
        "waited_ms": int(waited_s * 1000),
    }
    last = ""
    if payload.refusal is not None:
        details["last_refusal"] = payload.refusal.get("code")
        last = f"; the node's last word: {payload.refusal.get('message')}"
    return DeadlineExceeded(
        f"{payload.what}: no answer from {address} within {waited_s:.3g} s{last}", details=details
    )


def unreachable(address: str) -> NodeUnreachable:
    """Nobody ever took anything at the address."""
    return NodeUnreachable(
        f"no mesh node answers at {address}: start one with `mesh up`, or check the address",
        details={"address": address},
    )


__all__ = [
    "AGAIN_S",
    "Facts",
    "again_s",
    "answers_of",
    "body_of",
    "facts_of",
    "pairs_of",
    "parts_of",
    "refusal_of",
    "too_late",
    "unreachable",
]
