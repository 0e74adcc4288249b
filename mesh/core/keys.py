"""Session keys: which conversation of which bot on which chat platform.

Rules of this file:

1. A key is four fields; ``thread_id`` None means the whole room.
2. The string form joins the fields with ``:``. Exactly ``:``, ``%`` and control characters are
   percent-encoded (UTF-8, uppercase hex), so a key has ONE text, every client hashes a room to the
   same slot, and ``parse(str(k)) == k`` for every valid key. Matrix rooms (``!a:srv``) need this.
3. Empty fields are invalid: an empty thread is not "no thread".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mesh.errors import InvalidArgument, shown

#: A key longer than this is refused: no chat platform has ids of such a length.
KEY_BYTES_MAX = 1024

_PLAIN = re.compile(r"[ -$&-9;-~]+(?::[ -$&-9;-~]+){2,3}")
_ENCODED = re.compile(r"[:%\x00-\x1f\x7f-\x9f]")
_DECODED = re.compile(r"%(?:C2%([89][0-9A-F])|([01][0-9A-F]|25|3A|7F))")


class SessionKey(NamedTuple):
    """An immutable, hashable key; equality is field-wise."""

    channel_type: str
    bridge_id: str
    room_id: str
    thread_id: str | None = None

    @classmethod
    def from_context(cls, context: Any) -> SessionKey:
        """Derive the key of an incoming or outgoing message; the one derivation that everybody shares.

        ``context`` is a mapping or an object with ``channel_type``, ``bridge_id``, ``room_id`` (the
        resolved room) else ``external_room_id``, and ``thread_id`` (the resolved thread) else
        ``external_thread_id``. Integers become their decimal text.

        Raises:
            InvalidArgument: ``invalid_session_key``, a required field is missing or of a wrong type.
        """
        return validate(
            (
                _text(_field(context, "channel_type")),
                _text(_field(context, "bridge_id")),
                _text(_first(context, "room_id", "external_room_id")),
                _text(_first(context, "thread_id", "external_thread_id")),
            )
        )

    @classmethod
    def parse(cls, text: str) -> SessionKey:
        """Read the string form back.

        Raises:
            InvalidArgument: ``invalid_format``, not the text of any key.
        """
        return parse(text)

    def __str__(self) -> str:
        return encode(self)

    def same_room(self, other: SessionKey) -> bool:
        """Whether both are about one room; threads are ignored.

        Raises:
            InvalidArgument: the other one is no key.
        """
        return self[:3] == validate(other)[:3]

    def room_scope(self) -> SessionKey:
        """The key of the whole room: this key without its thread."""
        return self if self.thread_id is None else SessionKey(*self[:3])


def encode(key: SessionKey) -> str:
    """The one text of a key. Does not validate: see ``validate``."""
    channel, bridge, room, thread = key
    text = f"{channel}:{bridge}:{room}" if thread is None else f"{channel}:{bridge}:{room}:{thread}"
    if text.count(":") == (2 if thread is None else 3) and "%" not in text and text.isprintable():
        return text
    return ":".join(encode_field(part) for part in key if part is not None)


def encode_field(field: str) -> str:
    """One field as it stands in the text of a key."""
    return _ENCODED.sub(_percent, field)


def parse(text: str) -> SessionKey:
    """The inverse of ``encode``; anything that ``encode`` cannot have produced is refused."""
    if not isinstance(text, str):
        raise InvalidArgument(f"a key's text must be a str, not {type(text).__name__}", code="invalid_format")
    parts = text.split(":")
    if not 3 <= len(parts) <= 4 or "" in parts or _illegal(text) or _too_long(text):
        raise InvalidArgument(
            f"not a session key: {text[:80]!r} (expected channel:bridge:room or channel:bridge:room:thread)",
            code="invalid_format",
        )
    if "%" in text:
        parts = [_DECODED.sub(_character, part) for part in parts]
    return SessionKey(*parts)


def check_text(text: Any) -> str:
    """Refuse what is not the one text of a key; four times as fast as ``parse`` for a plain one.

    Raises:
        InvalidArgument: ``invalid_session_key``.
    """
    try:
        return text if _is_plain(text) else encode(parse(text))
    except InvalidArgument as exc:
        raise InvalidArgument(exc.message, code="invalid_session_key") from exc


def text_of(key: Any) -> str:
    """The one text of a key in any of its forms; a plain text is four times as fast as ``validate``.

    Raises:
        InvalidArgument: as ``validate``.
    """
    plain: str = key if _is_plain(key) else encode(validate(key))
    return plain


def _is_plain(key: Any) -> bool:
    """Whether it is a text that stands for itself."""
    return type(key) is str and len(key) <= KEY_BYTES_MAX and _PLAIN.fullmatch(key) is not None


def validate(key: Any) -> SessionKey:
    """Turn a ``SessionKey``, a 4-sequence or the string form into a valid key.

    Raises:
        InvalidArgument: ``invalid_session_key`` (or ``invalid_format`` for a text).
    """
    if isinstance(key, str):
        return parse(key)
    if not isinstance(key, tuple | list) or len(key) != 4:
        raise _invalid("a key is (channel_type, bridge_id, room_id, thread_id or None)", key)
    channel, bridge, room, thread = key
    for name, value in (("channel_type", channel), ("bridge_id", bridge), ("room_id", room)):
        if not isinstance(value, str) or not value:
            raise _invalid(f"{name} must be a non-empty str", key)
    if thread is not None and (not isinstance(thread, str) or not thread):
        raise _invalid("thread_id must be a non-empty str or None", key)
    valid = key if type(key) is SessionKey else SessionKey(channel, bridge, room, thread)
    if _too_long(encode(valid)):
        raise _invalid(f"a key has at most {KEY_BYTES_MAX} bytes of valid Unicode", key)
    return valid


def room_text(text: str) -> str:
    """The string form of the room-scope key, from the string form of a key."""
    parts = text.split(":", 3)
    return text if len(parts) < 4 else text[: -len(parts[3]) - 1]


def _illegal(text: str) -> bool:
    if "%" not in text:
        return not text.isprintable() and _ENCODED.search(text.replace(":", "")) is not None
    return _ENCODED.search(_DECODED.sub("", text).replace(":", "")) is not None


def _too_long(text: str) -> bool:
    if len(text) * 4 <= KEY_BYTES_MAX and text.isascii():
        return False
    try:
        return len(text.encode()) > KEY_BYTES_MAX
    except UnicodeEncodeError:
        return True


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode())


def _character(match: re.Match[str]) -> str:
    continuation, single = match.groups()
    return bytes((0xC2, int(continuation, 16))).decode() if continuation else chr(int(single, 16))


def _invalid(reason: str, key: Any) -> InvalidArgument:
    return InvalidArgument(f"invalid session key {shown(key, 120)}: {reason}", code="invalid_session_key")


def _field(context: Any, name: str) -> Any:
    return context.get(name) if isinstance(context, Mapping) else getattr(context, name, None)


def _first(context: Any, *names: str) -> Any:
    return next((value for name in names if (value := _field(context, name)) is not None), None)


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


__all__ = [
    "KEY_BYTES_MAX", "SessionKey", "check_text", "encode", "encode_field", "parse", "room_text", "text_of",
    "validate",
]
