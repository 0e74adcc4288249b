"""The node's settings: typed, checked once, frozen. Nothing else reads files or the environment for them.

Order: defaults, then the TOML file, then ``MESH_SECTION_KEY`` in the environment, then what the program
said (command line or ``LocalNode(config=...)``). A wrong value or an unknown key is refused with its name
and the nearest name; nothing is replaced by a default in silence.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

import msgspec

from mesh.core.events import TYPE_CODE
from mesh.core.hosting import OWN_MAX, SHARED_MAX, Hosting, check_word
from mesh.core.prices import Prices
from mesh.core.records import SessionStatus
from mesh.core.redact import MARKER, Redactor
from mesh.core.session import SLOTS_MAX
from mesh.core.slots import PARTITIONS_MAX
from mesh.core.wire import EVENT_BYTES_MAX, FRAME_BYTES_MAX
from mesh.errors import ConfigError

DURABILITIES = ("power", "process")


class NodeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[node]``: who and where."""

    name: str = "mesh"
    host: str = "127.0.0.1"
    port: int = 7400  #: requests; the feed is on port + 1; 0 picks two free ones
    data_dir: str = ""  #: "" means $XDG_STATE_HOME/mesh/<name>
    partitions: int = 2
    runners: int = 1  #: shared ones; an agent with isolation = "process" has one more


class RoutesSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[routes]``."""

    ttl_ms: int = 1_800_000
    guess_ttl_ms: int = 60_000  #: a caller's fallback that was written back lives this long at most
    max_entries_per_partition: int = 10_000
    prune_interval_ms: int = 30_000
    fallback_after_ms: int = 500
    expired_memory_max: int = 4_096  #: recent expiries remembered per partition
    durability: str = "process"


class SessionsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[sessions]``."""

    durability: str = "power"
    idle_timeout_s: float = 900.0
    native_idle_timeout_s: float = 14_400.0  #: of agents that keep a native process between runs
    max_live: int = 10_000
    queue_max: int = 100  #: runs that may wait in one session
    slots: int = 1  #: runs that one session executes at a time, unless it was made with another number


class RetentionSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[retention]``: what goes by itself (``node/retention.py``). 0 is never, or no bound."""

    interval_s: float = 3_600.0
    max_session_age_days: float = 0.0
    max_completed_session_age_days: float = 0.0
    hard_delete_after_days: float = 30.0
    max_events_per_session: int = 0
    max_total_events: int = 0
    exempt_statuses: list[str] = msgspec.field(default_factory=lambda: ["active", "paused"])
    exempt_tags: list[str] = msgspec.field(default_factory=lambda: ["pinned"])
    prune_event_types_first: list[str] = msgspec.field(
        default_factory=lambda: ["message_streamed", "token_usage_updated"])
    batch_size: int = 100  #: rows of one step
    audit_kept: int = 100_000  #: entries of the audit log kept per partition
    max_tag_age_days: float = 0.0  #: of what a tag used, since a run with it ended last
    archive_dir: str = ""  #: where what goes for good is written before; "": nowhere


class SupervisionSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[supervision]``: OTP's terms. Numbers: spec 2.8 (15 in 60 s), design 2."""

    intensity: int = 15
    period_s: float = 60.0
    backoff_ms: int = 10
    backoff_max_ms: int = 1_000
    heartbeat_s: float = 1.0
    hang_timeout_s: float = 10.0
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 5.0
    agent_block_timeout_s: float = 60.0


class LimitsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[limits]``: every queue, buffer and wait of the node has its bound here."""

    frame_bytes: int = 16 * 1024 * 1024
    inflight_per_partition: int = 4_096  #: payloads taken in and not answered
    inflight_bytes_per_partition: int = 256 * 1024 * 1024
    batch_bytes: int = 128 * 1024  #: work of one turn of a partition's loop
    unread_bytes: int = 512 * 1024 * 1024  #: replies that clients have not taken, all together
    unread_bytes_per_client: int = 64 * 1024 * 1024
    waiters_per_partition: int = 20_000
    waiters_per_client: int = 2_000
    receipts_per_client: int = 4_096
    client_silence_s: float = 900.0
    route_bytes: int = 64 * 1024
    input_bytes: int = 4 * 1024 * 1024
    page_bytes: int = 1024 * 1024
    feed_topics: int = 100_000  #: subscriptions known one by one; with more of them everything is published
    feed_message_bytes: int = 64 * 1024  #: a larger message is not published: listeners fetch it from the log
    lifecycle_kept: int = 100_000  #: lifecycle messages kept per partition for late listeners
    running: int = 10_000  #: runs that execute at a time, over all runners; the others wait
    runner_unacked_bytes: int = 16 * 1024 * 1024
    output_bytes: int = 4 * 1024 * 1024  #: of one run's joined text
    event_bytes: int = EVENT_BYTES_MAX  #: of one event, a tool's output mostly
    unstored_s: float = 60.0  #: a run whose events cannot be stored for so long is stopped
    workspace_files: int = 200_000  #: of a workspace that is a plain folder
    workspace_bytes: int = 1024 * 1024 * 1024  #: contents kept for rollbacks of plain folders, all together
    log_bytes: int = 4 * 1024 * 1024  #: per log file; one older file is kept


class RedactionSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[redaction]``: secrets are replaced by a marker wherever a text leaves (``core/redact.py``)."""

    enabled: bool = True
    replacement: str = MARKER  #: or "categorized": [REDACTED:category]
    patterns: list[Any] = []  #: your own: a regex, or {category, regex}
    replace_builtin: bool = False  #: only your own patterns count
    deep_scan: bool = True  #: all texts of an event's data; else only those fields that mostly hold text
    scan_metadata: bool = True

    def redactor(self) -> Redactor:
        """A redactor with these settings."""
        return Redactor(**msgspec.structs.asdict(self))


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All sections. ``agents`` maps a name to its table; each needs ``provider``."""

    node: NodeSection = NodeSection()
    routes: RoutesSection = RoutesSection()
    sessions: SessionsSection = SessionsSection()
    retention: RetentionSection = msgspec.field(default_factory=RetentionSection)
    supervision: SupervisionSection = SupervisionSection()
    limits: LimitsSection = LimitsSection()
    redaction: RedactionSection = RedactionSection()
    agents: dict[str, dict[str, Any]] = {}
    prices: dict[str, dict[str, Any]] = {}  #: provider -> its table; see ``core/prices.py``
    mcp: dict[str, dict[str, Any]] = {}  #: MCP server -> how it is reached
    source: str = ""  #: the TOML file this came from; ``agents.reload`` reads its agents again

    def hosting(self) -> Hosting:
        """The runners, and whose they are."""
        return Hosting(self.node.runners, self.agents)

    def to_map(self) -> dict[str, Any]:
        """Plain maps in the shape of the TOML file, as ``mesh config show`` prints them."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        del plain["source"]
        return plain

    def to_document(self) -> dict[str, Any]:
        """Everything, for the process that runs the node."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


#: key -> (lowest, highest) where it is not simply "greater than 0".
_RANGES: dict[tuple[str, str], tuple[float, float]] = {
    ("node", "port"): (0, 65534),
    ("node", "partitions"): (1, PARTITIONS_MAX),
    ("node", "runners"): (1, SHARED_MAX),
    ("sessions", "idle_timeout_s"): (0, 10**9),
    ("sessions", "native_idle_timeout_s"): (0, 10**9),
    ("sessions", "queue_max"): (0, 10**6),
    ("sessions", "slots"): (1, SLOTS_MAX),
    ("retention", "max_session_age_days"): (0, 10**6),
    ("retention", "max_completed_session_age_days"): (0, 10**6),
    ("retention", "hard_delete_after_days"): (0, 10**6),
    ("retention", "max_tag_age_days"): (0, 10**6),
    ("retention", "max_events_per_session"): (0, 10**12),
    ("retention", "max_total_events"): (0, 10**12),
    ("retention", "batch_size"): (1, 10_000),
    ("routes", "expired_memory_max"): (0, 10**7),
    ("routes", "ttl_ms"): (1, 10**13),
    ("limits", "frame_bytes"): (1024, FRAME_BYTES_MAX),
    ("limits", "event_bytes"): (64 * 1024, EVENT_BYTES_MAX),
}
_CHOICES = {("routes", "durability"): DURABILITIES, ("sessions", "durability"): DURABILITIES}
#: Settings that are lists of texts; what may stand in them, None: anything.
_LISTS: dict[tuple[str, str], frozenset[str] | None] = {
    ("retention", "exempt_statuses"): frozenset(str(status) for status in SessionStatus),
    ("retention", "exempt_tags"): None,
    ("retention", "prune_event_types_first"): frozenset(TYPE_CODE),
}
#: What NodeConfig holds beside sections with fixed keys: three kinds of tables, and where it came from.
_FREE = ("agents", "prices", "mcp", "source")
_ENV_PREFIX = "MESH_"
#: MESH_ variables that are not settings.
_ENV_OTHER = frozenset(
    ("MESH_ADDRESS", "MESH_CONFIG", "MESH_DRIVER", "MESH_MARK", "MESH_PYTHON", "MESH_RUN", "MESH_RUNTIME_DIR",
     "MESH_TOKEN")
)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> NodeConfig:
    """Read, merge and check the settings.

    Raises:
        ConfigError: names the file (or the variable), the key and what is accepted.
    """
    merged: dict[str, dict[str, Any]] = {}
    if path is not None:
        _merge(merged, _read(Path(path)), str(path))
        _anchor_targets(merged, Path(path).resolve().parent)
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(_ENV_PREFIX) and name not in _ENV_OTHER:
            _merge(merged, _from_environ(name, text), name)
    if overrides:
        _merge(merged, overrides, "the program's settings")
    return _build(merged, "" if path is None else str(Path(path).resolve()))


def load_agents(path: str) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The agents of a config file as it is now, the built-in ones included, and its MCP servers.

    Raises:
        ConfigError: the file is broken; nothing of it should be used.
    """
    found = load(path, environ={})
    return found.agents, found.mcp


