"""Errors as they are stored with runs and sessions: ``{code, message, details, provider_error?}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.core.provider_error import ProviderError, details_left
from mesh.errors import InvalidArgument, category, shown

_FIELDS = frozenset(("code", "message", "details", "provider_error", "category", "retryable"))


def checked_error(error: Any) -> dict[str, Any]:
    """What a caller says a session failed of: a text, or an error's map; its code may be the caller's own.

    Raises:
        InvalidArgument: ``validation_error``, names the field.
    """
    if type(error) is str:
        return {"code": "run_failed", "message": error, "details": {}}
    if type(error) is not dict or type(error.get("code")) is not str or not error["code"]:
        raise InvalidArgument("error must be a text or a map with code and message")
    strange = error.keys() - _FIELDS
    if strange:
        raise InvalidArgument(f"an error has no field {shown(min(map(str, strange)))}")
    message, details, about = error.get("message"), error.get("details"), error.get("provider_error")
    if message is not None and type(message) is not str:
        raise InvalidArgument(f"message of the error must be a str, not {type(message).__name__}")
    for name, value in (("details", details), ("provider_error", about)):
        if value is not None and not (type(value) is dict and all(type(key) is str for key in value)):
            raise InvalidArgument(f"{name} of the error must be a map with str keys, not {shown(value)}")
    checked = {"code": error["code"], "message": message or "", "details": details or {}}
    if about is not None:
        checked["provider_error"] = provider_error_of(about, None, checked).to_map()
    return checked


def with_provider_error(error: dict[str, Any], provider: str) -> dict[str, Any]:
    """The error of a provider, with the stable payload that says so; any other error as it is."""
    about = error.get("provider_error")
    if isinstance(about, Mapping):
        return {**error, "provider_error": provider_error_of(about, provider, error).to_map()}
    if category(error["code"]) != "provider":
        return error
    details = error.get("details") or {}
    payload = ProviderError.of(provider, None, error["message"], details=details)
    return {**error, "details": details_left(details), "provider_error": payload.to_map()}


def provider_error_of(
    about: Mapping[str, Any], provider: str | None, error: Mapping[str, Any]
) -> ProviderError:
    """The payload of what somebody gave as one, in whatever shape."""
    return ProviderError.of(
        about.get("provider") or provider, about.get("kind"), about.get("message") or error.get("message"),
        exit_code=about.get("exit_code"), stderr=about.get("stderr"), truncated=about.get("truncated"),
        details=error.get("details"),
    )  # fmt: skip


def failure_data(error: Mapping[str, Any] | None) -> dict[str, Any]:
    """What ``run_failed`` and ``session_failed`` say about an error."""
    error = error or {}
    data = {"error_code": error.get("code", "unknown_error"), "error_message": error.get("message", "")}
    return data | {key: error[key] for key in ("details", "provider_error") if error.get(key)}


__all__ = ["checked_error", "failure_data", "provider_error_of", "with_provider_error"]
