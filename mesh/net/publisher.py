"""A PUB socket for programs: messages in the form of the node's feed, at an endpoint of their own."""

from __future__ import annotations

from typing import Any

import zmq

from mesh.core.wire import pack
from mesh.errors import InvalidArgument
from mesh.net import feed, sockets


class Publisher:
    """Bound at an endpoint; port 0 picks a free one. For one thread.

    Raises:
        InvalidArgument: the endpoint is wrong, in use, or not ours.
    """

    def __init__(self, endpoint: str) -> None:
        self._context = sockets.context()
        self._socket = sockets.broadcast_socket(self._context)
        try:
            self.endpoint = feed.bind(self._socket, endpoint)
        except zmq.ZMQError as exc:
            self.close()
            raise InvalidArgument(f"cannot publish at {endpoint}: {exc.strerror}") from exc

    def publish(self, topic: str, message: dict[str, Any]) -> None:
        """Send it to whoever subscribed; nobody is waited for."""
        self._socket.send_multipart([topic.encode(), pack(message)], zmq.NOBLOCK)

    def close(self) -> None:
        """End it; what was not taken yet has a moment."""
        self._socket.close(sockets.BROADCAST_LINGER_MS)
        self._context.term()


__all__ = ["Publisher"]
