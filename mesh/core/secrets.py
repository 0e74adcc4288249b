"""What a secret looks like: the 22 categories, and how far each one reaches.

A *pattern* begins with a **head** (``password =``, ``sk-proj-``, ``postgres://``), which is no secret, and
goes on with a **body**, which is. A head and the least body that counts are found by one regular expression;
what follows in the same run of characters belongs to the secret too.

Rules of this file:

1. Everything is linear by construction: an expression matches at a known place only, looks at ``REACH``
   characters at most and uses no repetition inside a repetition; runs of any length are measured once.
2. Each expression has a *ladder*: the same, ended at any of its characters by the end of the text. It says
   whether more text could make a secret of what stands at the end, and so what a stream holds back.
3. Spaces around ``:`` and ``=`` are counted up to ``SPACES_MAX``; a part of a JSON web token up to
   ``TOKEN_PART_MAX``. These two bound what a stream can have to hold.
4. Letters are those of ASCII in names, whatever their case; keys with a fixed case are compared as they are.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SPACES_MAX = 32
TOKEN_PART_MAX = 8 * 1024
#: No head together with the least body that counts is longer.
REACH = 192

#: Classes of characters that a body goes on in, each within the next; the index is the order.
RUNS: tuple[re.Pattern[str] | None, ...] = (
    None,
    re.compile(r"[A-Za-z0-9]+"),
    re.compile(r"[A-Za-z0-9_]+"),
    re.compile(r"[A-Za-z0-9_-]+"),
    re.compile(r"[A-Za-z0-9._~+/=-]+"),
    re.compile(r"[^ \t\n\r\f\v]+"),
)
FIXED, ALNUM, WORD, TOKEN, BEARER, VALUE = range(6)
#: A text in quotes is a secret up to its closing quote or the end of the line.
QUOTED = {
    '"': re.compile(r'(?:[^"\\\n]+|\\[^\n])*+'),
    "'": re.compile(r"(?:[^'\\\n]+|\\[^\n])*+"),
    '\\"': re.compile(r'(?:[^"\\\n]+|\\[^"\n])*+'),
    "\\'": re.compile(r"(?:[^'\\\n]+|\\[^'\n])*+"),
}

_SPACE = r"[ \t\n\r\f\v]"
_BASE64 = "[A-Za-z0-9+/=]"
_BREAK = r"(?:[ \t\n\r\f\v]|\\[nr])"


class Expression:
    """A regular expression that is compiled when it is first asked: most are never needed."""

    __slots__ = ("_compiled", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self._compiled: re.Pattern[str] | None = None

    def match(self, text: str, at: int) -> re.Match[str] | None:
        """The match that begins at ``at``."""
        if self._compiled is None:
            self._compiled = re.compile(self.source)
        return self._compiled.match(text, at)


class Pattern(NamedTuple):
    """One way to begin a secret."""

    category: str
    stem: str  #: what it begins with, in lower case: cheap to look for
    found: Expression  #: head and least body; group 1 stands between them
    ladder: Expression
    run: int = FIXED  #: how the body goes on
    keep: bool = False  #: the head is shown in any case: it is a key of JSON
    quotes: bool = False  #: the body may stand in quotes
    pem: bool = False  #: lines of a key follow


#: A step of an expression: the source, and how the ladder may end in it.
_Step = tuple[str, str]


def _letters(text: str, *, fold: bool) -> list[_Step]:
    steps = []
    for char in text:
        one = f"[{char}{char.upper()}]" if fold and char.isalpha() else re.escape(char)
        steps.append((one, one))
    return steps


def _any(source: str) -> _Step:
    return source, source


def _exactly(char_class: str, count: int) -> _Step:
    return f"{char_class}{{{count}}}", f"{char_class}{{1,{count}}}+"


def _spaces(least: int = 0) -> _Step:
    source = f"{_SPACE}{{{least},{SPACES_MAX}}}+"
    return source, source


_HEAD_ENDS: _Step = ("()", "()")


def _compiled(steps: list[_Step]) -> tuple[Expression, Expression]:
    """The expression, and its ladder: ``a(?:\\Z|b(?:\\Z|c))`` for ``abc``."""
    ladder = ""
    for _, partial in reversed(steps):
        if partial == "()":
            ladder = partial + ladder
        else:
            ladder = f"{partial}(?:\\Z|{ladder})" if ladder else f"{partial}\\Z"
    return Expression("".join(full for full, _ in steps)), Expression(ladder)


def _named(category: str, spelling: str, *, signs: str = "[:=]") -> list[Pattern]:
    """``name = value``, and ``"name": "value"`` as JSON has it. In a spelling ``?`` may be ``_`` or ``-``."""
    name: list[_Step] = []
    for char in spelling:
        name += [("[_-]?", "[_-]?")] if char == "?" else _letters(char, fold=True)
    stem = spelling.partition("?")[0]
    plain = _compiled([*name, _spaces(), _any(signs), _spaces(), _HEAD_ENDS, _any(r"[^ \t\n\r\f\v]")])
    found = [Pattern(category, stem, *plain, run=VALUE, quotes=True)]
    for quote, other in (('"', '[^"\n]'), ("'", "[^'\n]"), ('\\"', '[^"\n]'), ("\\'", "[^'\n]")):
        marks = _letters(quote, fold=False)
        in_json = _compiled([
            *name, *marks, _spaces(), _any("[:=]"), _spaces(), _HEAD_ENDS, *marks, _any(other),
        ])
        found.append(Pattern(category, stem, *in_json, keep=True, quotes=True))
    return found


def _key(category: str, prefix: str, char_class: str, count: int, run: int = FIXED) -> list[Pattern]:
    """A prefix of fixed case, and so many characters at least."""
    steps = [*_letters(prefix, fold=False), _HEAD_ENDS, _exactly(char_class, count)]
    return [Pattern(category, prefix.lower(), *_compiled(steps), run=run)]


def _bearer() -> list[Pattern]:
    steps = [*_letters("bearer", fold=True), _spaces(1), _HEAD_ENDS, _exactly("[A-Za-z0-9._~+/=-]", 20)]
    return [Pattern("bearer_token", "bearer", *_compiled(steps), run=BEARER)]


def _url(scheme: str) -> list[Pattern]:
    """``scheme://`` and ``scheme+driver://``."""
    found = []
    for driver in ([], [_any(r"\+"), _any("[A-Za-z0-9]{1,16}+")]):
        steps = [*_letters(scheme, fold=True), *driver, *_letters("://", fold=False), _HEAD_ENDS]
        compiled = _compiled([*steps, _any(r"[^ \t\n\r\f\v]")])
        found.append(Pattern("connection_string", scheme, *compiled, run=VALUE))
    return found


