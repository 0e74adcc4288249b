"""How events look to people and programs: renderers make text of them, sinks take it somewhere.

``render(client.sessions.stream(id), StudioRenderer(), [TerminalSink(sys.stdout), FileSink("log.txt")])``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.errors import InvalidArgument, shown
from mesh.rendering.base import PassthroughRenderer, Renderer, TextRenderer
from mesh.rendering.compact import CompactRenderer
from mesh.rendering.feed import FeedSink
from mesh.rendering.show import Queued, Rendering, Report, arender, render
from mesh.rendering.sinks import CallbackSink, FileSink, JsonLinesSink, Sink, TerminalSink, wants_color
from mesh.rendering.studio import StudioRenderer
from mesh.rendering.text import clean
from mesh.rendering.verbose import VerboseRenderer

#: name -> renderer, as on the command line.
RENDERERS: Mapping[str, type[Renderer]] = {
    "text": TextRenderer,
    "studio": StudioRenderer,
    "compact": CompactRenderer,
    "verbose": VerboseRenderer,
    "passthrough": PassthroughRenderer,
}


def renderer(name: str, **options: Any) -> Renderer:
    """The renderer of that name.

    Raises:
        InvalidArgument: there is none.
    """
    if name not in RENDERERS:
        raise InvalidArgument(f"a renderer is one of {', '.join(RENDERERS)}, not {shown(name)}")
    return RENDERERS[name](**options)


__all__ = [
    "RENDERERS",
    "CallbackSink",
    "CompactRenderer",
    "FeedSink",
    "FileSink",
    "JsonLinesSink",
    "PassthroughRenderer",
    "Queued",
    "Renderer",
    "Rendering",
    "Report",
    "Sink",
    "StudioRenderer",
    "TerminalSink",
    "TextRenderer",
    "VerboseRenderer",
    "arender",
    "clean",
    "render",
    "renderer",
    "wants_color",
]
