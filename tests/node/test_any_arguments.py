"""Every operation with any arguments: a success or a typed error, never a bug, and the log stays silent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from harness import FakeRunner, MiniNode, RawClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.core import wire
from mesh.core.ops import CATALOGUE, Op
from mesh.core.slots import run_id_for
from mesh.errors import CODES

SESSIONS = ("s1", "s2", "s.3")
RUNS = tuple(run_id_for(session, f"{n:029x}") for session in SESSIONS for n in range(3))
WORDS = (
    *SESSIONS, *RUNS, "a:b:c", "a:b:c:d", "echo", "follow_up", "active", "run_started",
    "../x", "", "\0", "\x7f",
)  # fmt: skip
NAMES = (
    "external_room_id", "after", "before", "limit", "type", "since", "run_id", "agent_id", "tags", "context",
    "metadata", "code", "message", "deadline_s", "prompt", "messages", "provider_opts",
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.sampled_from(WORDS)
    | st.text(max_size=8) | st.binary(max_size=8) | st.integers(-1, 5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ARGS = st.lists(VALUES, max_size=7) | st.builds(
    lambda first, rest: [first, *rest], st.sampled_from(WORDS), st.lists(VALUES, max_size=6)
)
#: What a client gets when the node itself is wrong.
BUG = "internal_error"


class Talk:
    """A node with one partition and a runner, and its client."""

    def __init__(self, node: MiniNode) -> None:
        self.node = node
        self.serial = count(1)
        self.client = RawClient(node)

    def ask(self, op: Op, args: list[Any]) -> str:
        """The code of the answer, or ``ok``."""
        body, client = wire.pack([[op.name, args]]), self.client
        if op.kind == "write":
            number = next(self.serial)
            request = client.send(wire.Kind.WRITE, body, number=number, done_below=number)
        else:
            read = op.kind == "read"
            kind = wire.Kind.READ if read else wire.Kind.WAIT
            request = client.send(kind, body, remaining_ms=10_000 if read else 5)
        return client.take(request).codes[0]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    """One node for all operations: what one leaves behind is what the next finds."""
    folder = tmp_path_factory.mktemp("any")
    with MiniNode(folder) as node, FakeRunner(node) as runner:
        made = Talk(node)
        runner.tell(wire.actor_id(b"P", 0), ["acks", 0, 0])
        yield made
        made.client.__exit__()
        text = node.log()
        assert "a call failed" not in text and "Traceback" not in text, text[-3000:]


@pytest.mark.parametrize("op", CATALOGUE, ids=lambda op: op.name)
def test_any_arguments_get_a_typed_answer(talk: Talk, op: Op) -> None:
    """If an operation is given anything that msgpack carries, then it succeeds or names what is wrong."""
    pid = talk.node.children["partition-0"].pid

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(args=ARGS.filter(bool) if op.name == "agent.reload" else ARGS)  # the runner here never answers it
    def every(args: list[Any]) -> None:
        code = talk.ask(op, args)
        assert code == "ok" or (code in CODES and code != BUG), (code, args)

    every()
    os.kill(pid, 0)
    assert talk.node.children["partition-0"].status is None
