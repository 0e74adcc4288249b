"""How the IO threads of the node's processes are scheduled."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from mesh.net import sockets


def policies() -> dict[int, int]:
    """Scheduling policy by thread."""
    return {int(t.name): os.sched_getscheduler(int(t.name)) for t in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has SCHED_BATCH")
def test_patient_context_changes_the_policy_of_its_own_threads_alone() -> None:
    """If a context is patient, then its threads run as SCHED_BATCH and the caller's as before."""
    before = policies()
    ctx = sockets.context(patient=True)
    try:
        after = policies()
        new = after.keys() - before.keys()
        assert new
        assert {after[thread] for thread in new} == {os.SCHED_BATCH}
        assert after[threading.get_native_id()] == before[threading.get_native_id()] == os.SCHED_OTHER
    finally:
        ctx.term()
