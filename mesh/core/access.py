"""Who may do what with a session: whoever has its token, and of those one driver.

Rules of this file:

1. A session that has neither token nor driver is everybody's: nothing here is asked of it.
2. Of a token only a salted hash is kept; a driver is known by the hash of his key. Both are compared in
   constant time. A token has at least 16 characters, so a fast hash is enough; the salt is the session's id,
   which never repeats.
3. ``NEEDS`` is the one table of rights: what is not in it names no session that exists, or shows nothing of
   what is said in one.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from mesh.errors import InvalidArgument, shown

#: The call that carries credentials: ``[{token?, driver?, viewer?}, op, args]``.
AS = "session.as"
TOKEN_CHARS = range(16, 257)
KEY_BYTES = range(16, 65)


class Lease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who drives a session: a claim, by whom, since when, and how long it lasts without being renewed."""

    claim: str  #: the public name of the driver's key
    by: str | None
    since: float
    ttl_s: float


class Access(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a session asks of callers. New fields go to the end and have a default."""

    token: bytes | None = None  #: its salted hash
    lease: Lease | None = None
    #: Of a fork: the salted hash of the token that was shown for the original when it was made. So the node
    #: may read the original for it, while that has this token.
    original: bytes | None = None


class Credentials(NamedTuple):
    """What a caller shows."""

    token: str | None = None
    key: bytes | None = None
    viewer: bool = False
    node: bool = False  #: the node itself: no client can be that
    proof: bytes | None = None  #: ``Access.original``, of the node reading for a fork


NOBODY, NODE = Credentials(), Credentials(node=True)


class Need(Enum):
    """What an operation asks of its caller."""

    TOKEN = "token"  #: to see the session, to claim it, to end it
    DRIVER = "driver"  #: to say something to it, or to decide for it


NEEDS: dict[str, Need] = {
    **dict.fromkeys((
        "session.get", "session.snapshot", "session.events", "session.wait", "session.queued", "session.runs",
        "session.stats", "session.handle", "session.drain", "run.get", "run.patch", "run.wait",
        "approval.list", "session.claim", "session.renew", "session.release", "session.start_or_get",
        "session.stop", "session.cancel", "session.fail", "session.delete", "session.undelete",
    ), Need.TOKEN),
    **dict.fromkeys((
        "session.prompt", "session.recall", "session.clear", "session.interrupt", "session.abort",
        "session.activate", "session.pause", "session.resume", "session.complete", "session.compact",
        "session.pin", "session.set_token", "run.create", "run.execute", "run.submit", "run.summarise",
        "run.cancel", "run.interrupt", "run.pause", "run.resume", "run.cancel_for_approval", "run.decide",
    ), Need.DRIVER),
}
#: What ends a session, or takes that back: also for who does not drive, but not for who attends as a viewer.
ENDS = frozenset(("session.stop", "session.cancel", "session.fail", "session.delete", "session.undelete"))
#: Searches of all sessions: what they show of a protected one depends on the token, too.
SHOWING = frozenset(("session.list", "session.search", "run.search", "event.search", "event.count"))


def checked_token(token: Any) -> str | None:
    """A token that may protect a session; None is none.

    Raises:
        InvalidArgument: no text, or of another length. The message does not show it.
    """
    if token is None:
        return None
    if type(token) is not str or len(token) not in TOKEN_CHARS:
        raise InvalidArgument(
            f"a session's token is a str of {TOKEN_CHARS[0]} to {TOKEN_CHARS[-1]} characters "
            "(mesh.new_token() makes one)"
        )
    return token


def checked_key(key: Any) -> bytes:
    """A driver's key."""
    if type(key) is not bytes or len(key) not in KEY_BYTES:
        raise InvalidArgument(f"a driver's key is {KEY_BYTES[0]} to {KEY_BYTES[-1]} bytes")
    return key


def token_hash(session_id: str, token: str) -> bytes:
    """What is kept of a token."""
    salt = hashlib.sha256(b"mesh session token:" + session_id.encode()).digest()
    return hmac.digest(salt, token.encode("utf-8", "surrogatepass"), "sha256")


def claim_of(key: bytes) -> str:
    """The public name of a driver's key."""
    return hashlib.sha256(b"mesh driver:" + key).hexdigest()[:32]


def opens(access: Access | None, session_id: str, shown_by: Credentials) -> bool:
    """Whether these credentials open the session: it has no token, or this one."""
    if access is None or access.token is None or shown_by.node:
        return True
    given = shown_by.proof or token_hash(session_id, shown_by.token or "")
    return hmac.compare_digest(given, access.token)


def holds(lease: Lease | None, key: bytes | None) -> bool:
    """Whether the key is that of the driver."""
    return lease is not None and key is not None and hmac.compare_digest(claim_of(key), lease.claim)


def with_token(access: Access | None, token: bytes | None) -> Access | None:
    """The same driver, another token."""
    return _whole(access or Access(), token=token)


def with_lease(access: Access | None, lease: Lease | None) -> Access | None:
    """The same token, another driver."""
    return _whole(access or Access(), lease=lease)


def with_original(access: Access | None, session_id: str, token: str | None) -> Access | None:
    """The access of a fork of that session, made by whoever shows that token."""
    return access if token is None else _whole(access or Access(), original=token_hash(session_id, token))


def _whole(access: Access, **changes: Any) -> Access | None:
    access = msgspec.structs.replace(access, **changes)
    return None if access == Access() else access


def driver_map(access: Access | None) -> dict[str, Any] | None:
    """Who drives, as everybody may see it."""
    if access is None or access.lease is None:
        return None
    return msgspec.structs.asdict(access.lease)


def unwrapped(op: str, args: list[Any]) -> tuple[str, list[Any]]:
    """The call inside a call with credentials; any other call as it is."""
    if op == AS and len(args) == 3 and type(args[1]) is str and type(args[2]) is list:
        return args[1], args[2]
    return op, args


def envelope(args: list[Any]) -> tuple[Credentials, str, list[Any]]:
    """What a call with credentials holds, checked.

    Raises:
        InvalidArgument: names what is wrong.
    """
    op, inner = unwrapped(AS, args)
    if op == AS:
        raise InvalidArgument(f"{AS} takes a map of credentials, an op other than itself, and its arguments")
    given = args[0]
    if type(given) is not dict or set(given) - {"token", "driver", "viewer"}:
        raise InvalidArgument("credentials are a map of token, driver and viewer")
    key = given.get("driver")
    if type(given.get("viewer", False)) is not bool:
        raise InvalidArgument(f"viewer must be true or false, not {shown(given['viewer'], 40)}")
    return Credentials(
        checked_token(given.get("token")), None if key is None else checked_key(key),
        given.get("viewer", False),
    ), op, inner


__all__ = [
    "AS", "ENDS", "KEY_BYTES", "NEEDS", "NOBODY", "NODE", "SHOWING", "TOKEN_CHARS", "Access", "Credentials",
    "Lease", "Need", "checked_key", "checked_token", "claim_of", "driver_map", "envelope", "holds", "opens",
    "token_hash", "unwrapped", "with_lease", "with_original", "with_token",
]
