"""A whole node inside a program: real processes that live as long as the program, and no longer."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mesh.config import NodeConfig, load
from mesh.errors import ConfigError, MeshError
from mesh.launch import Begun, Spawned, abandon, spawn_node, wait_ready

if TYPE_CHECKING:
    from mesh.client.aio import AsyncClient
    from mesh.client.blocking import Client

#: Three stages may each need their ``stop_timeout_s``; then the supervisor itself is killed.
_STAGES = 3
_CLOSE_GRACE_S = 2.0


class LocalNode:
    """Start a node for this program; a context manager, or ``start`` and ``close``.

    Its supervisor is a process of its own. It ends with ``close``, with this object, and with this program,
    even by ``kill -9``. Without ``data_dir`` its data are temporary and removed at the end. ``config`` has
    the shape of the TOML file; what it says in ``[node]`` comes before ``partitions`` and ``runners``.

    Raises:
        MeshError: the node refused to start, or did not and was silent for 30 s; nothing is left running.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        partitions: int = 2,
        runners: int = 1,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(config, Mapping | None):
            raise ConfigError(
                f"config must be a map in the shape of the TOML file, not {type(config).__name__}",
                details={"hint": 'tomllib.loads(Path("mesh.toml").read_text())'},
            )
        given = dict(config or {})
        if not isinstance(given.setdefault("node", {}), Mapping):
            raise ConfigError("config['node'] must be a map of settings")
        given["node"] = {"port": 0, "partitions": partitions, "runners": runners, **given["node"]}
        if data_dir is None:
            data_dir = given["node"].pop("data_dir", None) or None
        self._config = load(overrides=given)
        self._given = data_dir
        self._data_dir = None if data_dir is None else Path(data_dir).expanduser().resolve()
        self._found: dict[str, Any] | None = None
        self._end: weakref.finalize[[NodeConfig, Spawned, Path | None, int], LocalNode] | None = None

    def start(self, begun: Begun | None = None) -> LocalNode:
        """Start the node and wait until it serves. Starting a running one changes nothing.

        ``begun`` is a process that waits for it (``launch.begin_node``), and its temporary folder. One that
        is of no use, since this node runs or has another folder, ends.
        """
        running = self._end is not None and self._end.alive
        if begun is not None and (running or self._given is not None):
            begun.drop()
            begun = None
        if running:
            return self
        temporary = None
        if self._given is None:
            temporary = begun.data_dir if begun else Path(tempfile.mkdtemp(prefix="mesh-")).resolve()
        self._data_dir = temporary or self._data_dir
        assert self._data_dir is not None
        try:
            spawned = spawn_node(self._config, self._data_dir, by_name=False, begun=begun)
            self._end = weakref.finalize(self, _end, self._config, spawned, temporary, os.getpid())
            import_module("mesh.client.blocking")  # while the node imports what it needs, so do we
            self._found = wait_ready(spawned)
        except BaseException:
            self.close()
            _remove(temporary)
            raise
        return self

    def close(self) -> None:
        """Stop the node in order and wait for its end. Harmless when repeated, or before ``start``."""
        self._found = None
        if self._end is not None:
            self._end()

    def __enter__(self) -> LocalNode:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where clients on this machine connect."""
        return str(self._running()["ipc"])

    @property
    def feed_address(self) -> str:
        """Where listeners on this machine subscribe."""
        return str(self._running()["feed_ipc"])

    @property
    def tcp_address(self) -> str:
        """Where clients on other machines connect, if ``node.host`` lets them."""
        return str(self._running()["address"])

    @property
    def pid(self) -> int:
        """The supervisor's process."""
        return int(self._running()["pid"])

    @property
    def data_dir(self) -> Path:
        """Where its data are; a temporary folder vanishes at the end."""
        if self._data_dir is None:
            raise _not_running()
        return self._data_dir

    def client(self, **options: Any) -> Client:
        """A blocking client of this node; options are those of ``mesh.Client``."""
        from mesh.client.blocking import Client

        return Client(self.address, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        """An asyncio client of this node; options are those of ``mesh.AsyncClient``."""
        from mesh.client.aio import AsyncClient

        return AsyncClient(self.address, **options)

    def _running(self) -> dict[str, Any]:
        if self._found is None:
            raise _not_running()
        return self._found


def _not_running() -> MeshError:
    message = "this LocalNode is not running: use it in a with block, or call start()"
    return MeshError(message, code="node_unreachable")


def _end(config: NodeConfig, spawned: Spawned, temporary: Path | None, owner: int) -> None:
    """End the node, once. A forked copy of the program does not own it."""
    if os.getpid() != owner:
        return
    abandon(spawned, timeout_s=_STAGES * config.supervision.stop_timeout_s + _CLOSE_GRACE_S)
    _remove(temporary)


def _remove(temporary: Path | None) -> None:
    if temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)


__all__ = ["LocalNode"]