def _pem(kind: str) -> list[Pattern]:
    steps = [*_letters(f"-----BEGIN {kind}PRIVATE KEY-----", fold=False), _HEAD_ENDS]
    return [Pattern("private_key", "-----begin ", *_compiled(steps), pem=True)]


_SK = "[A-Za-z0-9]"
#: In the order of the reference; where several begin at one place, the first that matches counts.
PATTERNS: tuple[Pattern, ...] = (
    *_key("aws_access_key", "AKIA", "[0-9A-Z]", 16),
    *_named("aws_secret_key", "aws?secret?access?key"),
    *_key("gcp_api_key", "AIza", "[0-9A-Za-z_-]", 35),
    *_key("anthropic_key", "sk-ant-api", "[A-Za-z0-9._~+/=-]", 20, VALUE),
    *_key("openai_key", "sk-proj-", _SK, 20, ALNUM),
    *_key("openai_legacy_key", "sk-", _SK, 40, ALNUM),
    *_key("github_pat", "ghp_", _SK, 36),
    *_key("github_oauth", "gho_", _SK, 36),
    *_key("github_app", "ghs_", _SK, 36),
    *_key("github_refresh", "ghr_", _SK, 36),
    *_key("github_fine_pat", "github_pat_", "[A-Za-z0-9_]", 22, WORD),
    *_key("gitlab_token", "glpat-", "[A-Za-z0-9_-]", 20, TOKEN),
    *_bearer(),
    *(p for name in ("password", "passwd", "pwd") for p in _named("password", name)),
    *_named("api_key_generic", "api?key"),
    *_named("secret_key", "secret?key"),
    *_named("access_token", "access?token"),
    *_named("auth_token", "auth?token"),
    *(
        p
        for scheme in (
            "postgres", "postgresql", "mysql", "redis", "rediss", "mongodb", "amqp", "amqps", "mssql",
        )
        for p in _url(scheme)
    ),
    *(p for kind in ("", "RSA ", "EC ", "DSA ", "OPENSSH ", "ENCRYPTED ") for p in _pem(kind)),
    *(
        p
        for name in ("database_url", "redis_url", "secret_key_base", "encryption_key", "private_key")
        for p in _named("env_secret", name, signs="=")
    ),
)
#: The one category that is measured by hand: three runs of any length, divided by dots.
JWT = "jwt_token"
JWT_STEM = "eyj"
JWT_PART_MIN = 10
CATEGORIES: tuple[str, ...] = tuple(
    sorted({pattern.category for pattern in PATTERNS} | {JWT})
)

#: The lines of a key in PEM: at least 16 characters of base64, then perhaps a short one and the last line.
PEM_RUN = re.compile(f"{_BASE64}*+")
_BREAKS: _Step = (f"{_BREAK}{{0,8}}+", rf"{_BREAK}{{0,8}}+(?:\\(?=\Z))?")
PEM_LINE, PEM_LINE_LADDER = _compiled([_BREAKS, _exactly(_BASE64, 16)])
PEM_END, PEM_END_LADDER = _compiled([
    _BREAKS, _any(f"{_BASE64}{{0,15}}+"), _BREAKS, *_letters("-----END ", fold=False), _any("[A-Z ]{1,40}+"),
    *_letters("-----", fold=False),
])


