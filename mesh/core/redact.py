"""Redaction: a marker in the place of every secret, in texts, in data and in texts that come in pieces.

What counts as a secret is in ``secrets``, how a text is searched in ``redact_stream``. Here: the settings,
and which strings of an event, an output or an error are searched.

Rules of this file:

1. What holds no secret comes back as the same object: the common case costs a look and no copy.
2. A text under a key that names a secret (``{"api_key": "..."}``) is one as a whole.
3. Redacting twice gives what redacting once gave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.core import secrets as sec
from mesh.core.events import SCANNED
from mesh.core.redact_stream import OWN_CHARS_MAX, STEP_CHARS, Stream
from mesh.errors import ConfigError

MARKER = "[REDACTED]"
CATEGORIZED = "categorized"
MARKER_CHARS_MAX = 64
OWN_MAX = 100
OWN_SOURCE_CHARS_MAX = 1_000
#: How long one search with the user's own pattern may take before the pattern is given up for that text.
OWN_TIMEOUT_S = 0.2
OWN_CATEGORY = "custom"
KEYS_REMEMBERED = 4_096
#: Short texts without a secret come again and again (names, statuses, keys): so many are known by heart.
CLEAN_REMEMBERED = 4_096
CLEAN_CHARS_MAX = 40
#: With ``deep_scan = false`` only these keys of an event's data are searched.
FIELDS: dict[str, frozenset[str]] = {
    "message_sent": frozenset(("content",)),
    "message_received": frozenset(("content",)),
    "message_streamed": frozenset(("content", "delta", "thinking")),
    "tool_call_started": frozenset(("tool_input",)),
    "tool_call_completed": frozenset(("tool_input", "tool_output")),
    "tool_call_failed": frozenset(("tool_input", "tool_output")),
    "error_occurred": frozenset(("error_message", "provider_error")),
    "run_failed": frozenset(("error_message", "provider_error")),
    "session_failed": frozenset(("error_message", "provider_error")),
    "policy_violation": frozenset(("details",)),
}
#: A key is compared in lower case, without ``_``, ``-`` and spaces; what it ends with makes it secret.
_SECRET_KEYS = (
    "password", "passwd", "pwd", "apikey", "secret", "secretkey", "secretaccesskey", "accesstoken",
    "authtoken", "refreshtoken", "bearertoken", "idtoken", "sessiontoken", "privatekey",
    "encryptionkey", "secretkeybase", "databaseurl", "redisurl", "connectionstring",
)
_SEPARATORS = str.maketrans("", "", "_- ")


class OwnPattern:
    """A pattern of the user's own, matched by ``regex``, which can say that more text could make a match."""

    def __init__(self, category: str, source: str) -> None:
        import regex  # only who has patterns of his own pays for it

        self.category = category
        self.gave_up = 0
        try:
            self._match = regex.compile(source)
        except regex.error as exc:
            raise ConfigError(f"redaction.patterns: {source!r:.80}: {exc}") from exc
        if self._match.search("") is not None:
            raise ConfigError(f"redaction.patterns: {source!r:.80} matches an empty text, and so everything")

    def spans(self, text: str, final: bool) -> list[tuple[int, int, bool]]:
        """(start, end, whether more text could change it) of each match."""
        spans = []
        try:
            for match in self._match.finditer(text, partial=not final, timeout=OWN_TIMEOUT_S):
                start, end = match.span()
                undecided = match.partial or (not final and end == len(text))
                if start < end:
                    spans.append((start, end, undecided))
        except TimeoutError:
            self.gave_up += 1
        return spans


