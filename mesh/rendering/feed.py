"""A feed of what is rendered: for listeners in other programs, or any bus that has a publish function.

The node's own feed has every stored event already (``client.listen``). This one carries what a program makes
of them, under topics of its choice, with the rendered text if it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mesh.core.records import Event
from mesh.errors import InvalidArgument, shown
from mesh.rendering.sinks import Sink

SCOPES = ("session", "run", "type")


class FeedSink(Sink):
    """Publishes each event under a topic; counts ``published`` and ``errors``, and raises nothing meanwhile.

    ``target`` is an endpoint to publish at (``tcp://127.0.0.1:7600``, ``ipc://...``), in the form of the
    node's feed: ``[topic][msgpack map]``; or a function of topic and message. The topic is ``topic``, or what
    ``topic_of(event)`` says (one or several), or by ``scope``: ``prefix.session.<sid>``, with
    ``.run.<run id>`` or ``.type.<type>`` behind it. A message is the event's map; ``include_text`` adds
    ``text``. Publishing is best effort, as every feed: who listens too late, or too slowly, reads the log.

    Raises:
        InvalidArgument: an unknown scope, both ``topic`` and ``topic_of``, or what is no target.
    """

    def __init__(
        self,
        target: str | Callable[[str, dict[str, Any]], Any],
        *,
        topic: str | None = None,
        topic_of: Callable[[Event], str | Sequence[str]] | None = None,
        scope: str = "session",
        prefix: str = "mesh",
        include_text: bool = False,
    ) -> None:
        if topic is not None and topic_of is not None:
            raise InvalidArgument("a feed has either topic or topic_of")
        if scope not in SCOPES:
            raise InvalidArgument(f"scope is one of {', '.join(SCOPES)}, not {shown(scope)}")
        if not callable(target) and not isinstance(target, str):
            raise InvalidArgument(f"a feed publishes at an endpoint or by a function, not {shown(target)}")
        self.name = f"feed({target if isinstance(target, str) else 'a function'})"
        self.published = 0
        self.errors = 0
        self.endpoint: str | None = None  #: where it publishes, once it is open
        self._target = target
        self._topics = topic_of or _topics_of(topic, scope, prefix)
        self._include_text = include_text
        self._publish: Callable[[str, dict[str, Any]], Any] | None = None
        self._socket: Any = None

    def open(self) -> None:
        """Bind the endpoint.

        Raises:
            InvalidArgument: nobody can publish there.
        """
        if not isinstance(self._target, str):
            self._publish = self._target
            return
        from mesh.net.publisher import Publisher

        self._socket = Publisher(self._target)
        self.endpoint = self._socket.endpoint
        self._publish = self._socket.publish

    def write(self, event: Event, text: str) -> None:
        """Publish it."""
        assert self._publish is not None
        message = event.to_map() | ({"text": text} if self._include_text else {})
        try:
            named = self._topics(event)
            for topic in (named,) if isinstance(named, str) else named:
                self._publish(topic, message)
                self.published += 1
        except Exception:  # noqa: BLE001 - counted: a bus that is away for a moment is no end
            self.errors += 1

    def close(self) -> None:
        """Give the endpoint back."""
        if self._socket is not None:
            self._socket.close()


def _escaped(identifier: str) -> str:
    """An id in a topic, as on the node's feed: ``.`` separates."""
    return identifier.replace(".", "%2E")


def _topics_of(topic: str | None, scope: str, prefix: str) -> Callable[[Event], str]:
    def of(event: Event) -> str:
        if topic is not None:
            return topic
        base = f"{prefix}.session.{_escaped(event.session_id)}"
        if scope == "run":
            return f"{base}.run.{_escaped(event.run_id or '-')}"
        return f"{base}.type.{event.type}" if scope == "type" else base

    return of


__all__ = ["SCOPES", "FeedSink"]
