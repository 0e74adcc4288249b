"""What both shells need to reach a node: its address, sockets by client id, and a fresh start after fork.

Rules of this file:

1. All clients of a process share one ZeroMQ context (one IO thread); the last link to close ends it.
2. A context does not survive fork. In the child every client forgets its link without touching it, and the
   next call makes a new one: new context, new sockets, new client id.
3. An address is looked up at the first call, and again after a failure: the node may start later.
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from typing import Any, Protocol

from mesh.core.wire import CLIENT_ID_BYTES
from mesh.errors import ConfigError, NodeUnreachable, shown
from mesh.net import sockets


class Forkable(Protocol):
    """A client that holds sockets."""

    def _forget_link(self) -> None:
        """Called in the child: drop everything that belongs to the parent, close nothing."""


class _Shared:
    """The process's context and how many links use it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  #: re-entrant: the collector may close a link at any moment
        self.context: Any = None
        self.links = 0
        self.clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self.lost: list[Any] = []  #: contexts of parents: never to be collected here, which would close them


_shared = _Shared()


def _after_fork_in_child() -> None:
    global _shared
    former, _shared = _shared, _Shared()
    _shared.lost = [*former.lost, former.context]
    _shared.clients = former.clients
    for client in list(former.clients):
        client._forget_link()


os.register_at_fork(after_in_child=_after_fork_in_child)


def register(client: Forkable) -> None:
    """Have a client told when it finds itself in a child."""
    _shared.clients.add(client)


def keep(parents: Any) -> None:
    """Never collect these sockets in a child: they are the parent's."""
    if parents is not None:
        _shared.lost.append(parents)


class Sockets:
    """The links of one client: usually one DEALER; a second while an expired identity runs out."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._pid = os.getpid()
        self._dealers: dict[bytes, Any] = {}
        self.context: Any = use_context()

    def dealer(self, client_id: bytes) -> Any:
        """The socket of a client id, connected at its first use."""
        found = self._dealers.get(client_id)
        if found is None:
            found = self._dealers[client_id] = sockets.dealer_socket(self.context, self.endpoint, client_id)
        return found

    def all(self) -> list[Any]:
        """Every open socket."""
        return list(self._dealers.values())

    def drop(self, client_id: bytes) -> Any:
        """Close the socket of an identity that has ended; returns it, or None."""
        found = self._dealers.pop(client_id, None)
        if found is not None:
            found.close(0)
        return found

    def close(self) -> None:
        """Close all sockets, and the context with the last link of the process. Idempotent."""
        if self.context is None or self._pid != os.getpid():
            return
        for client_id in list(self._dealers):
            self.drop(client_id)
        context, self.context = self.context, None
        release_context(context)

    __del__ = close


def use_context() -> Any:
    """The process's context, counted; give it back with ``release_context``."""
    with _shared.lock:
        _shared.links += 1
        if _shared.context is None:
            _shared.context = sockets.context()
        return _shared.context


def release_context(context: Any) -> None:
    """One user fewer; the last one ends the context."""
    with _shared.lock:
        if context is not _shared.context:
            return
        _shared.links -= 1
        if _shared.links:
            return
        _shared.context = None
    context.term()


def new_client_id() -> bytes:
    """16 random bytes whose first is not 0: 0 marks an actor."""
    random = secrets.token_bytes(CLIENT_ID_BYTES)
    return random if random[0] else b"\x01" + random[1:]


def endpoint_of(address: str | None) -> str:
    """The ZeroMQ endpoint of an address; None looks for the local node.

    Raises:
        NodeUnreachable: no address was given and no node runs here under that name.
        ConfigError: not an address.
    """
    if address is None:
        address = os.environ.get("MESH_ADDRESS") or None
    if address is None:
        return _local_endpoint(os.environ.get("MESH_NODE_NAME") or "mesh")
    full = address if "://" in address else f"tcp://{address}"
    scheme, _, rest = full.partition("://")
    host, _, port = rest.rpartition(":")
    good = bool(rest) if scheme == "ipc" else scheme == "tcp" and bool(host) and _is_port(port)
    if not good:
        raise ConfigError(
            f"not an address: {shown(address, 120)} (expected tcp://host:port, host:port or ipc://path)",
            details={"hint": "such as tcp://127.0.0.1:7400, or in $MESH_ADDRESS"},
        )
    return full


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535


def _local_endpoint(name: str) -> str:
    from mesh.launch import address_file, find_node

    found = find_node(name)
    if found is None:
        raise NodeUnreachable(
            f"no mesh node named {name!r} runs here ({address_file(name)}): start one with `mesh up`, "
            "or give an address",
            details={"name": name},
        )
    return str(found.get("ipc") or found["address"])


def feed_endpoint(endpoint: str, facts: dict[str, Any]) -> str:
    """Where to subscribe, given how the node was reached and what it said of itself."""
    if endpoint.startswith("ipc:") and facts.get("feed_ipc"):
        return str(facts["feed_ipc"])
    host = endpoint.rpartition(":")[0].removeprefix("tcp://")
    port = str(facts["feed"]).rpartition(":")[2]
    return f"tcp://{host}:{port}"


__all__ = [
    "Forkable",
    "Sockets",
    "endpoint_of",
    "feed_endpoint",
    "keep",
    "new_client_id",
    "register",
    "release_context",
    "use_context",
]
