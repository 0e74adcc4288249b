"""The event proxy: a C loop in a thread that copies what partitions publish to whoever subscribed."""

from __future__ import annotations

import threading

import zmq

from mesh.net import sockets


def start_proxy(
    ctx: zmq.Context[zmq.Socket[bytes]], upstream: list[str], downstream: list[str]
) -> tuple[threading.Thread, list[str]]:
    """Bind both sides and start copying; returns the thread and the bound downstream endpoints.

    The proxy lives as long as the process. Its loop holds no Python lock.

    Raises:
        zmq.ZMQError: an endpoint is in use or not ours.
    """
    xsub, xpub = sockets.proxy_sockets(ctx)
    for endpoint in upstream:
        xsub.bind(endpoint)
    bound = [bind(xpub, endpoint) for endpoint in downstream]

    def copy() -> None:
        try:
            zmq.proxy(xsub, xpub)
        except zmq.ZMQError:
            pass  # the context ended with the process
        finally:
            xsub.close(0)
            xpub.close(0)

    thread = threading.Thread(target=copy, name="feed-proxy", daemon=True)
    thread.start()
    return thread, bound


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind and return the real endpoint (port 0 picks a free one)."""
    if endpoint.endswith(":0"):
        endpoint = endpoint[:-1] + "*"
    socket.bind(endpoint)
    return socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]


__all__ = ["bind", "start_proxy"]
