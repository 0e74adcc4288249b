"""What ``mesh run`` and ``mesh session attach`` show of a session: which renderer, and which sinks.

| output | what a person sees on a terminal | what a pipe gets |
|---|---|---|
| ``mesh run`` | the agent's words, clean | the agent's words, byte for byte; its stderr on stderr |
| ``attach`` | ``studio`` | ``verbose`` |
| ``--render NAME`` | that renderer, in colours | the same without |
| ``-o json`` | each event as a line of JSON, whatever else was asked for | the same |
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import render
from mesh.cli.app import shell
from mesh.errors import InvalidArgument

if TYPE_CHECKING:
    from mesh.core.records import Event, Run
    from mesh.rendering import Renderer, Rendering, Sink

#: Types after which a session has nothing more to say.
ENDED = frozenset(("session_completed", "session_failed", "session_cancelled"))
#: How a run looks on a terminal, and elsewhere: the agent's words.
RUN_VIEW = ("text", "text")
#: Types after which a run has nothing more to say.
RUN_ENDED = frozenset(("run_completed", "run_failed", "run_cancelled", "run_timeout"))
#: Named here too, so that --help does not import them; a test compares.
RENDERERS = ("text", "studio", "compact", "verbose", "passthrough")
SINKS = ("file", "jsonl", "jsonl-compact", "feed")
#: So long a sink that is full may hold up the others: a log is read faster than it is written elsewhere.
SINK_WAIT_S = 1.0
TOOL_OUTPUTS = ("summary", "preview", "full")


def view_options(command: Any) -> Any:
    """Decorator: --render, --tool-output and --sink, for a command that shows events."""
    options = (
        click.option(
            "--render", "renderer", type=click.Choice(RENDERERS),
            help="How it looks; passthrough prints nothing. Colours: on a terminal, unless NO_COLOR is set.",
        ),
        click.option(
            "--tool-output", type=click.Choice(TOOL_OUTPUTS),
            help="How much studio shows of what a tool gave: nothing (default), the last lines, all.",
        ),
        click.option(
            "--sink", "sinks", multiple=True, metavar="KIND:PLACE",
            help="Also write it to file:PATH, jsonl:PATH, jsonl-compact:PATH, or publish it at "
            "feed:tcp://HOST:PORT; may be repeated.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_view(
    default: tuple[str, str], renderer: str | None = None, tool_output: str | None = None,
    sinks: Sequence[str] = (),
) -> Rendering:
    """The renderer and all sinks, open. ``default``: which renderer on a terminal, and which elsewhere.

    Raises:
        InvalidArgument: a sink of no known kind, or whose file cannot be written, or an option that does not
            fit the renderer.
    """
    from mesh.rendering import JsonLinesSink, Rendering, TerminalSink

    terminal = sys.stdout.isatty() and not shell().json
    name = renderer or default[0 if terminal else 1]
    if tool_output is not None and name != "studio":
        raise InvalidArgument(f"--tool-output is for --render studio, not for {name}")
    made = _renderer(name, tool_output or "summary", terminal)
    others = [_sink(given) for given in sinks]
    width = (lambda: shutil.get_terminal_size().columns) if terminal else None
    first: Sink
    if shell().json:
        first = JsonLinesSink(sys.stdout, mode="event")
    else:
        err = sys.stderr if name == "text" else None
        first = TerminalSink(sys.stdout, err=err, width=width, color=True)  # the renderer knows whether
    try:
        return Rendering(made, [first, *others], on_broken=_warn(first, others, made))
    except OSError as exc:
        raise _unwritable(exc) from exc


@contextmanager
def closing_view(view: Rendering) -> Iterator[Rendering]:
    """Say the last words, and close the sinks, however it ends."""
    try:
        yield view
    finally:
        view.finish()


@contextmanager
def waiting_view(
    wait: bool, renderer: str | None, tool_output: str | None, sinks: Sequence[str]
) -> Iterator[Rendering | None]:
    """The view of a run, for a command that shows it with ``--wait`` only.

    Raises:
        click.UsageError: it is not shown, and was told how.
    """
    if wait:
        with closing_view(open_view(RUN_VIEW, renderer, tool_output, sinks)) as view:
            yield view
    elif renderer or tool_output or sinks:
        raise click.UsageError("--render, --tool-output and --sink say how the answer looks: add --wait")
    else:
        yield None


def show(view: Rendering, event: Event) -> None:
    """Show one event.

    Raises:
        OSError: nobody reads any more, nor is a sink left that works.
    """
    view.show(event)
    if not view.alive:
        raise view.broken[-1].error


def _renderer(name: str, tool_output: str, terminal: bool) -> Renderer:
    from mesh import rendering

    if name == "text":
        return rendering.TextRenderer(exact=not terminal, exact_stderr=not sys.stderr.isatty())
    color = terminal and rendering.wants_color(sys.stdout)
    if name == "studio":
        return rendering.StudioRenderer(color=color, tool_output=tool_output, live=terminal)
    return rendering.renderer(name, color=color)


def _sink(given: str) -> Sink:
    """A sink, in a thread of its own: what it waits for holds up nothing else."""
    from mesh import rendering

    kind, sign, place = given.partition(":")
    make: dict[str, Callable[[], Sink]] = {
        "file": lambda: rendering.FileSink(place),
        "jsonl": lambda: rendering.JsonLinesSink(place),
        "jsonl-compact": lambda: rendering.JsonLinesSink(place, mode="compact"),
        "feed": lambda: rendering.FeedSink(place, include_text=True),
    }
    if kind not in make or not sign or not place:
        raise InvalidArgument(f"--sink {given!r} is not KIND:PLACE with a KIND of {', '.join(SINKS)}")
    return rendering.Queued(make[kind](), wait_s=SINK_WAIT_S)


def _unwritable(error: OSError) -> InvalidArgument:
    file = Path(str(error.filename or ""))
    if isinstance(error, FileNotFoundError):
        return InvalidArgument(f"--sink {file}: there is no folder {file.absolute().parent}")
    return InvalidArgument(f"--sink {file}: {error.strerror or error}")


def _warn(first: Sink, others: Sequence[Sink], made: Renderer) -> Callable[[Sink, Exception], None]:
    """Say which sink gets no more. That of stdout itself is told by ``show``, when it was the last."""
    as_json = shell().json  # here: a sink may break in a thread of its own

    def broken(sink: Sink, error: Exception) -> None:
        if sink is first and (isinstance(error, BrokenPipeError) or not others):
            return None
        gap = "\n" if made.line_open and sys.stdout.isatty() else ""
        text = f"{sink.name} gets no more: {error}"
        if as_json:
            return click.echo(render.to_json({"warning": text}), err=True)
        return render.echo(f"{gap}warning: {text}", err=True)

    return broken


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


__all__ = [
    "ENDED",
    "RENDERERS",
    "RUN_ENDED",
    "RUN_VIEW",
    "SINKS",
    "SINK_WAIT_S",
    "TOOL_OUTPUTS",
    "closing_view",
    "open_view",
    "show",
    "used",
    "view_options",
    "waiting_view",
]
