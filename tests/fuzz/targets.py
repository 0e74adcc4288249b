"""What is fuzzed: functions of bytes. A target returns when the code behaved, whatever the bytes were; an
exception that is no ``MeshError``, or a broken invariant, is a finding. ``run.py`` drives them with atheris,
``test_fuzz.py`` with hypothesis."""

from __future__ import annotations

from collections.abc import Callable

from dice import Dice
from targets_client import feed, protocol
from targets_node import partition, router

from mesh.core import keys, slots, wire
from mesh.core.commandline import refused_command
from mesh.core.redact import Redactor
from mesh.errors import MeshError

REDACTOR = Redactor(replacement="categorized")


def header(data: bytes) -> None:
    """A payload's 40 bytes: refused, or written back byte for byte."""
    try:
        found = wire.decode_header(data)
    except MeshError:
        return
    assert wire.encode_header(**found._asdict()) == data[: wire.HEADER_BYTES]


def body(data: bytes) -> None:
    """Bodies: requests and replies are refused or become values that a client and a node read alike."""
    calls = _or_none(lambda: wire.decode_calls(data))
    if calls is not None:
        assert all(type(op) is str and type(args) is list for op, args in calls)
    reply = _or_none(lambda: wire.unpack_reply(bytes(wire.HEADER_BYTES) + data))
    if reply is not None:
        _or_none(lambda: wire.check_depth(reply))
        again = _or_none(lambda: wire.pack(reply))
        assert again is None or wire.unpack_reply(bytes(wire.HEADER_BYTES) + again) is not None


def _or_none(work: Callable[[], object]) -> object:
    try:
        return work()
    except MeshError:
        return None


def key(data: bytes) -> None:
    """Keys: a text is refused, or it is the one text of its key; fields come back as they were."""
    text = data.decode("utf-8", "surrogatepass" if data[:1] < b"\x80" else "replace")
    try:
        parsed = keys.parse(text)
        assert str(parsed) == text and keys.check_text(text) == text
        assert slots.route_slot(text) == slots.route_slot(str(parsed.room_scope()))
    except (MeshError, UnicodeDecodeError):
        pass
    dice = Dice(data)
    try:
        made = keys.validate([text[i::4] or None for i in range(4)] if dice.below(2) else dice.value())
    except MeshError:
        return
    assert keys.parse(str(made)) == made == keys.parse(keys.check_text(str(made)))


def commandline(data: bytes) -> None:
    """Command lines of the shell provider: judged or refused, and a denied first word never passes."""
    line = data.decode("utf-8", "replace")
    refused_command(line, frozenset(("echo", "ls")), None)
    refused_command(line, frozenset(("echo",)), frozenset(("rm",)))
    assert refused_command(f"rm {line}", None, frozenset(("rm",))) is not None


def redact(data: bytes) -> None:
    """Texts: however they are cut, they give what the whole gives; a second time changes nothing."""
    text = data.decode("utf-8", "surrogatepass")[1:]
    step = data[0] % 30 + 1 if data else 1
    whole = REDACTOR.text(text)
    assert REDACTOR.text(whole) == whole
    stream = REDACTOR.stream()
    assert stream is not None
    pieces = [stream.feed(text[at : at + step]) for at in range(0, len(text), step)]
    assert "".join(pieces) + stream.end() == whole


def ignoring_bad_text(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Bytes that are no text at all are no case of a target about texts."""

    def guarded(data: bytes) -> None:
        try:
            data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            data = data.decode("latin-1").encode()
        target(data)

    return guarded


TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": header,
    "body": body,
    "key": ignoring_bad_text(key),
    "commandline": commandline,
    "redact": ignoring_bad_text(redact),
    "protocol": protocol,
    "feed": feed,
    "router": router,
    "partition": partition,
}

__all__ = ["TARGETS"]