class Redactor:
    """Searches with one set of rules, and counts what it found by category. One per process."""

    def __init__(
        self, *, enabled: bool = True, patterns: Sequence[Any] = (), replace_builtin: bool = False,
        replacement: str = MARKER, deep_scan: bool = True, scan_metadata: bool = True,
    ) -> None:
        """Check the settings (``[redaction]``).

        Raises:
            ConfigError: names the setting.
        """
        self.enabled = enabled
        self.builtin = not replace_builtin
        self.own = checked_patterns(patterns)
        self.found: dict[str, int] = {}
        self._deep = deep_scan
        self._metadata = scan_metadata
        self._replacement = replacement
        self._keys: dict[Any, bool] = {}
        self._clean: set[str] = set()
        if enabled:
            self._check_replacement(replacement)

    def _check_replacement(self, replacement: str) -> None:
        shown = f"redaction.replacement = {replacement!r:.80}"
        if replacement == CATEGORIZED:
            return
        if not 0 < len(replacement) <= MARKER_CHARS_MAX or any(c.isspace() for c in replacement):
            raise ConfigError(f"{shown}: expected 1 to {MARKER_CHARS_MAX} characters without spaces")
        if replacement[0].isalnum() or replacement[0] in "._~+/=-\"'\\":
            raise ConfigError(f"{shown}: expected a first character that no secret has, such as [ or *")
        if self.text(replacement) != replacement or self.found:
            raise ConfigError(f"{shown}: it would be redacted itself")

    @property
    def count(self) -> int:
        """How many secrets were replaced."""
        return sum(self.found.values())

    @property
    def gave_up(self) -> int:
        """How often a pattern of one's own took too long for a text, which then may have kept a secret."""
        return sum(own.gave_up for own in self.own)

    def marker(self, category: str) -> str:
        """Count one secret and return what stands in its place."""
        self.found[category] = self.found.get(category, 0) + 1
        return f"[REDACTED:{category}]" if self._replacement == CATEGORIZED else self._replacement

    def stream(self) -> Stream | None:
        """For a text that comes in pieces; None when nothing is redacted."""
        return Stream(self) if self.enabled else None

    def text(self, text: str) -> str:
        """The text without its secrets."""
        if not self.enabled:
            return text
        if not self.own:
            if len(text) <= CLEAN_CHARS_MAX and text in self._clean:
                return text
            if not sec.is_suspect(text) and "bearer" not in text.lower():
                return self._remembered(text)
            low = text.lower()
            if len(low) == len(text) and sec.STEM.search(low) is None:
                return self._remembered(text)
        stream = Stream(self)
        shown = stream.feed(text) + stream.end() if len(text) > STEP_CHARS else stream.whole(text)
        return text if shown == text else shown

    def _remembered(self, text: str) -> str:
        """A text without a secret; a short one is not searched again."""
        if len(text) <= CLEAN_CHARS_MAX:
            if len(self._clean) >= CLEAN_REMEMBERED:
                self._clean.clear()
            self._clean.add(text)
        return text

    def data(self, value: Any) -> Any:
        """Data of any shape without its secrets: texts, bytes, and those inside maps and lists."""
        if not self.enabled:
            return value
        return self._value(value)

    def view(self, value: Any) -> Any:
        """The same for one more look at what is stored: not counted."""
        before = self.found.copy()
        try:
            return self.data(value)
        finally:
            self.found = before

    def event(
        self, event_type: str, data: dict[str, Any], metadata: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The data and metadata of an event, as they may be written."""
        if not self.enabled or event_type not in SCANNED:
            return data, metadata
        if self._metadata and metadata:
            metadata = self._map(metadata)
        if self._deep:
            return self._map(data), metadata
        fields = FIELDS.get(event_type, frozenset())
        chosen = {key: self._value(data[key]) for key in fields if key in data}
        return ({**data, **chosen} if chosen else data), metadata

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self._map(value)
        if isinstance(value, list | tuple):
            return self._list(value)
        if isinstance(value, bytes | bytearray):
            text = bytes(value).decode("latin-1")
            shown = self.text(text)
            return value if shown is text else shown.encode("latin-1", "replace")
        return value

    def _map(self, value: dict[Any, Any]) -> dict[Any, Any]:
        changed: dict[Any, Any] = {}
        names, clean, keys = False, self._clean, self._keys
        for key, item in value.items():
            known = type(item) in _PLAIN or (
                type(item) is str and len(item) <= CLEAN_CHARS_MAX and item in clean)
            if known and keys.get(key) is False and key in clean:
                continue  # both were looked at before
            if isinstance(item, str) and item and self._is_secret(key):
                shown = item if self._is_marker(item) else self.marker(_category(key))
            else:
                shown = self._value(item)
            if shown is not item:
                changed[key] = shown
            names = names or (key not in clean and isinstance(key, str) and self.text(key) is not key)
        if names:
            return self._renamed({**value, **changed})
        return {**value, **changed} if changed else value

    def _renamed(self, value: dict[Any, Any]) -> dict[Any, Any]:
        """A map whose keys hold secrets; two that become the same stay two."""
        renamed: dict[Any, Any] = {}
        for key, item in value.items():
            shown = name = self.text(key) if isinstance(key, str) else key
            number = 1
            while name in renamed:
                number += 1
                name = f"{shown}#{number}"
            renamed[name] = item
        return renamed

    def _list(self, value: Any) -> Any:
        shown = [self._value(item) for item in value]
        if all(new is old for new, old in zip(shown, value, strict=True)):
            return value
        return shown if isinstance(value, list) else tuple(shown)

    def _is_secret(self, key: Any) -> bool:
        """Whether a key names a secret; asked again and again for the same few."""
        found = self._keys.get(key)
        if found is None:
            found = self.builtin and isinstance(key, str) and _category(key) != ""
            if len(self._keys) >= KEYS_REMEMBERED:
                self._keys.clear()
            self._keys[key] = found
        return found

    def _is_marker(self, text: str) -> bool:
        if self._replacement != CATEGORIZED:
            return text == self._replacement
        return _CATEGORIZED.fullmatch(text) is not None


#: What holds no text.
_PLAIN = frozenset((int, float, bool, type(None)))
_CATEGORIZED = re.compile(r"\[REDACTED:[a-z][a-z0-9_]*\]")


def _category(key: str) -> str:
    """The category of what stands under a key; "" when it names no secret."""
    plain = key.lower().translate(_SEPARATORS)
    if not plain.endswith(_SECRET_KEYS):
        return ""
    if plain.endswith(("password", "passwd", "pwd")):
        return "password"
    if plain.endswith("apikey"):
        return "api_key_generic"
    if plain.endswith("accesstoken"):
        return "access_token"
    if plain.endswith("token"):
        return "auth_token"
    return "secret_key"


def checked_patterns(patterns: Any) -> tuple[OwnPattern, ...]:
    """The user's own patterns: texts, or maps with ``category`` and ``regex``.

    Raises:
        ConfigError: names what is wrong.
    """
    if not isinstance(patterns, list | tuple) or len(patterns) > OWN_MAX:
        raise ConfigError(f"redaction.patterns: expected a list of at most {OWN_MAX}")
    return tuple(_own(item) for item in patterns)


def _own(item: Any) -> OwnPattern:
    if isinstance(item, str):
        item = {"regex": item}
    if not isinstance(item, Mapping) or not item.keys() <= {"category", "regex"}:
        raise ConfigError(f"redaction.patterns: {item!r:.80}: expected a regex, or category and regex")
    source, category = item.get("regex"), item.get("category", OWN_CATEGORY)
    if not isinstance(source, str) or not 0 < len(source) <= OWN_SOURCE_CHARS_MAX:
        raise ConfigError(
            f"redaction.patterns: {source!r:.80}: expected a regex of 1 to {OWN_SOURCE_CHARS_MAX} characters"
        )
    if not isinstance(category, str) or re.fullmatch("[a-z][a-z0-9_]{0,39}", category) is None:
        raise ConfigError(f"redaction.patterns: category {category!r:.80}: expected small letters and _")
    return OwnPattern(category, source)


__all__ = [
    "CATEGORIZED", "CLEAN_CHARS_MAX", "CLEAN_REMEMBERED", "FIELDS", "KEYS_REMEMBERED", "MARKER",
    "MARKER_CHARS_MAX", "OWN_CATEGORY", "OWN_CHARS_MAX", "OWN_MAX", "OWN_SOURCE_CHARS_MAX", "OWN_TIMEOUT_S",
    "OwnPattern", "Redactor", "checked_patterns",
]
