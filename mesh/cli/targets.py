"""What can be said of an agent's function without executing its file: is the file there, can Python read it,
does it name the function.

Only what is certain is said: a name that the file might get in ways that reading does not show is let pass,
and ``mesh doctor`` loads the agents to find the rest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Who calls one of these may give his module any name.
_DYNAMIC = frozenset(("exec", "globals", "locals", "setattr", "vars", "__getattr__"))


def target_problem(target: Any) -> str | None:
    """What is wrong with ``"file.py:function"``; None where nothing is, or nobody can tell."""
    if not isinstance(target, str) or ":" not in target:
        return f'{target!r}: expected "module:function" or "file.py:function"'
    name, _, function = target.rpartition(":")
    if not name.endswith(".py"):
        return None
    file = Path(name)
    if not file.is_file():
        return f"no file {file}"
    try:
        tree = ast.parse(file.read_bytes(), file.name)
    except (SyntaxError, ValueError) as exc:
        line = getattr(exc, "lineno", None)
        return f"{file}{f', line {line}' if line else ''}: {getattr(exc, 'msg', exc)}"
    except OSError as exc:
        return f"{file}: {exc.strerror}"
    names = set(_names(tree))
    first = function.partition(".")[0]
    return None if first in names or names & _DYNAMIC or "*" in names else f"{file} has no {first!r}"


def _names(tree: ast.AST) -> Iterator[str]:
    """Every name that occurs in a file where something may be defined, called or imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]


__all__ = ["target_problem"]
