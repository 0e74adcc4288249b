"""A fake node for the shells' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_node import FakeNode


@pytest.fixture
def fake() -> Iterator[FakeNode]:
    """A node that answers HELLO and routes."""
    with FakeNode() as node:
        yield node
