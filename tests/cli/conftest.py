"""A command line whose client is a fake: its calls are recorded, its answers are set by the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mesh.cli import app


class FakeGroup:
    """A group of methods: each call is recorded and answered from ``answers``; an exception is raised."""

    def __init__(self, fake: FakeClient, name: str) -> None:
        self._fake, self._name = fake, name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._fake.answer(f"{self._name}.{method}", *args, **kwargs)


class FakeClient:
    """Stands in for ``mesh.Client``."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.opened: list[tuple[str | None, float]] = []
        for name in ("routes", "partitions", "sessions", "runs", "agents", "events", "usage"):
            setattr(self, name, FakeGroup(self, name))

    def answer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((name, args, kwargs))
        answer = self.answers.get(name)
        if isinstance(answer, BaseException):
            raise answer
        return answer(*args, **kwargs) if callable(answer) else answer

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The calls of one method."""
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.answer(method, *args, **kwargs)

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The client that every command of this test gets."""
    client = FakeClient()

    def opened(address: str | None, timeout_s: float) -> FakeClient:
        client.opened.append((address, timeout_s))
        return client

    monkeypatch.setattr(app, "open_client", opened)
    monkeypatch.setattr("mesh.cli.run.open_client", opened)
    monkeypatch.setattr("mesh.cli.recording.open_client", opened)
    return client


@pytest.fixture
def cli(clean_environ: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``mesh`` with these arguments in this process, in an environment without settings."""

    def run(*arguments: str, **kwargs: Any) -> Result:
        return CliRunner().invoke(app.root, list(arguments), prog_name="mesh", **kwargs)

    return run
