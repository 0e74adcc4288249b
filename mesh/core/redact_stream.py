"""Secrets out of a text that comes in pieces, as exactly as if it had come at once.

Rules of this file:

1. Every place where a secret could begin is decided once, from left to right. What overlaps is one secret and
   gets one marker.
2. Held back is only what may still turn out to be a secret: ordinary words never are, unless one begins like
   a name of a secret and the piece ends right there. It is bounded by the patterns themselves.
3. A secret is replaced together with its head (``password=x`` becomes the marker), except where the head
   begins within a word or is a key of JSON: there it was shown, and stays.
4. ``release`` shows what is a mere beginning of a head, for a reader who would wait. What comes after it is
   still recognised: the body is never shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Protocol

from mesh.core import secrets as sec
from mesh.core.secrets import Pattern

#: Shown text that is remembered, for heads whose beginning was ordinary letters. While ordinary words come it
#: grows to so much before it is cut to that.
CONTEXT_CHARS = 64
WORDS_CHARS = 256
#: A long text is taken in steps of this size, so that what is known of it at a time is bounded.
STEP_CHARS = 64 * 1024
#: What a pattern of the user's own may hold back, and how long its text may be to be found.
OWN_CHARS_MAX = 4 * 1024
#: The category of half a secret.
CUT = "cut_off"
_ASCII_LOWER = {upper: upper + 32 for upper in range(65, 91)}
_place = itemgetter(0)


class Own(Protocol):
    """A pattern of the user's own."""

    category: str

    def spans(self, text: str, final: bool) -> list[tuple[int, int, bool]]:
        """(start, end, whether more text could change it) of each match."""


class Rules(Protocol):
    """What a stream asks of its redactor."""

    builtin: bool

    @property
    def own(self) -> Sequence[Own]:
        """The user's patterns."""
        ...

    def marker(self, category: str) -> str:
        """Count one secret and return what stands in its place."""


