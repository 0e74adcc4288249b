"""A storm of kills over a working node, random by seed, and the proof that every promise was kept.

``MESH_STORM_SEED`` repeats the choices of a storm, ``MESH_STORM_S`` says how long it lasts. The node is
``mesh up`` with its service manager: when its supervisor is killed or stopped, it is started again. The
restart intensity is raised so that nothing stays down; ``test_down.py`` shows what happens else.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import storm
import storm_check as check
import storm_ears as ears
from helpers import wait_for
from storm_clients import rage
from storm_history import History
from storm_service import Killer, Service

import mesh

# Taken out of the environment: to a node, MESH_ followed by an unknown section is a wrong setting.
DURATION_S = float(os.environ.pop("MESH_STORM_S", "20"))
SEED = os.environ.pop("MESH_STORM_SEED", "") or str(random.randrange(10**9))
#: How long everything that was begun may take to end when the storm is over.
QUIET_S = 30.0
#: The session that all share and some listen to.
ONE = storm.SHARED[0]


@pytest.mark.timeout(DURATION_S + 240)
def test_storm_of_kills_breaks_no_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If processes, the supervisor too, are killed and frozen at random under load, no promise is broken."""
    with capsys.disabled():
        print(f"MESH_STORM_SEED={SEED} MESH_STORM_S={DURATION_S:g}")
    history = History({agent: output for agent, (_, output) in storm.PROMPTS.items()})
    service = Service(tmp_path, SEED)
    killer = Killer(service, SEED)
    with service, mesh.Client(service.ipc, timeout_s=20.0) as client:
        wait_for(lambda: check.settled(client), "the node's first life")
        for sid, agent in zip(storm.SHARED, ("counter", "streamer"), strict=True):
            history.story(sid, agent, shared=True).begun(client.sessions.start(agent, id=sid))
        former = {sid: client.sessions.get(sid).seq for sid in storm.SHARED}
        listening = listeners(service)
        with ears.ears(*listening):
            history.strikes = killer.strikes
            rage(service, killer, history, SEED, DURATION_S)
            (tmp_path / "history.txt").write_text("\n".join(history.trace))
            problems = proof(client, history, service, listening, former)
    problems += [] if "supervisor killed" in killer.strikes else ["nobody killed the supervisor"]
    problems += service.problems + check.logs(service.data_dir / "logs", service.log)
    print(storm.summary(history))
    print(f"{service.lives} lives, {sum(len(ear.seen) for ear in listening)} messages heard")
    assert not problems, "\n".join(problems)


def listeners(service: Service) -> list[ears.Ear]:
    """Listeners of every kind; the first two follow the lifecycle."""
    ipc, tcp = service.ipc, service.tcp
    return [
        ears.Ear(tcp, "lifecycle."), ears.Hopper(ipc, "lifecycle.", 10),
        ears.Ear(ipc, "session."), ears.AsyncEar(tcp, "session."), ears.Hopper(tcp, "session.", 500),
        ears.AsyncEar(ipc, f"session.{ONE}."), ears.Follower(tcp, ONE), ears.Follower(ipc, ONE, 10),
    ]


def proof(
    client: mesh.Client, history: History, service: Service, listening: list[ears.Ear], former: dict[str, int]
) -> list[str]:
    """What is wrong after the storm."""
    wait_for(lambda: check.settled(client), "every process ready again", QUIET_S)
    since = time.monotonic()
    left = check.unfinished(client, check.all_sessions(client))
    while left and time.monotonic() < since + QUIET_S:
        time.sleep(0.1)
        left = check.unfinished(client, left)
    print(f"quiet after {time.monotonic() - since:.1f} s")
    if client.sessions.get(ONE).status == "active":
        history.stories[ONE].told("cancel", client.sessions.cancel(ONE))
    stored = check.Stored.read(client)
    for key in list(history.registers):
        history.read(key, time.monotonic(), outcome_of(client.routes.get, key), "the last get")
    problems = [*history.problems, *(text for texts in left.values() for text in texts)]
    problems += check.routes(history) + check.sessions(stored, history)
    problems += check.executions(service.witness, stored)
    return problems + heard(stored, listening, former)


def heard(stored: check.Stored, listening: list[ears.Ear], former: dict[str, int]) -> list[str]:
    """What is wrong with what the listeners heard, after they had the time to hear it."""
    problems = []
    for ear in listening[:2]:
        wait_until(lambda ear=ear: not check.unfinished_lifecycle(stored, ear))
        problems += check.lifecycle_feed(stored, ear, former)
    for ear in listening[2:]:
        sids = [sid for sid in stored.sessions if ear.topic == "session." or sid == ONE]
        wait_until(lambda ear=ear, sids=sids: not check.missed_by(stored, ear, sids, former))
        missed = check.missed_by(stored, ear, sids, former)
        problems += [f"{ear.name} never heard the end of {sid}" for sid in missed]
        problems += check.session_feed(stored, ear, former)
    return problems + [f"{ear.name}: {ear.failure!r}" for ear in listening if ear.failure is not None]


def outcome_of(call: Callable[[str], Any], key: str) -> Any:
    """What a call gives, or its error."""
    try:
        return call(key)
    except mesh.MeshError as error:
        return error


def wait_until(condition: Any, patience_s: float = 15.0) -> None:
    """Wait for a condition; what is missing afterwards is told by the checks."""
    until = time.monotonic() + patience_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
