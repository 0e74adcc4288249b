"""Which commands a shell line would execute, as far as a reader can tell without executing it.

For the allow and deny lists of the ``shell`` provider. Rules: an allow list refuses whatever it cannot
read (a substitution, an open quote); a deny list then looks at every word. Each command of a line counts,
not only its first word: with ``echo`` allowed, ``echo hi; other`` is refused for ``other``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from posixpath import basename

_OPERATORS = frozenset(";&|()")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SUBSTITUTION = re.compile(r"`|\$\(|[<>]\(")
_WORD = re.compile(r"[\w./+-]+")


def refused_command(
    command: str | Sequence[str], allowed: frozenset[str] | None, denied: frozenset[str] | None
) -> str | None:
    """Why a line (or the one command of a direct execution) may not be executed; None when it may."""
    if allowed is None and denied is None:
        return None
    names = [basename(name) for name in command] if not isinstance(command, str) else _names(command)
    if denied is not None:
        suspects = names if names is not None else [basename(word) for word in _WORD.findall(str(command))]
        hit = next((name for name in suspects if name in denied), None)
        if hit is not None:
            return f"the command {hit!r} is denied"
    if allowed is not None:
        if names is None:
            return "the line holds a substitution or an open quote, which an allow list cannot judge"
        stranger = next((name for name in names if name not in allowed), None)
        if stranger is not None:
            return f"the command {stranger!r} is not among the allowed ones"
    return None


def _names(line: str) -> list[str] | None:
    """The name of every command of a line; None when it cannot be told."""
    if _SUBSTITUTION.search(line):
        return None
    lexer = shlex.shlex(line.replace("\n", " ; "), posix=True, punctuation_chars=";&|()<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError:
        return None
    names: list[str] = []
    expected = True
    skip = False
    for token in tokens:
        if set(token) <= _OPERATORS:
            expected, skip = True, False
        elif token[0] in "<>" or (token[0] in "&" and set(token) <= set("&<>")):
            skip = True  # the next word is a file
        elif skip:
            skip = False
        elif expected and not _ASSIGNMENT.match(token):
            names.append(basename(token))
            expected = False
    return names


__all__ = ["refused_command"]
