"""What the exceptions of an API's library mean, as mesh's codes.

Both libraries are made by one generator and name their exceptions alike, so they are told by what they have
(``status_code``, ``body``, ``response``) and by the names of their classes: neither library is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time
from typing import Any
from urllib.parse import urlsplit

from mesh.errors import MeshError
from mesh.providers.base import ProviderFailure, provider_error

MESSAGE_CHARS_MAX = 1_000
#: Types and codes, in an error's body, that mean: nothing is left to pay with.
_QUOTA = frozenset(("insufficient_quota", "billing_error", "billing_hard_limit_reached"))
_OVERLOADED = frozenset(("overloaded_error", "api_error", "server_error", "internal_server_error"))
HIDDEN = "[the API key]"


class Refused(Exception):
    """The API said in the middle of an answer that it failed."""

    status_code = 200

    def __init__(self, error: Any) -> None:
        self.body = error
        super().__init__("the answer failed")


class Failures:
    """Makes failures of one agent's exceptions."""

    def __init__(self, provider: str, base_url: str | None, key: str) -> None:
        self._provider = provider
        self._where = _place(base_url) if base_url else f"the API of {provider}"
        self._key = key

    def of(self, exc: Exception, *, begun: bool = False) -> ProviderFailure:
        """The failure that an exception stands for; one of ours is returned as it is. ``begun``: there was an
        answer already."""
        if isinstance(exc, ProviderFailure):
            return exc
        if isinstance(exc, MeshError):
            return ProviderFailure(exc.message, code=exc.code, details=exc.details)
        status = getattr(exc, "status_code", None)
        if isinstance(status, int):
            return self._refused(exc, status)
        names = {cls.__name__ for cls in type(exc).__mro__}
        if names & {"APITimeoutError", "TimeoutException"}:
            return self.make("provider_timeout", "timeout", f"{self._where} did not answer in time")
        if "APIConnectionError" in names:
            cause = exc.__cause__ or exc
            if begun:
                return self.broken_off(_text(cause))
            return self.make("provider_unavailable", "transport_exit",
                             f"{self._where} cannot be reached: {_text(cause)}")
        if type(exc).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            return self.broken_off(_text(exc))
        if isinstance(exc, ValueError | KeyError | TypeError | AttributeError):
            return self.make("provider_error", "parse_error", f"{self._where} sent what cannot be read: "
                             f"{type(exc).__name__}: {exc}")
        return self.make("provider_error", "unknown", f"{type(exc).__name__}: {exc}")

    def broken_off(self, why: str = "the stream ended") -> ProviderFailure:
        """An answer that ended before it was whole."""
        return self.make("provider_unavailable", "transport_exit",
                         f"{self._where} broke off in the middle of an answer: {why}")

    def make(
        self, code: str, kind: str, message: str, details: dict[str, Any] | None = None
    ) -> ProviderFailure:
        """A failure without the key."""
        if len(self._key) >= 8:
            message = message.replace(self._key, HIDDEN)
        message = message[:MESSAGE_CHARS_MAX]
        return ProviderFailure(message, code=code, details=details or {},
                               provider_error=provider_error(self._provider, kind, message))

    def _refused(self, exc: Exception, status: int) -> ProviderFailure:
        said = _body(getattr(exc, "body", None))
        kinds = {said.get("type"), said.get("code")}
        text = said.get("message")
        message = text if isinstance(text, str) and text else _text(exc)
        details: dict[str, Any] = {"status": status}
        kind = next((k for k in (said.get("code"), said.get("type")) if isinstance(k, str)), None)
        if kind is not None:
            details["type"] = kind[:80]
        after_s = retry_after_s(getattr(getattr(exc, "response", None), "headers", None))
        if after_s is not None:
            details["retry_after_s"] = after_s
        code = _code(status, kinds)
        return self.make(code, "protocol_error", f"{self._where} answered {status}: {message}", details)


def _code(status: int, kinds: set[Any]) -> str:
    if kinds & _QUOTA or status == 402:
        return "provider_quota_exceeded"
    if status in (401, 403) or kinds & {"authentication_error", "invalid_api_key", "permission_error"}:
        return "provider_authentication_failed"
    if status == 429 or kinds & {"rate_limit_error", "rate_limit_exceeded"}:
        return "provider_rate_limited"
    if status in (408, 504):
        return "provider_timeout"
    if status >= 500 or status == 409 or kinds & _OVERLOADED:
        return "provider_unavailable"
    if status in (400, 404, 413, 422):
        return "validation_error"
    return "provider_error"


def _body(body: Any) -> Mapping[str, Any]:
    """The innermost map of an error's body: ``{"error": {...}}`` or the map itself."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return {}
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    return body if isinstance(body, Mapping) else {}


def _place(url: str) -> str:
    """A server's address, without the password and the key that it may hold."""
    scheme, rest, path, *_ = urlsplit(url)
    return f"{scheme}://{rest.rpartition('@')[2]}{path}"


def _text(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


def retry_after_s(headers: Any) -> float | None:
    """What a server asks for: ``retry-after-ms``, or ``retry-after`` in seconds or as a date."""
    if headers is None:
        return None
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            found = float(text) / unit
        except ValueError:
            pass
        else:
            return max(0.0, found) if isfinite(found) else None
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time())
        except ValueError:
            pass
    return None


__all__ = ["HIDDEN", "MESSAGE_CHARS_MAX", "Failures", "Refused", "retry_after_s"]