def _by_stem() -> tuple[tuple[str, tuple[Pattern, ...]], ...]:
    """A stem that begins another one is looked for once: what it finds is tried with the patterns of both."""
    stems = sorted({pattern.stem for pattern in PATTERNS}, key=len)
    short = [s for s in stems if not any(s != other and s.startswith(other) for other in stems)]
    return tuple((s, tuple(p for p in PATTERNS if p.stem.startswith(s))) for s in short)


STEMS: dict[str, tuple[Pattern, ...]] = {**dict(_by_stem()), JWT_STEM: ()}
STEM_MAX = max(map(len, STEMS))


def _trie(words: frozenset[str], *, begun: bool) -> str:
    """An expression for all words; with ``begun`` for their beginnings at the end of a text."""
    branches = []
    for first in sorted({word[0] for word in words if word}):
        rest = frozenset(word[1:] for word in words if word[:1] == first)
        longer = _trie(rest, begun=begun)
        if begun and longer:
            longer = f"(?:\\Z|{longer})"
        elif begun:
            longer = "\\Z"
        branches.append(re.escape(first) + longer)
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})" if branches else ""


#: A stem, in a text in lower case; and the beginning of one at its end.
STEM = re.compile(_trie(frozenset(STEMS), begun=False))
STEM_BEGINS = re.compile(_trie(frozenset(stem[:-1] for stem in STEMS), begun=True))
#: Words that a secret may begin with, as far as they are letters: what a stream looks for in ordinary text.
_NAMES = (
    "awssecretaccesskey", "password", "passwd", "pwd", "apikey", "secretkey", "accesstoken", "authtoken",
    "bearer", "postgresql", "mysql", "rediss", "mongodb", "amqps", "mssql", "database", "redis",
    "encryption", "private", "akia", "aiza", "sk", "ghp", "gho", "ghs", "ghr", "github", "glpat", "eyj",
)
BEGINNINGS = frozenset(name[:size] for name in _NAMES for size in range(1, len(name) + 1))
#: Names that spaces may follow before the sign comes.
SPACED = frozenset(("awssecretaccesskey", "password", "passwd", "pwd", "apikey", "secretkey", "accesstoken",
                    "authtoken", "bearer"))
#: A text that ends with one of these ends with no beginning of a secret.
_STOPS = frozenset(".,;!?)]}")
#: Ordinary pieces of at most so many characters are known by heart, so many of them: a language has few
#: words, and pieces of a text are words mostly. What is no word is not kept: it may be a secret.
WORD_CHARS_MAX = 24
WORDS_MAX = 4_096
WORDS: set[str] = set()
#: What the quick way of a stream asks of a piece while a token is held.
IN_TOKEN = re.compile("[A-Za-z0-9_-]+")


def is_suspect(text: str) -> bool:
    """Whether it holds a character that every secret has in its head, or behind it (but a bearer token)."""
    return (
        ":" in text or "=" in text or "-" in text or "_" in text or "J" in text or "K" in text or "z" in text
    )


def is_ordinary(low: str, *, mid: bool) -> bool:
    """Whether the last word of a text in lower case is not how a secret begins; ``mid``: a letter or digit
    stands before the text."""
    at = low.rfind(" ")
    word = low[at + 1:]
    if word.isalnum():
        return word not in BEGINNINGS or (at < 0 and mid)
    if not low or low[-1] in _STOPS:
        return True
    if not word:
        low = low.rstrip()
        word = low[low.rfind(" ") + 1:]
        return word.isalnum() and word not in SPACED
    return False


def is_word(piece: str) -> bool:
    """Whether a short piece is ordinary behind a space, whatever stands before it: one of ``WORDS`` now."""
    low = " " + piece.lower()
    if is_suspect(piece) or "bearer" in low or not is_ordinary(low, mid=False):
        return False
    if len(WORDS) >= WORDS_MAX:
        WORDS.clear()
    WORDS.add(piece)
    return True


def is_clean(low: str, size: int) -> bool:
    """Whether no secret begins in a text, nor at its end; ``low`` is the text in lower case."""
    return (
        len(low) == size and STEM.search(low) is None
        and STEM_BEGINS.search(low, max(0, size - STEM_MAX)) is None
    )


__all__ = [
    "ALNUM", "BEARER", "BEGINNINGS", "CATEGORIES", "FIXED", "IN_TOKEN", "JWT", "JWT_PART_MIN", "JWT_STEM",
    "PATTERNS", "PEM_END", "PEM_END_LADDER", "PEM_LINE", "PEM_LINE_LADDER", "PEM_RUN", "QUOTED", "REACH",
    "RUNS", "SPACED", "SPACES_MAX", "STEM", "STEMS", "STEM_BEGINS", "STEM_MAX", "TOKEN", "TOKEN_PART_MAX",
    "VALUE", "WORD", "WORDS", "WORDS_MAX", "WORD_CHARS_MAX", "Expression", "Pattern", "is_clean",
    "is_ordinary", "is_suspect", "is_word",
]
