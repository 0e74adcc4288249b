"""Events as a person reads them while they arrive: the agent's text as it is, everything else a line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mesh.cli import render

if TYPE_CHECKING:
    from mesh.core.records import Event, Run

#: Types after which a session has nothing more to say.
ENDED = frozenset(("session_completed", "session_failed", "session_cancelled"))
#: Types after which a run has nothing more to say.
RUN_ENDED = frozenset(("run_completed", "run_failed", "run_cancelled", "run_timeout"))
#: Keys of an event's data that are worth a place on its line, in this order.
TOLD = (
    "role",
    "tool_name",
    "command",
    "exit_code",
    "reason",
    "error_code",
    "error_message",
    "message",
    "content",
)


def piece(event: Event) -> tuple[str, bool]:
    """The text of a streamed piece, and whether it belongs on stderr."""
    text = event.data.get("content")
    return (text if isinstance(text, str) else "", event.data.get("stream") == "stderr")


class EventPrinter:
    """Prints events in order; knows whether the cursor stands at the beginning of a line."""

    def __init__(self, *, as_json: bool, only_text: bool = False) -> None:
        self._json = as_json
        self._only_text = only_text
        self._at_start = True
        self._streamed: set[str | None] = set()

    def show(self, event: Event) -> None:
        """Print one event at once."""
        if self._json:
            return render.emit_json(event.to_map())
        if event.type == "message_streamed":
            self._streamed.add(event.run_id)
            return self.write(*piece(event))
        if event.type == "message_received" and event.run_id not in self._streamed:
            return self.write(*piece(event))
        if not self._only_text and not (event.type == "message_received" and event.run_id in self._streamed):
            self.end_line()
            click.echo(line(event))
        return None

    def write(self, text: str, to_stderr: bool = False) -> None:
        """Print a piece of an agent's text as it is."""
        if text:
            click.echo(text, nl=False, err=to_stderr)
            self._at_start = text.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line, for a person; a pipe gets exactly what the agent wrote."""
        if not self._at_start and (sys.stdout.isatty() or not self._only_text) and not self._json:
            click.echo()
        self._at_start = True


def line(event: Event) -> str:
    """One line for one event."""
    told = [f"{name}={_short(event.data[name])}" for name in TOLD if event.data.get(name) not in (None, "")]
    return f"[{event.seq}] {event.type} {' '.join(told)}".rstrip()


def used(run: Run) -> str:
    """What a run used and cost, as one line; "" when its agent reported nothing."""
    shown = (("input_tokens", "in"), ("output_tokens", "out"), ("cache_read_tokens", "from cache"))
    counted = [f"{run.token_usage[name]:,} {what}" for name, what in shown if run.token_usage.get(name)]
    said = [f"tokens: {', '.join(counted)}"] if counted else []
    if run.turn_count:
        said.append(f"turns: {run.turn_count}")
    if run.cost_usd is not None:
        said.append(f"cost: ${run.cost_usd:.4g} ({run.cost_state.value})")
    elif run.cost_state == "unknown_price":
        said.append("cost: unknown price")
    return "; ".join(said)


def _short(value: object, width: int = 100) -> str:
    text = " ".join((value if isinstance(value, str) else render.to_json(value)).split())
    return text if len(text) <= width else text[: width - 3] + "..."


__all__ = ["ENDED", "RUN_ENDED", "TOLD", "EventPrinter", "line", "piece", "used"]