def default_data_dir(name: str) -> Path:
    """Where a node keeps its data when nobody said: the user's state directory."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "mesh" / name


def data_dir(config: NodeConfig) -> Path:
    """The node's data folder as an absolute path."""
    return Path(config.node.data_dir or default_data_dir(config.node.name)).expanduser().resolve()


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such file") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc


def _sections() -> dict[str, type[msgspec.Struct]]:
    return {f.name: f.type for f in msgspec.structs.fields(NodeConfig) if f.name not in _FREE}


def _merge(into: dict[str, dict[str, Any]], values: Mapping[str, Any], origin: str) -> None:
    known = _sections()
    for section, keys in values.items():
        if section not in (*known, *_FREE[:3]):
            names = (*known, *_FREE[:3])
            raise ConfigError(f"{origin}: unknown section [{section}]{_nearest(section, names)}")
        if not isinstance(keys, Mapping):
            raise ConfigError(f"{origin}: [{section}] must be a table, not {type(keys).__name__}")
        if section == "agents":
            agents = {name: _agent(name, table, origin) for name, table in keys.items()}
            into.setdefault("agents", {}).update(agents)
            continue
        if section == "mcp":
            servers = {name: _table(name, table, origin) for name, table in keys.items()}
            into.setdefault("mcp", {}).update(servers)
            continue
        if section == "prices":
            into.setdefault("prices", {}).update(_prices(keys, origin))
            continue
        fields = {f.name: f for f in msgspec.structs.fields(known[section])}
        for key, value in keys.items():
            if key not in fields:
                raise ConfigError(f"{origin}: unknown key {section}.{key}{_nearest(key, fields)}")
            into.setdefault(section, {})[key] = _value(section, key, value, fields[key].type, origin)


def _value(section: str, key: str, value: Any, wanted: Any, origin: str) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    name = f"{origin}: {section}.{key} = {_shown(value)}"
    if wanted is float and type(value) is int and abs(value) <= 10**15:
        value = float(value)
    if (section, key) in _LISTS:
        return _texts(name, value, _LISTS[section, key])
    wanted = get_origin(wanted) or wanted
    if type(value) is not wanted:
        raise ConfigError(f"{name}: expected {_TYPE_NAMES[wanted]}, not {type(value).__name__}")
    choices = _CHOICES.get((section, key))
    if choices and value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(sorted(choices))}")
    if wanted in (int, float):
        lowest, highest = _RANGES.get((section, key), (None, 10**15))
        if not ((value > 0 if lowest is None else value >= lowest) and value <= highest):
            bound = "more than 0" if lowest is None else f"from {lowest:g} to {highest:g}"
            raise ConfigError(f"{name}: expected a number {bound}")
    if section == "node" and key == "name" and not value.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{name}: expected letters, digits, - and _")
    return value


