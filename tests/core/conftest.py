"""What the tests of the core share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, opened


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A partition's core with its store and runners, without processes."""
    yield from opened(tmp_path)
