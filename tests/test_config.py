"""Settings: what is wrong is named and refused, nothing is replaced in silence. And the table of errors."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

import mesh.errors
from mesh import config
from mesh.config import NodeConfig
from mesh.errors import (
    CODES,
    ConfigError,
    InvalidArgument,
    MeshError,
    NotFound,
    RequestError,
    category,
    from_wire,
)


def load(
    text: str | None = None, path: Path | None = None, environ: dict[str, str] | None = None, **sections: Any
) -> NodeConfig:
    if text is not None:
        assert path is not None
        path.write_text(text, encoding="utf-8")
    return config.load(path, environ=environ or {}, overrides=sections)


def refusal(**kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**kwargs)
    return caught.value.message


def test_defaults_are_the_promised_ones() -> None:
    """If nobody said anything, then these numbers hold (R36, 2.3, 2.8)."""
    found = load()
    assert (found.routes.ttl_ms, found.routes.max_entries_per_partition, found.routes.prune_interval_ms) == (
        1_800_000,
        10_000,
        30_000,
    )
    assert (found.routes.fallback_after_ms, found.routes.durability, found.sessions.durability) == (
        500,
        "process",
        "power",
    )
    assert (found.node.partitions, found.node.runners, found.node.port, found.node.host) == (
        2,
        1,
        7400,
        "127.0.0.1",
    )
    assert (found.supervision.intensity, found.supervision.period_s, found.supervision.backoff_max_ms) == (
        15,
        60.0,
        1_000,
    )
    assert found.agents == {"echo": {"provider": "echo"}, "shell": {"provider": "shell"}}


def test_later_sources_win_key_by_key(tmp_path: Path) -> None:
    """If file, environment and program speak of one section, then each key has its last word."""
    found = load(
        "[routes]\nttl_ms = 1\nguess_ttl_ms = 1\nprune_interval_ms = 1\n",
        tmp_path / "mesh.toml",
        {
            "MESH_ROUTES_TTL_MS": "2",
            "MESH_ROUTES_GUESS_TTL_MS": "2",
            "HOME": "/",
            "MESH_ADDRESS": "tcp://x",
            "MESH_RUN": "r",
        },
        routes={"ttl_ms": 3},
    )
    assert (found.routes.ttl_ms, found.routes.guess_ttl_ms, found.routes.prune_interval_ms) == (3, 2, 1)


@pytest.mark.parametrize(
    ("environ", "section", "key", "value"),
    [
        ({"MESH_NODE_DATA_DIR": "/x y"}, "node", "data_dir", "/x y"),
        ({"MESH_SUPERVISION_PERIOD_S": "0.5"}, "supervision", "period_s", 0.5),
        ({"MESH_SESSIONS_QUEUE_MAX": "0"}, "sessions", "queue_max", 0),
        ({"MESH_NODE_PORT": "0"}, "node", "port", 0),
        ({"MESH_ROUTES_DURABILITY": "power"}, "routes", "durability", "power"),
    ],
)
def test_the_environment_is_typed(environ: dict[str, str], section: str, key: str, value: Any) -> None:
    """If a variable names a setting, then its text becomes the setting's type."""
    found = getattr(getattr(load(environ=environ), section), key)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"routes": {"ttl_ms": 0}}, ["routes.ttl_ms", "0", "from 1"]),
        ({"routes": {"ttl_ms": "x"}}, ["routes.ttl_ms", "'x'", "whole number", "str"]),
        ({"routes": {"ttl_ms": True}}, ["routes.ttl_ms", "bool"]),
        ({"routes": {"ttl_ms": 1.0}}, ["routes.ttl_ms", "float"]),
        ({"routes": {"ttl_ms": None}}, ["routes.ttl_ms", "NoneType"]),
        ({"routes": {"max_entries_per_partition": -5}}, ["max_entries_per_partition", "more than 0"]),
        ({"routes": {"ttl": 5}}, ["unknown key routes.ttl", "did you mean 'ttl_ms'"]),
        ({"routs": {}}, ["unknown section [routs]", "did you mean 'routes'"]),
        ({"routes": 7}, ["[routes] must be a table", "int"]),
        ({"routes": {"durability": "Power"}}, ["durability", "power, process"]),
        ({"node": {"partitions": 256}}, ["node.partitions", "255"]),
        ({"node": {"port": 65535}}, ["node.port", "65534"]),
        ({"node": {"name": "../x"}}, ["node.name", "letters"]),
        ({"node": {"name": ""}}, ["node.name"]),
        ({"supervision": {"period_s": 10**400}}, ["supervision.period_s", "a number"]),
        ({"routes": {"ttl_ms": 10**5000}}, ["routes.ttl_ms", "too large"]),
        ({"limits": {"frame_bytes": 2**24 + 1}}, ["limits.frame_bytes", "from 1024"]),
        ({"supervision": {"period_s": math.nan}}, ["supervision.period_s", "nan"]),
        ({"supervision": {"period_s": math.inf}}, ["supervision.period_s", "inf"]),
        ({"agents": {"a": {}}}, ["[agents.a]", "provider"]),
        ({"agents": {"a": "shell"}}, ["[agents.a]", "provider"]),
        ({"agents": []}, ["[agents] must be a table"]),
    ],
)
def test_a_wrong_setting_is_refused_by_name(sections: dict[str, Any], words: list[str]) -> None:
    """If a setting is wrong or unknown, then the message names it, its value and what is accepted."""
    message = refusal(**sections)
    assert "the program's settings" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"MESH_ROUTES_TTL_MS": "soon"}, "MESH_ROUTES_TTL_MS"),
        ({"MESH_ROUTES_TTL": "5"}, "did you mean 'ttl_ms'"),
        ({"MESH_ROUTE_TTL_MS": "5"}, "did you mean 'routes'"),
        ({"MESH_": "5"}, "MESH_"),
        ({"MESH_SUPERVISION_PERIOD_S": "nan"}, "period_s"),
        ({"MESH_AGENTS_A": "x"}, "MESH_AGENTS_A"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(environ: dict[str, str], word: str) -> None:
    """If a variable is meant for mesh but wrong, then the message names it."""
    assert word in refusal(environ=environ)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[routes\n", "not valid TOML"),
        ("ttl_ms = 5\n", "unknown section [ttl_ms]"),
        ("routes = 5\n", "must be a table"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, word: str) -> None:
    """If the file cannot be used, then the message names it and says why."""
    path = tmp_path / "mesh.toml"
    message = refusal(text=text, path=path)
    assert message.startswith(f"{path}: ")
    assert word in message


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    """If there is no such file, or it is a folder or no text, then the message says so."""
    assert "no such file" in refusal(path=tmp_path / "none.toml")
    assert str(tmp_path) in refusal(path=tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "not valid TOML" in refusal(path=tmp_path / "binary")


def test_a_target_in_a_file_is_relative_to_that_file(tmp_path: Path) -> None:
    """If an agent's file is named relatively, then it lies beside the config file; a module is left alone."""
    found = load(
        '[agents.a]\nprovider = "python"\ntarget = "sub/a.py:run"\n'
        '[agents.b]\nprovider = "python"\ntarget = "/abs/b.py:run"\n'
        '[agents.c]\nprovider = "python"\ntarget = "pkg.module:run"\n',
        tmp_path / "mesh.toml",
    ).agents
    assert [found[name]["target"] for name in "abc"] == [
        f"{tmp_path.resolve()}/sub/a.py:run",
        "/abs/b.py:run",
        "pkg.module:run",
    ]


def test_the_program_may_give_paths_and_its_maps_stay_its_own(tmp_path: Path) -> None:
    """If a path object is given, then it is taken as text; and what was given is not changed."""
    agents = {"a": {"provider": "python", "target": "x.py:f"}}
    found = load(node={"data_dir": tmp_path, "name": "n-1_x"}, supervision={"period_s": 5}, agents=agents)
    assert (found.node.data_dir, found.supervision.period_s) == (str(tmp_path), 5.0)
    assert config.data_dir(found) == tmp_path.resolve()
    found.agents["a"]["target"] = "changed"
    assert agents["a"]["target"] == "x.py:f"


def test_without_a_folder_the_state_directory_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If no data_dir is set, then it is named after the node in the user's state directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert config.data_dir(load(node={"name": "n"})) == tmp_path.resolve() / "mesh" / "n"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.default_data_dir("n") == tmp_path / ".local" / "state" / "mesh" / "n"


def test_settings_are_frozen_and_print_as_they_are_written() -> None:
    """If settings are printed and read again, then they are the same; nobody changes them meanwhile."""
    found = load(agents={"a": {"provider": "shell"}})
    assert config.load(environ={}, overrides=found.to_map()) == found
    with pytest.raises(AttributeError):
        found.routes.ttl_ms = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "section", [name for name in load().to_map() if name != "agents"]
)
def test_every_default_passes_its_own_check(section: str) -> None:
    """If a default is said aloud, then it is accepted, from the environment too."""
    for key, value in load().to_map()[section].items():
        assert load(**{section: {key: value}}) == load()
        text = ",".join(value) if isinstance(value, list) else str(value)
        assert load(environ={f"MESH_{section}_{key}".upper(): text}) == load()


# --- errors ---


def classes() -> list[type[MeshError]]:
    return [v for v in vars(mesh.errors).values() if isinstance(v, type) and issubclass(v, MeshError)]


@pytest.mark.parametrize("code", sorted(CODES))
def test_each_code_travels_and_comes_back_as_its_class(code: str) -> None:
    """If an error crosses the wire or a process, then class, code, message and details survive."""
    error = from_wire(code, "why", {"a": 1})
    for copied in (from_wire(**error.to_wire()), pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(copied), copied.code, copied.message, copied.details) == (
            CODES[code][0],
            code,
            "why",
            {"a": 1},
        )
    assert error.retryable is CODES[code][2]
    assert category(code) == CODES[code][1]
    assert str(error) == f"[{code}] why"


def test_each_class_has_a_code_of_the_table() -> None:
    """If a class is raised without a code, then its own one leads back to its family."""
    for cls in classes():
        error = cls()
        assert error.message == error.code
        found = CODES[error.code][0]
        assert issubclass(found, cls) or issubclass(cls, found.__mro__[1]), cls


def test_an_unknown_code_is_a_plain_request_error() -> None:
    """If a newer node sends a code that is unknown here, then it is kept in a plain RequestError."""
    error = from_wire("code_of_tomorrow", "m", None)
    assert (type(error), error.code, error.retryable, error.details) == (
        RequestError,
        "code_of_tomorrow",
        False,
        {},
    )
    assert category("code_of_tomorrow") == "unknown"


def test_details_are_the_error_s_own() -> None:
    """If the caller changes the map it gave, then the error does not change."""
    given = {"a": 1}
    error = InvalidArgument("x", code="invalid_ttl", details=given)
    given["a"] = 2
    assert error.details == {"a": 1}
    assert NotFound.code == "not_found"
    assert InvalidArgument.code == "validation_error"


def test_a_list_of_texts_is_checked_by_its_words() -> None:
    """If a list names what nobody knows, or is none, then it is refused with the nearest word."""
    assert load(retention={"exempt_statuses": ["failed"]}).retention.exempt_statuses == ["failed"]
    for wrong in (["actve"], "actve", 5, [1], {"a": 1}):
        with pytest.raises(ConfigError, match=r"retention\.exempt_statuses"):
            load(retention={"exempt_statuses": wrong})