def _texts(name: str, value: Any, known: frozenset[str] | None) -> list[str]:
    """A list of texts; from the environment they are separated by commas."""
    if type(value) is str:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple) or not all(type(item) is str for item in value):
        raise ConfigError(f"{name}: expected a list of texts")
    for item in value:
        if known is not None and item not in known:
            raise ConfigError(f"{name}: {item!r:.60} is not known{_nearest(item, known)}")
    return list(value)


def _shown(value: Any) -> str:
    """A value for a message; an integer of thousands of digits has no repr."""
    try:
        return f"{value!r:.80}"
    except ValueError:
        return "a number too large to print"


_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list",
}


def _agent(name: str, table: Any, origin: str) -> dict[str, Any]:
    if not isinstance(table, Mapping) or not isinstance(table.get("provider"), str):
        raise ConfigError(f'{origin}: [agents.{name}] needs provider = "..." (such as "shell" or "python")')
    try:
        check_word(table)
    except ConfigError as exc:
        raise ConfigError(f"{origin}: agents.{name}: {exc.message}") from exc
    return dict(table)


def _table(name: str, table: Any, origin: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{origin}: [mcp.{name}] must be a table, not {type(table).__name__}")
    return dict(table)


def _prices(tables: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The tables of ``[prices]``, proven."""
    try:
        Prices(tables)
    except ConfigError as exc:
        raise ConfigError(f"{origin}: {exc.message}") from exc
    return dict(tables)


def _anchor_targets(merged: dict[str, dict[str, Any]], folder: Path) -> None:
    """A ``file.py:function`` in a config file is relative to that file, not to where mesh was started."""
    for table in merged.get("agents", {}).values():
        if "target" in table:
            table["target"] = _anchored(table["target"], folder)
        if isinstance(table.get("file"), str):  # of a recording
            table["file"] = str((folder / Path(table["file"]).expanduser()).resolve())
        if isinstance(table.get("tools"), list):
            table["tools"] = [_anchored(target, folder) for target in table["tools"]]


def _anchored(target: Any, folder: Path) -> Any:
    if not isinstance(target, str) or ":" not in target or not target.partition(":")[0].endswith(".py"):
        return target
    file, _, function = target.rpartition(":")
    return f"{(folder / Path(file).expanduser()).resolve()}:{function}"


def _from_environ(name: str, text: str) -> dict[str, Any]:
    known = _sections()
    section, _, key = name[len(_ENV_PREFIX):].lower().partition("_")
    if section not in known:
        raise ConfigError(f"{name}: no such setting{_nearest(section, known)}")
    fields = {f.name: f.type for f in msgspec.structs.fields(known[section])}
    value: Any = text
    if fields.get(key) in (int, float):
        try:
            value = fields[key](text)
        except ValueError:
            value = text
    elif get_origin(fields.get(key)) is list and (section, key) not in _LISTS:
        value = text.splitlines()
    elif fields.get(key) is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    return {section: {key: value}}


def _nearest(word: Any, names: Any) -> str:
    close = difflib.get_close_matches(str(word), list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(names))})"


def _build(merged: dict[str, dict[str, Any]], source: str) -> NodeConfig:
    sections: dict[str, Any] = {name: cls(**merged.get(name, {})) for name, cls in _sections().items()}
    _proven(sections["redaction"], source)
    agents = {"echo": {"provider": "echo"}, "shell": {"provider": "shell"}} | merged.get("agents", {})
    running, hosting = sections["limits"].running, Hosting(sections["node"].runners, agents)
    if len(hosting.own) > OWN_MAX:
        raise ConfigError(f'{len(hosting.own)} agents have isolation = "process"; at most {OWN_MAX} can')
    if running < (runners := hosting.count):
        raise ConfigError(f"limits.running = {running}: the node has {runners} runners, one run for each")
    return NodeConfig(**sections, agents=agents, prices=merged.get("prices", {}), mcp=merged.get("mcp", {}),
                      source=source)


def _proven(redaction: RedactionSection, source: str) -> None:
    """Refuse patterns and markers that cannot be."""
    try:
        redaction.redactor()
    except ConfigError as exc:
        raise ConfigError(f"{source or 'the settings'}: {exc.message}") from exc


__all__ = [
    "LimitsSection", "NodeConfig", "NodeSection", "RedactionSection", "RetentionSection", "RoutesSection",
    "SessionsSection", "SupervisionSection", "data_dir", "default_data_dir", "load", "load_agents",
]
