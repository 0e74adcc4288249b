"""The router process: moves frames as ``core/router.py`` decides, and runs the event proxy beside it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from mesh.core import mailbox, wire
from mesh.core.mailbox import ChildState
from mesh.core.router import Actor, Router
from mesh.errors import MeshError, RemoteProtocolError
from mesh.net import sockets
from mesh.net.feed import bind, start_proxy
from mesh.net.window import SMALL_BYTES, Window
from mesh.node.child import Child

#: Frames taken from the actors before the clients get their turn: all that waits, as a rule.
BACK_MAX = 1_024
#: Requests taken from the clients before the answers are looked at again. Fewer, since what waits in front is
#: in a pipe of each client's own, served in turn by ZeroMQ; behind, everybody stands in one line.
FRONT_MAX = 32
#: A tick sends heartbeats and forgets silent clients.
TICK_S = 0.5

READ, WAIT = int(wire.Kind.READ), int(wire.Kind.WAIT)


class RouterProcess:
    """Sockets and clock around the pure router."""

    def __init__(self, child: Child) -> None:
        self.child = child
        limits = child.config.limits
        self.core = Router(
            slot_map=child.slot_map,
            map_version=child.map_version,
            boot=child.incarnation,
            runners=child.config.hosting().count,
            inflight_max=limits.inflight_per_partition,
            inflight_bytes_max=limits.inflight_bytes_per_partition,
            waits_max=limits.waiters_per_partition,
        )
        self.children: list[dict[str, Any]] = []
        self.started = time.monotonic()
        self.stopping = False
        self.windows: dict[bytes, Window] = {}  #: of clients that were sent more than a little
        self.unread = 0  #: the bytes in them
        ctx = sockets.context(patient=True)
        self.front = sockets.router_socket(ctx, frame_bytes=limits.frame_bytes)
        # Twice what may be open: libzmq tells of room in steps of half the mark.
        most = 2 * (limits.inflight_per_partition + limits.waiters_per_partition)
        self.back = sockets.router_socket(ctx, hwm=min(most, sockets.HWM_MAX))
        node = child.config.node
        # A router that was started again binds where its predecessor did: remote clients know nothing else.
        self.address = bind(self.front, child.address or f"tcp://{node.host}:{node.port}")
        bind(self.front, child.front_endpoint)
        bind(self.back, child.back_endpoint)
        feed_port = node.port + 1 if node.port else 0
        feed = child.feed or f"tcp://{node.host}:{feed_port}"
        _, bound = start_proxy(ctx, [child.feed_in_endpoint], [feed, child.feed_endpoint])
        self.feed_address = bound[0]
        self.publisher = sockets.announcer_socket(ctx, child.feed_in_endpoint)
        self._to_clients, self._to_actors = sockets.sender(self.front), sockets.sender(self.back)
        self.poller = sockets.Poller()
        self.poller.register(self.front, sockets.POLLIN)
        self.poller.register(self.back, sockets.POLLIN)
        self.poller.register(child.control.fileno(), sockets.POLLIN)
        self._hello = b""

    # --- the loop ---

    def serve(self) -> None:
        """Forward until told to stop, or until the supervisor is gone."""
        child, core = self.child, self.core
        child.control.send(
            "ready", epoch=child.incarnation, pid=os.getpid(), address=self.address, feed=self.feed_address
        )
        control_fd = child.control.fileno()
        next_tick = 0.0
        while not self.stopping:
            ready = dict(self.poller.poll(core.pace.timeout_ms(TICK_S)))
            if control_fd in ready:
                self._take_control()
            now_s = core.pace.now_s = time.monotonic()
            if self.back in ready:
                self._drain_back()
            if self.front in ready:
                self._drain_front(now_s)
            if core.pace.due():
                for actor in core.partitions:
                    self._fill(actor)
            if core.owed:
                self._pay()
            if now_s >= next_tick:
                next_tick = now_s + TICK_S
                child.control.send("beat", lag_ms=0)
                self.core.forget_silent(now_s)
                self._settle_windows()

    def _drain_front(self, now_s: float) -> None:
        front, core, heard = self.front, self.core, self.core.heard
        recv, nowait = front.recv, sockets.NOWAIT
        look: Any = front.getsockopt
        now_ms = time.monotonic_ns() // 1_000_000
        for _ in range(FRONT_MAX):
            try:
                client = recv(nowait)
            except sockets.Again:
                return
            payload = recv(nowait)
            core.counters["requests"] += 1
            if look(sockets.RCVMORE):
                payload = b""  # one frame is the protocol: what follows is thrown away, the refusal says so
                while look(sockets.RCVMORE):
                    recv(nowait)
            heard[client] = now_s
            kind = payload[3] if len(payload) > 3 else 0
            try:
                if not READ <= kind <= WAIT or len(client) != wire.CLIENT_ID_BYTES or not client[0]:
                    self._reply(client, self._own(client, payload))
                else:
                    identity, frame, actor = core.on_client(client, payload, now_ms)
                    if identity is not None:
                        self._forward(identity, frame, actor)
                    elif frame:
                        self._reply(client, frame)
            except MeshError as error:
                self._reply(client, core.refusal(payload, error))

    def _forward(self, identity: bytes, frame: bytes, actor: Actor | None) -> None:
        try:
            self._to_actors(identity, sockets.MORE)
            self._to_actors(frame, sockets.NOWAIT)
        except sockets.ZMQError as exc:
            assert actor is not None
            answer = self.core.undelivered(actor, frame, full=isinstance(exc, sockets.Again))
            self._reply(frame[: wire.CLIENT_ID_BYTES], answer)

    def _fill(self, actor: Actor) -> None:
        """Send what waits, of all clients in turn, while there is room."""
        while actor.identity is not None and (frame := actor.credit.next()) is not None:
            self._forward(actor.identity, frame, actor)

    def _pay(self) -> None:
        owed, self.core.owed = self.core.owed, []
        for client, answer in owed:
            self._reply(client, answer)

    def _reply(self, client: bytes, payload: bytes) -> None:
        try:
            self._to_clients(client, sockets.MORE)
            self._to_clients(payload, sockets.NOWAIT)
        except sockets.Again:
            self.core.counters["slow_clients"] += 1  # it does not read; its own resend asks again
        except sockets.ZMQError:
            self.core.counters["undeliverable"] += 1  # it left

    def _drain_back(self) -> None:
        core, recv, send = self.core, self.back.recv, self._to_clients
        more, nowait = sockets.MORE, sockets.NOWAIT
        for _ in range(BACK_MAX):
            try:
                identity = recv(nowait)
            except sockets.Again:
                return
            frame = recv(nowait)
            if identity not in core.by_identity:
                self._from_stranger(identity, frame)
            elif not frame[0]:
                self._from_actor(identity, frame)
            elif core.on_reply(identity, frame):
                core.counters["replies"] += 1
                if len(frame) > SMALL_BYTES:
                    self._reply_large(frame)
                else:
                    try:
                        send(frame[:16], more)
                        send(frame[16:], nowait)
                    except sockets.Again:
                        core.counters["slow_clients"] += 1
                    except sockets.ZMQError:
                        core.counters["undeliverable"] += 1

    def _from_actor(self, identity: bytes, frame: bytes) -> None:
        """An actor's word to the router, or to another actor."""
        if frame[1:2] == mailbox.ROUTER:
            self._on_own_message(identity, frame[wire.CLIENT_ID_BYTES :])
        else:
            forward = self.core.on_actor(identity, frame)
            if forward is not None:
                self._send_actor(*forward)

    def _reply_large(self, frame: bytes) -> None:
        """Pass a reply on unless its client, or all of them, left too much unread."""
        client, reply = frame[: wire.CLIENT_ID_BYTES], memoryview(frame)[wire.CLIENT_ID_BYTES :]
        limits = self.child.config.limits
        window = self.windows.get(client)
        if window is None:
            window = self.windows[client] = Window()
        self.unread -= window.settle()
        over = (
            window.bytes + len(reply) > limits.unread_bytes_per_client
            or self.unread + len(reply) > limits.unread_bytes
        )
        if over and window.waiting:  # who reads what he is given gets at least one at a time
            refusal = self.core.unread(reply, window.bytes)
            if refusal is not None:
                self._reply(client, refusal)
            return
        try:
            self.front.send(client, sockets.MORE)
            window.send(self.front, reply)
            self.unread += len(reply)
        except sockets.Again:
            self.core.counters["slow_clients"] += 1
        except sockets.ZMQError:
            self.core.counters["undeliverable"] += 1

    def _settle_windows(self) -> None:
        """Once a tick: what was read meanwhile, and who has nothing waiting."""
        for client, window in list(self.windows.items()):
            self.unread -= window.settle()
            if not window.waiting:
                self.unread -= window.bytes
                del self.windows[client]

    def _from_stranger(self, identity: bytes, frame: bytes) -> None:
        """Who holds no place can say READY; all else is counted. It may be several frames, of any length."""
        whole = not self.back.getsockopt(sockets.RCVMORE)
        while self.back.getsockopt(sockets.RCVMORE):
            self.back.recv(sockets.NOWAIT)
        if not whole or len(frame) <= wire.CLIENT_ID_BYTES:
            self.core.counters["malformed"] += 1
        elif frame[0]:
            self.core.on_reply(identity, frame)
        elif frame[1:2] == mailbox.ROUTER:
            self._on_own_message(identity, frame[wire.CLIENT_ID_BYTES :])
        else:
            self.core.on_actor(identity, frame)

    def _send_actor(self, identity: bytes, frame: bytes) -> bool:
        try:
            self._to_actors(identity, sockets.MORE)
            self._to_actors(frame, sockets.NOWAIT)
        except sockets.ZMQError:
            self.core.counters["undeliverable"] += 1  # actors resend what was not acknowledged
            return False
        return True

    # --- the router's own conversations ---

    def _own(self, client: bytes, payload: bytes) -> bytes:
        """Answer a header-only request."""
        header = wire.decode_header(payload)
        if len(client) != wire.CLIENT_ID_BYTES or not client[0]:  # a zero begins the ids of our own actors
            raise RemoteProtocolError(
                f"a client's routing id has {wire.CLIENT_ID_BYTES} bytes, the first not 0; not {len(client)}"
            )
        if not wire.Kind.HELLO <= header.kind <= wire.Kind.RESTART_RUNNER:
            raise RemoteProtocolError(f"unknown kind of payload {header.kind}")
        match header.kind:
            case wire.Kind.HELLO:
                return self.core.answer(payload, self._hello_body())
            case wire.Kind.STATUS:
                return self.core.answer(payload, wire.pack(self.status()))
            case wire.Kind.RESTART:
                self.core.restarts(header.address)
                self.child.control.send("restart", name=f"partition-{header.address}")
            case wire.Kind.RESTART_RUNNER:
                self.core.restarts_runner(header.address)
                self._tell_partitions()
                self.child.control.send("restart", name=f"runner-{header.address}")
            case wire.Kind.NOTE:
                self.core.check_partition(header.address)
                self._publish(
                    "route.unavailable", partition=header.address, count=1, component="session_manager"
                )
        return self.core.answer(payload, wire.pack(None))

    def _hello_body(self) -> bytes:
        if not self._hello:
            config = self.child.config
            self._hello = wire.pack(
                {
                    "node": config.node.name,
                    "boot": self.core.boot,
                    "version": wire.VERSION,
                    "map_version": self.core.map_version,
                    "slots": self.core.slot_map,
                    "partitions": len(self.core.partitions),
                    "runners": len(self.core.runners),
                    "address": self.address,
                    "feed": self.feed_address,
                    "feed_ipc": self.child.feed_endpoint,
                    "fallback_after_ms": config.routes.fallback_after_ms,
                    "frame_bytes": config.limits.frame_bytes,
                }
            )
        return self._hello

    def status(self) -> dict[str, Any]:
        """The node as ``mesh status`` shows it."""
        child = self.child
        return {
            "node": child.config.node.name,
            "pid": os.getppid(),
            "data_dir": str(child.data_dir),
            "boot": child.node_boot,
            "uptime_s": round(time.monotonic() - self.started, 3),
            "endpoints": {
                "address": self.address,
                "feed": self.feed_address,
                "ipc": child.front_endpoint,
                "feed_ipc": child.feed_endpoint,
            },
            "router": {**self.core.counters, "pid": os.getpid(), "clients": len(self.core.heard),
                       "unread_bytes": self.unread},
            "children": self.children,
            "partitions": self.core.partition_rows(),
            "runners": self.core.runner_rows(),
        }

    def _on_own_message(self, identity: bytes, body: bytes) -> None:
        message = self.core.on_own(identity, body)
        match message[0] if message else None:
            case "ready":
                assert message is not None
                actor = self.core.on_ready(identity, message)
                if actor is not None:
                    self._fill(actor)
                    if not actor.welcomed:
                        self._welcome(actor)
            case "took" if identity in self.core.by_identity:
                assert message is not None
                actor = self.core.by_identity[identity]
                actor.credit.took(message[1])
                self._fill(actor)
            case "bye":
                actor = self.core.by_identity.get(identity)
                if actor is not None:
                    self._lost(actor)

    def _welcome(self, actor: Actor) -> None:
        welcome = ["welcome", self.core.boot, self.core.map_version, self.core.slot_map]
        actor.welcomed = self._tell(actor, welcome) and self._tell(
            actor, ["roster", self.core.runner_roster()]
        )
        if actor.kind == mailbox.RUNNER:
            self._tell_partitions()

    def _tell(self, actor: Actor, message: list[Any]) -> bool:
        if actor.identity is None:
            return False
        return self._send_actor(actor.identity, wire.ROUTER_ID + bytes(8) + wire.pack(message))

    def _tell_partitions(self) -> None:
        roster = ["roster", self.core.runner_roster()]
        for partition in self.core.partitions:
            if not self._tell(partition, roster):
                partition.welcomed = False  # its next READY is answered with the roster

    def _lost(self, actor: Actor) -> None:
        frame = self.core.gone_frame(actor)
        self.core.on_gone(actor)
        if actor.kind == mailbox.PARTITION:
            for client in list(self.core.heard):
                self._reply(client, frame)
        else:
            self._tell_partitions()

    # --- the supervisor's word ---

    def _take_control(self) -> None:
        messages = self.child.control.receive()
        if self.child.control.closed or any(m["t"] == "stop" for m in messages):
            self.stopping = True
        rosters = [m["children"] for m in messages if m["t"] == "roster"]
        if not rosters:
            return
        self.children = rosters[-1]
        holders = {id(a): (a.identity, a.incarnation) for a in (*self.core.partitions, *self.core.runners)}
        changed = self.core.on_roster(self.children)
        for actor, former in changed:
            if (
                holders[id(actor)][0] is not None
                and actor.identity is None
                and actor.kind == mailbox.PARTITION
            ):
                frame = self.core.gone_frame(actor)
                for client in list(self.core.heard):
                    self._reply(client, frame)
            self._announce(actor, former)
        if any(actor.kind == mailbox.RUNNER for actor, _ in changed):
            self._tell_partitions()

    def _announce(self, actor: Actor, former: dict[str, Any]) -> None:
        """Publish a child's change of state on ``node.``."""
        now = actor.roster
        if former["state"] == now["state"]:
            return
        kind = "partition" if actor.kind == mailbox.PARTITION else "runner"
        what = {
            ChildState.READY: "restarted" if now["restarts"] else "started",
            ChildState.RESTARTING: "exited",
            ChildState.DOWN: "down",
        }.get(ChildState(now["state"]))
        if what is not None:
            self._publish(
                f"node.{kind}_{what}",
                partition=actor.index if kind == "partition" else None,
                index=actor.index,
                pid=now["pid"],
                epoch=actor.incarnation,
                cause=now["cause"],
                restarts=now["restarts"],
                agent=now.get("agent"),
            )

    def _publish(self, topic: str, **fields: Any) -> None:
        body = wire.pack({"ts": time.time(), "node": self.child.config.node.name, "epoch": 0, **fields})
        try:
            self.publisher.send(topic.encode(), sockets.MORE)
            self.publisher.send(body, sockets.NOWAIT)
        except sockets.ZMQError:
            self.core.counters["undeliverable"] += 1  # node.* and route.* are best effort


def main(child: Child) -> None:
    """Run the router until it is told to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the control pipe says stop; the router goes last
    try:
        process = RouterProcess(child)
    except sockets.ZMQError as exc:
        node = child.config.node
        child.control.send(
            "fatal",
            message=f"cannot listen on {node.host}:{node.port} and {node.port + 1}: {exc.strerror}; "
            "choose another with --port (0 picks free ones)",
        )
        raise SystemExit(1) from exc
    process.serve()


__all__ = ["RouterProcess", "main"]