class Stream:
    """One text. ``feed`` its pieces, then ``end``; what they return, joined, is the text without secrets."""

    __slots__ = (
        "_buf", "_calm", "_done", "_end", "_ends", "_final", "_hold", "_in_token", "_mid", "_open", "_out",
        "_pem", "_pem_at", "_quiet", "_quote", "_quote_at", "_quoted_to", "_rules", "_run",
        "_shown", "_tail", "weak",
    )  # _calm: the tail is ordinary text, or nothing

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._buf = ""
        self._final = False
        self._out: list[str] = []
        self._ends: dict[int, tuple[int, int]] = {}
        self._reset()

    def _reset(self) -> None:
        self._tail = ""  #: what is not decided, and a little of what was shown before it
        self._shown = 0  #: so much of the tail was returned, or stands behind a marker
        self._mid = False  #: the character before the tail is a letter or digit
        self._calm = self._quiet = self._rules.builtin and not self._rules.own
        self._in_token = False  #: what is held is the beginning of a JSON web token
        self.weak = False  #: what is held is no more than a beginning of a head
        self._done = 0
        self._hold = -1
        self._close()

    def _close(self) -> None:
        """No marker's text goes on."""
        self._open = False
        self._end = 0
        self._run = 0
        self._quote = ""
        self._quote_at = self._quoted_to = 0
        self._pem = 0
        self._pem_at = 0

    @property
    def held(self) -> bool:
        """Whether some text waits for what follows."""
        return len(self._tail) > self._shown

    def feed(self, piece: str) -> str:
        """Take a piece; return what is decided."""
        if self._calm:
            tail = self._tail
            apart = tail[-1:] == " " or piece[:1] == " "
            if apart and len(piece) <= sec.WORD_CHARS_MAX and (piece in sec.WORDS or sec.is_word(piece)):
                self._tail = tail = tail + piece
                self._shown = size = len(tail)
                if size > WORDS_CHARS:
                    self._remember(tail)
                return piece
            if self._shown > CONTEXT_CHARS:
                self._remember(tail)
        if self._quiet and piece:
            text = self._tail + piece
            low = text.lower()
            self._calm = True
            if not sec.is_suspect(piece) and "bearer" not in low and sec.is_ordinary(low, mid=self._mid):
                self._remember(text)
                return piece
            if sec.is_clean(low, len(text)):
                self._tail = ""
                self._shown = 0
                self._mid = text[-1].isalnum()
                return piece
        elif self._in_token and sec.IN_TOKEN.fullmatch(piece) is not None and (
            len(self._tail) + len(piece) < sec.TOKEN_PART_MAX
        ):
            self._tail += piece
            return ""
        if len(piece) > STEP_CHARS:
            steps = range(0, len(piece), STEP_CHARS)
            return "".join([self._scan(piece[at:at + STEP_CHARS], final=False) for at in steps])
        return self._scan(piece, final=False)

    def _remember(self, text: str) -> None:
        """Keep the end of ordinary text that was shown."""
        if len(text) > CONTEXT_CHARS:
            self._mid = text[-CONTEXT_CHARS - 1].isalnum()
            text = text[-CONTEXT_CHARS:]
        self._tail = text
        self._shown = len(text)

    def end(self) -> str:
        """The text is over: return what is left of it. The next ``feed`` begins another one."""
        if not self._open and (not self._tail or (self._quiet and not self.held)):
            self._reset()
            return ""
        left = self._scan("", final=True)
        self._reset()
        return left

    def cut(self) -> str:
        """The text was broken off: return what is left, a marker for what may be half of a secret."""
        if self.held and not self.weak:
            self._reset()
            return self._rules.marker(CUT)
        return self.end()

    def whole(self, text: str) -> str:
        """A text that is all there."""
        shown = self._scan(text, final=True)
        self._reset()
        return shown

    def release(self) -> str:
        """Return what is held, when it is only the beginning of a head."""
        if not self.weak:
            return ""
        left = self._tail[self._shown:]
        self._shown = len(self._tail)
        self.weak = False
        return left

    # --- one look at the tail and a new piece ---

    def _scan(self, piece: str, *, final: bool) -> str:
        buf = self._buf = self._tail + piece
        self._calm = False
        self._final = final
        self._out = []
        self._ends = {}
        self._done = self._shown
        self._hold = -1
        if self._open:
            self._grow()
        low = buf.lower()
        if len(low) != len(buf):
            low = buf.translate(_ASCII_LOWER)
        first, shown_to, weak = self._heads(low)
        quiet = first == len(buf)
        self._in_token = buf.startswith("eyJ", first) and weak is False
        if not final and (quiet or shown_to > first):
            first, shown_to = self._begins(low, first, shown_to)
        if self._hold >= 0:
            first, shown_to, weak = min(first, self._hold), min(shown_to, self._hold), False
        if first < len(buf) and not final and not self._out and buf[self._done:shown_to].isspace():
            first, shown_to = min(first, self._done), self._done  # spaces alone are no piece
        self._show(shown_to)
        self._keep(first, weak)
        self._quiet = (
            quiet and not self.held and not self._open and not sec.is_suspect(self._tail)
            and self._rules.builtin and not self._rules.own
        )
        out = self._out
        return out[0] if len(out) == 1 else "".join(out)

    def _show(self, to: int) -> None:
        """Return the text up to ``to`` as it is."""
        if to > self._done:
            self._out.append(self._buf[self._done:to])
            self._done = to

    def _keep(self, first: int, weak: bool) -> None:
        """What stands from ``first`` on is looked at again with the next piece."""
        buf, end, size = self._buf, self._end, len(self._buf)
        goes_on = end == size and (self._run or self._quote or self._pem)
        if first > 0:
            self._mid = not (self._open and first <= end) and buf[first - 1].isalnum()
        self._open = self._open and bool(end > first or goes_on or self._hold >= 0)
        self._tail = buf[first:]
        self._shown = max(0, self._done - first)
        self.weak = weak and self.held
        self._buf = ""
        if self._open:
            self._end = end - first
            self._quote_at -= first
            self._quoted_to -= first
            self._pem_at -= first
        else:
            self._close()

    # --- heads ---

    def _heads(self, low: str) -> tuple[int, int, bool]:
        """Decide every head; returns the first undecided place, what may be shown, whether that is weak."""
        size = len(low)
        first = shown_to = size
        weak = True
        for at, patterns in self._found(low):
            if 0 <= self._hold <= at or shown_to <= at:
                break
            if type(patterns) is not tuple:
                verdict = self._own(at, patterns, first < size)
            elif patterns:
                verdict = self._try(at, patterns, first < size)
            else:
                verdict = self._token(at, first < size)
            if verdict is not None:
                first, shown_to, weak = min(first, at), min(shown_to, verdict[0]), weak and verdict[1]
        return first, shown_to, weak

    def _found(self, low: str) -> Iterable[tuple[int, Any]]:
        """Where something may begin, from left to right; looked for no further than it is asked."""
        if not self._rules.own:
            return _stems(low)
        found: list[tuple[int, Any]] = list(_stems(low)) if self._rules.builtin else []
        for own in self._rules.own:
            found += [(span[0], [own.category, *span]) for span in own.spans(self._buf, self._final)]
        return sorted(found, key=_place)

    def _own(self, at: int, match: Any, pending: bool) -> tuple[int, bool] | None:
        category, _, end, undecided = match
        if pending or (undecided and len(self._buf) - at <= OWN_CHARS_MAX):
            return at, False
        self._secret(at, at, end, category)
        return None

    def _try(self, at: int, patterns: tuple[Pattern, ...], pending: bool) -> tuple[int, bool] | None:
        """A secret begins here, or not, or that is not decided: then up to where it may be shown."""
        buf = self._buf
        for pattern in patterns:
            found = pattern.found.match(buf, at)
            if found is not None and pending:  # it is one, unless what is undecided before it takes it in
                return (found.start(1) if pattern.keep or self._is_mid(at) else at), False
            if found is not None:
                self._begin(at, pattern, found.start(1), found.end())
                return None
        if self._final or len(buf) - at > sec.REACH:
            return None
        shown_to, weak = -1, True
        mid = self._is_mid(at)
        apart = not self._open or at >= self._end  # else it belongs to the marker before as a whole
        for pattern in patterns:
            ladder = pattern.ladder.match(buf, at)
            if ladder is not None:
                body = ladder.end(1) if ladder.group(1) is not None else len(buf)
                seen = body if apart and (pattern.keep or mid) else at
                shown_to = seen if shown_to < 0 else min(shown_to, seen)
                weak = weak and body == len(buf)
        return None if shown_to < 0 else (shown_to, weak)

    def _token(self, at: int, pending: bool) -> tuple[int, bool] | None:
        """The same for a JSON web token: three runs, divided by dots."""
        buf, size = self._buf, len(self._buf)
        if buf[at:at + 3] != "eyJ":
            return None
        start = place = at + 3
        for part in range(3):
            end = self._run_end(sec.TOKEN, place, part)
            long = end - place >= sec.JWT_PART_MIN
            if part == 2 and long:
                if not pending:
                    self._secret(at, start if self._is_mid(at) else at, end, sec.JWT, sec.TOKEN)
                return None
            if part < 2 and end - place > sec.TOKEN_PART_MAX:
                return None
            if end == size:
                if self._final:
                    return None
                return (start if self._is_mid(at) else at), end == start
            if not long or buf[end] != ".":
                return None
            place = end + 1
        return None

    def _begins(self, low: str, first: int, shown_to: int) -> tuple[int, int]:
        """The end of the text may be the beginning of a head."""
        if not self._rules.builtin:
            return first, shown_to
        size = len(low)
        found = sec.STEM_BEGINS.search(low, max(0, size - sec.STEM_MAX))
        while found is not None and found.start() < shown_to:
            at = found.start()
            first = min(first, at)
            if not self._is_mid(at):
                return first, min(shown_to, at)
            found = sec.STEM_BEGINS.search(low, at + 1)
        return first, shown_to

    def _is_mid(self, at: int) -> bool:
        """Whether a letter or digit that is shown stands before it."""
        if (self._open and at <= self._end) or self._buf[at] == "-":
            return False
        return self._buf[at - 1].isalnum() if at else self._mid

    # --- a secret ---

    def _begin(self, at: int, pattern: Pattern, body: int, end: int) -> None:
        keep = pattern.keep or self._is_mid(at)
        self._secret(at, body if keep else at, end, pattern.category, pattern.run)
        if pattern.quotes and body >= self._quoted_to:
            self._open_quotes(body)
        if pattern.pem:
            self._pem, self._pem_at = 1, end
        self._grow()

    def _secret(self, at: int, start: int, end: int, category: str, run: int = 0) -> None:
        """A marker for what stands from ``start`` on, unless it belongs to the marker before."""
        if not self._open or at >= self._end:
            self._close()
            self._show(start)
            self._out.append(self._rules.marker(category))
            self._open = True
        self._end = max(self._end, end)
        self._run = max(self._run, run)
        self._grow()

    def _open_quotes(self, body: int) -> None:
        mark = self._buf[body:body + 2]
        if mark not in sec.QUOTED:
            mark = mark[:1]
        if mark in sec.QUOTED:
            self._quote = mark
            self._quote_at = self._quoted_to = body + len(mark)

    def _run_end(self, run: int, at: int, part: int = -1) -> int:
        """Where the run of its characters ends that goes on at ``at``; each is measured once (per part)."""
        start, end = self._ends.get(part, (0, -1)) if part >= 0 else (0, -1)
        if start <= at <= end:
            return end
        expression = sec.RUNS[run]
        assert expression is not None
        found = expression.match(self._buf, at)
        if found is None:
            return at
        if part >= 0:
            self._ends[part] = (at, found.end())
        return found.end()

    def _grow(self) -> None:
        """What the marker stands for goes on as far as its text does."""
        before = -1
        while before != self._end:
            before = self._end
            if self._quote:
                self._end = max(self._end, self._grow_quoted())
            if self._pem:
                self._end = max(self._end, self._grow_key())
            if self._run:
                self._end = self._run_end(self._run, self._end)
        self._done = max(self._done, self._end)

    def _grow_quoted(self) -> int:
        buf, mark = self._buf, self._quote
        found = sec.QUOTED[mark].match(buf, self._quote_at)
        assert found is not None
        end = found.end()
        if end == len(buf):
            self._quote_at = self._quoted_to = end
            return end
        if buf[end] == "\\" and end + 1 == len(buf) and not self._final:
            self._hold = self._quote_at = self._quoted_to = end
            return end
        if buf.startswith(mark, end):
            end += len(mark)
        self._quote = ""
        self._quoted_to = end
        return end

    def _grow_key(self) -> int:
        """The lines of a key, and its last line."""
        buf, end = self._buf, self._pem_at
        if self._pem == 2:
            end = sec.PEM_RUN.match(buf, end).end()  # type: ignore[union-attr]
        while end < len(buf) and (line := sec.PEM_LINE.match(buf, end)) is not None:
            end = sec.PEM_RUN.match(buf, line.end()).end()  # type: ignore[union-attr]
            self._pem = 2
        self._pem_at = end
        if end == len(buf):
            return end
        last = sec.PEM_END.match(buf, end)
        if last is not None:
            self._pem = 0
            return last.end()
        if not self._final and len(buf) - end <= sec.REACH and (
            sec.PEM_LINE_LADDER.match(buf, end) or sec.PEM_END_LADDER.match(buf, end)
        ):
            self._hold = end
            self._pem = 1
        else:
            self._pem = 0
        return end


def _stems(low: str) -> Iterator[tuple[int, Any]]:
    stem = sec.STEM.search(low)
    while stem is not None:
        yield stem.start(), sec.STEMS[stem.group()]
        stem = sec.STEM.search(low, stem.start() + 1)


__all__ = ["CONTEXT_CHARS", "CUT", "OWN_CHARS_MAX", "STEP_CHARS", "Own", "Rules", "Stream"]
