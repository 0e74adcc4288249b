"""``amp``: the coding agent Amp, by ``amp --execute --stream-json``; a thread is continued by its id.

Keys of the agent's table beside those of ``cli``: ``permission_mode`` (default, full_auto), ``mode`` (Amp's
agent mode), ``settings_file``, ``mcp_config``. Amp chooses its model by the mode; ``model`` is only told.

Amp runs its tools itself, by its own permission rules (``amp permissions``, in ``settings_file``), and says
so meanwhile: a policy observes them, and stops the run. Mode and permissions are said anew at each resume.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from mesh.core.continuation import SESSION_RESUME
from mesh.errors import ConfigError
from mesh.providers.base import (
    Piece,
    RunContext,
    capabilities_of,
    checked,
    usage_mode_of,
)
from mesh.providers.claude_talk import Talk
from mesh.providers.cli import Table, one_of, prompt_of
from mesh.providers.execution import Command
from mesh.providers.images import refuse_images
from mesh.providers.kinds import Place
from mesh.providers.program import Facts, Program

FACTS = Facts("amp", "npm install -g @ampcode/cli", "amp login (or set AMP_API_KEY)")
MODES = ("default", "full_auto")
#: The program's help does not name it any more; it knows it still (0.0.1790142911).
_ALLOW_ALL = "--dangerously-allow-all"
_FLAGS = {"mode": "--mode", "settings_file": "--settings-file", "mcp_config": "--mcp-config"}


class AmpProvider:
    """Runs one execution of a thread per run."""

    name = "amp"
    CAPABILITIES = (
        SESSION_RESUME,
        *({"name": name, "type": "tool"} for name in ("bash", "file_operations", "mcp")),
    )
    enforces = frozenset(("tools_observed", "budget"))
    tested = "recorded output; the real program's start without a login, by hand"

    def __init__(self, table: Mapping[str, Any], place: Place) -> None:
        self._table = Table(table, FACTS, ("permission_mode", *_FLAGS))
        self.capabilities = capabilities_of(table, self.CAPABILITIES)
        self.idempotent: bool = checked(table, "idempotent", (bool,), False)
        self.usage_mode = usage_mode_of(table)
        self._processes = place.processes
        self.permission_mode = one_of(table, "permission_mode", MODES, MODES[0])
        if _ALLOW_ALL in self._table.args:
            raise ConfigError(f'{_ALLOW_ALL}: say it by permission_mode = "full_auto"')
        self._flags = [
            word for key, flag in _FLAGS.items() if (value := checked(table, key, (str,), None))
            for word in (flag, value)
        ]

    def started(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002
        """The mode under which its tools run."""
        return {"permission_mode": self.permission_mode}

    async def run(self, run: RunContext) -> AsyncIterator[Piece]:
        """Yield what the thread says; at the end, or when closed, nothing of it is left."""
        refuse_images(run, self.name)
        prompt = prompt_of(run)
        talk = Talk(input_holds_cached=True)
        program = Program(self._processes, run.run_id, self.name, FACTS)
        try:
            await program.start(self._command(run), prompt.encode(errors="replace"))
            async for message in program.messages():
                for piece in talk.pieces(message):
                    yield piece
                if talk.over:
                    program.leave()
        finally:
            await program.end()
        if talk.failed is not None or not talk.over:
            raise program.failure(talk.failed or "", code=talk.code)
        yield talk.output()

    def _command(self, run: RunContext) -> Command:
        settings = self._table.of(run)
        args = [] if run.resume is None else ["threads", "continue", run.resume]
        args += ["--execute", "--stream-json", *self._flags]
        if self.permission_mode == "full_auto":
            args.append(_ALLOW_ALL)
        return self._table.command(self.name, run, settings, [*args, *self._table.args])


__all__ = ["FACTS", "MODES", "AmpProvider"]
