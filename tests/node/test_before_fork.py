"""What holds of a supervisor when it forks."""

from __future__ import annotations

import gc
import threading

import pytest

from mesh.node import fork, router
from mesh.node.prepare import Mains


def test_a_process_with_a_second_thread_does_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """If another thread runs, which may hold a lock, then there is no fork."""
    monkeypatch.setattr(fork, "THREAD_END_S", 0.01)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with pytest.raises(AssertionError, match="one thread to fork safely"):
            fork._check_alone()
    finally:
        over.set()
        thread.join()


def test_what_a_kind_of_child_runs_is_imported_when_it_is_due() -> None:
    """If a child of a kind is forked first, then what it runs is imported, once, by the supervisor."""
    mains = Mains()
    try:
        assert mains == {}
        assert mains["router"] is router.main
        assert list(mains) == ["router"]
    finally:
        gc.unfreeze()
