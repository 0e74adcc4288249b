"""Every socket of mesh is made here, with every option said once.

Facts this obeys (sources in the libzmq manual, zmq_setsockopt; pyzmq issues 1209, 1411, 1925):

- ROUTER drops what it cannot route, in silence, unless ROUTER_MANDATORY; and with MANDATORY a blocking
  send can wait for ever on a full peer that left (libzmq PR 4665). So: MANDATORY, and every send DONTWAIT.
- ROUTER refuses an identity that it already knows. HANDOVER lets a client that reconnects keep its id.
- A DEALER queues for a connection that is not there yet and delivers it late: IMMEDIATE=1 on work sockets.
- LINGER defaults to "for ever". We own what is unsent, so it is 0 everywhere.
- A socket belongs to one thread; a context does not survive fork.
- An asyncio loop watches ``socket.fileno()``, which is edge-triggered: after every send and recv the
  events are read again and drained until EAGAIN.
- Cancelling a pending recv may swallow a message, so time limits belong to futures, never to sockets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from mesh.core.wire import FRAME_BYTES_MAX

#: Frames that may wait in a pipe; the bound in requests is the router's, this one is for memory.
HWM_FRAMES = 10_000
#: No mark is set higher, whatever the limits in the config are.
HWM_MAX = 1_000_000
#: The feed's pipes into the proxy. For a slow listener the proxy and he himself keep ``HWM_FRAMES``; what he
#: loses he fetches by cursor.
FEED_HWM_FRAMES = 50_000
#: What listeners send to the feed: subscriptions. A longer topic costs the connection: libzmq keeps topics in
#: a tree of one level per byte and takes it down by recursion; one of a megabyte ended the process (SIGSEGV).
TOPIC_BYTES_MAX = 4096
#: So long a program's own feed goes on sending when it is closed.
BROADCAST_LINGER_MS = 500
#: Plain numbers: an operation on pyzmq's enumerations takes microseconds, and every frame needs some.
NOWAIT = int(zmq.NOBLOCK)
MORE = int(zmq.SNDMORE) | NOWAIT
POLLIN = int(zmq.POLLIN)
POLLOUT = int(zmq.POLLOUT)
EVENTS = int(zmq.EVENTS)
RCVMORE = int(zmq.RCVMORE)
#: What a full or vanished peer raises on a DONTWAIT send, and an empty socket on a DONTWAIT recv.
Again = zmq.Again
ZMQError = zmq.ZMQError
NotDone = zmq.NotDone
Socket = zmq.Socket
Context = zmq.Context
Poller = zmq.Poller


def context(*, patient: bool = False) -> zmq.Context[zmq.Socket[bytes]]:
    """A context of one IO thread. One per process; a child after fork makes its own.

    ``patient``: on Linux the IO thread runs as SCHED_BATCH: what arrives does not interrupt who is at work on
    a CPU. Under load it then finds several messages at once, where it was woken for each.
    """
    ctx = zmq.Context(io_threads=1)
    if patient and hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a sandbox may forbid it; then it is as without
            _begin_patiently(ctx)
    return ctx


def _begin_patiently(ctx: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Start the threads, which begin with the first socket and inherit from this one."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return  # somebody chose otherwise for the whole process
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        ctx.socket(zmq.PAIR).close(0)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _open(ctx: zmq.Context[zmq.Socket[bytes]], kind: int, hwm: int, frame_bytes: int) -> zmq.Socket[bytes]:
    socket = ctx.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes + 64)
    socket.copy_threshold = 0  # who asks for no copy gets none: see ``net/window.py``
    socket.setsockopt(zmq.RECONNECT_IVL, 10)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    return socket


def sender(socket: zmq.Socket[bytes]) -> Callable[[bytes, int], Any]:
    """The socket's send(frame, flags) without what pyzmq does for groups and trackers: 0.6 us of 1.6."""
    send: Callable[[bytes, int], Any] = super(zmq.Socket, socket).send
    return send


def receiver(socket: zmq.Socket[bytes]) -> Callable[[], list[bytes]]:
    """Take one message of several frames, or raise ``Again``: half of ``recv_multipart``'s time, most of
    which goes into asking the socket whether there are more."""
    recv: Callable[[int, bool], Any] = super(zmq.Socket, socket).recv

    def receive() -> list[bytes]:
        frame = recv(NOWAIT, False)
        frames = [frame.bytes]
        while frame.more:
            frame = recv(NOWAIT, False)
            frames.append(frame.bytes)
        return frames

    return receive


def router_socket(
    ctx: zmq.Context[zmq.Socket[bytes]], *, frame_bytes: int = FRAME_BYTES_MAX, hwm: int = HWM_FRAMES
) -> zmq.Socket[bytes]:
    """A ROUTER that says when it cannot deliver. Not bound yet."""
    socket = _open(ctx, zmq.ROUTER, hwm, frame_bytes)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    return socket


def dealer_socket(
    ctx: zmq.Context[zmq.Socket[bytes]],
    endpoint: str,
    routing_id: bytes,
    *,
    frame_bytes: int = FRAME_BYTES_MAX,
    hwm: int = HWM_FRAMES,
) -> zmq.Socket[bytes]:
    """The one mailbox of an actor, or a client's link: connects, and queues nothing while unconnected."""
    socket = _open(ctx, zmq.DEALER, hwm, frame_bytes)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.ROUTING_ID, routing_id)
    _keep_alive(socket, endpoint)
    socket.connect(endpoint)
    return socket


def publisher_socket(ctx: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """An XPUB towards the event proxy: it hears subscriptions, so nothing is encoded for nobody."""
    socket = _open(ctx, zmq.XPUB, FEED_HWM_FRAMES, FRAME_BYTES_MAX)
    socket.connect(endpoint)
    return socket


def announcer_socket(ctx: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A plain PUB towards the event proxy, for a few small messages."""
    socket = _open(ctx, zmq.PUB, FEED_HWM_FRAMES, FRAME_BYTES_MAX)
    socket.connect(endpoint)
    return socket


def broadcast_socket(ctx: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """A PUB of a program's own, to be bound: what a listener does not take is dropped, as on every feed."""
    return _open(ctx, zmq.PUB, HWM_FRAMES, FRAME_BYTES_MAX)


def subscriber_socket(ctx: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A listener's SUB on the feed; subscribe before relying on anything."""
    socket = _open(ctx, zmq.SUB, HWM_FRAMES, FRAME_BYTES_MAX)
    _keep_alive(socket, endpoint)
    socket.connect(endpoint)
    return socket


def proxy_sockets(ctx: zmq.Context[zmq.Socket[bytes]]) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """(XSUB towards the partitions, XPUB towards listeners) of the event proxy. Not bound yet."""
    return _open(ctx, zmq.XSUB, FEED_HWM_FRAMES, FRAME_BYTES_MAX), _open(
        ctx, zmq.XPUB, HWM_FRAMES, TOPIC_BYTES_MAX
    )


def _keep_alive(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Notice a dead TCP peer in seconds; over ipc the kernel tells at once."""
    if endpoint.startswith("tcp:"):
        socket.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6_000)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)


def version() -> tuple[str, str]:
    """(libzmq, pyzmq) versions, for ``mesh doctor``."""
    return zmq.zmq_version(), zmq.__version__
