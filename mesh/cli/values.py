"""Arguments that are more than a text: ``name=value`` pairs, routes, times, prompts."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click


def pairs(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> dict[str, Any]:
    """Option callback: ``name=text``, or ``name:=json`` for anything that is not a text."""
    return dict(_pair(text, ctx, param) for text in given)


def _pair(given: str, ctx: click.Context, param: click.Parameter) -> tuple[str, Any]:
    name, sign, text = given.partition("=")
    if not sign or not name.removesuffix(":"):
        raise click.BadParameter(f"{given!r} is not name=value", ctx, param)
    if not name.endswith(":"):
        return name, text
    try:
        return name[:-1], json.loads(text)
    except ValueError as exc:
        raise click.BadParameter(f"{given!r}: not JSON after := ({exc})", ctx, param) from exc


def route(ctx: click.Context, param: click.Parameter, given: str) -> dict[str, Any]:
    """Argument callback: the external room's id, or a JSON map that holds ``external_room_id``."""
    if not given.lstrip().startswith("{"):
        return {"external_room_id": given}
    try:
        return dict(json.loads(given))
    except ValueError as exc:
        raise click.BadParameter(f"{given!r}: not a JSON map ({exc})", ctx, param) from exc


def routes(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> list[dict[str, Any]]:
    """Option callback: several routes, in order."""
    return [route(ctx, param, one) for one in given]


def toml_files(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> list[dict[str, Any]]:
    """Option callback: the tables of several TOML files, in order."""
    return [_toml(path, ctx, param) for path in given]


def _toml(path: str, ctx: click.Context, param: click.Parameter) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise click.BadParameter(f"{path}: {exc}", ctx, param) from exc


def prompt_text(words: Sequence[str]) -> str:
    """The words joined; a lone ``-`` reads standard input.

    Raises:
        click.UsageError: nothing was said.
    """
    text = sys.stdin.read() if tuple(words) == ("-",) else " ".join(words)
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text


def _moment(_ctx: Any, _param: Any, text: str | None) -> float | None:
    """Seconds since the epoch, from such a number or from ISO-8601 (local time where it names none)."""
    if text is None:
        return None
    try:
        try:
            moment = datetime.fromisoformat(text)  # first: 20260131 is no second of the year 1970
        except ValueError:
            return float(text)
        return moment.astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise click.BadParameter("a time such as 2026-01-31 or 2026-01-31T12:00, or seconds") from exc


def time_option(name: str, text: str) -> Callable[[Any], Any]:
    """Decorator: the option ``--name TIME``, in seconds since the epoch."""
    return click.option(f"--{name}", callback=_moment, metavar="TIME", help=text)


__all__ = ["pairs", "prompt_text", "route", "routes", "time_option", "toml_files"]
