"""What the suites over all providers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import Subject, subjects

SUBJECTS = subjects()


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    found = SUBJECTS[request.param]
    with found.opened(tmp_path):
        yield found
