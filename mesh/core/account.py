"""What a run's record says of its execution: from what its runner reports to the fields of run and session.

A report is a map: ``token_usage`` (of this attempt, the provider's word on the cost among it), ``turn_count``
and ``provider_metadata``; the settling one also has status, output and error. An agent may have made it of
anything that msgpack carries; a run must be one that can be read back.
"""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec

from mesh.core import usage
from mesh.core.prices import Cost, Prices, together
from mesh.core.records import CostState
from mesh.core.run import RunState, checked_result
from mesh.core.session import SessionState

#: What a provider says of itself that outlives the run: to resume there, and to know the price.
TOLD = ("provider_session_id", "model")
TOLD_CHARS_MAX = 512
#: What a provider's session had used when its run ended, for one that counts from its session's beginning.
USED_BEFORE = "used_before"


def so_far(run: RunState, report: dict[str, Any], prices: Prices) -> dict[str, Any]:
    """The fields of a run that its runner's report changes, earlier attempts included."""
    given: Any = report.get("provider_metadata")
    if _says_nothing(report, given) and run.earlier is None:
        return {"provider": given["provider"], "provider_metadata": given,
                "metadata": {**run.metadata, "provider": given["provider"]}}
    about = _text_keys(given)
    told: dict[str, Any] = {**told_of(about)}
    provider = _text(about.get("provider"))
    used = usage.counts(_map(report.get("token_usage")))
    cost = prices.cost(provider, told.get("model"), used)
    for part in report.get("before") or ():  # of agents that this one took over from: each has its own price
        spent = usage.counts(_map(part["token_usage"]))
        cost = together(prices.cost(_text(part["provider"]), _text(part["model"]), spent), cost)
        used = usage.added(spent, used)
    turns = report.get("turn_count")
    turns = turns if type(turns) is int and 0 <= turns <= usage.COUNT_MAX else 0
    counts = _numbers(report.get("counts"))
    if run.earlier is not None:
        before = run.earlier
        used = usage.added(usage.counts(before["token_usage"]), used)
        cost = together(Cost(before["cost_usd"], CostState(before["cost_state"])), cost)
        turns = min(turns + before["turn_count"], usage.COUNT_MAX)
        former = before.get("counts") or {}
        counts = {name: counts.get(name, 0) + former.get(name, 0) for name in counts | former}
    routing = about.pop("routing", None)
    if type(routing) is dict:
        told = {**told, "routing": routing}
    return {
        "token_usage": usage.without_cost(used), "cost_usd": cost.usd, "cost_state": cost.state,
        "turn_count": turns, "provider": provider, "provider_metadata": about, "counts": counts,
        "metadata": {**run.metadata, **({} if provider is None else {"provider": provider}), **told},
    }


def settled(run: RunState, report: dict[str, Any], prices: Prices) -> dict[str, Any]:
    """The fields of a run that its settlement sets."""
    fields = so_far(run, report, prices) | checked_result(report)
    if type(report.get("policy")) is dict:
        fields["metadata"] = {**fields["metadata"], "policy": report["policy"]}
    if workspace := _map(report.get("workspace")):
        fields["metadata"] = {**fields["metadata"], "workspace": _text_keys(workspace)}
    return fields


def _says_nothing(report: dict[str, Any], about: Any) -> bool:
    """Whether a report holds no more than the provider's name. Most do: they must not pay for the others."""
    return (
        not report.get("token_usage") and not report.get("turn_count") and not report.get("counts")
        and type(about) is dict and len(about) == 1 and _text(about.get("provider")) is not None
    )


def begin_again(run: RunState) -> RunState:
    """The run before another attempt: what it used until now counts too."""
    if not (run.token_usage or run.turn_count or run.counts) and run.cost_state == CostState.NO_USAGE:
        return run
    names = ("token_usage", "cost_usd", "cost_state", "turn_count", "counts")
    return msgspec.structs.replace(run, earlier={name: getattr(run, name) for name in names})


def told_of(about: dict[str, Any]) -> dict[str, str]:
    """The id under which the provider knows the conversation, and the model that answered."""
    found = {name: _text(about.get(name)) for name in TOLD}
    return {name: text for name, text in found.items() if text}


def remembered(session: SessionState, report: dict[str, Any]) -> SessionState | None:
    """The session with what its provider told in ``metadata.provider_sessions``; None when that is no news.

    Made from the session as it is now, so nothing that changed while the run executed is lost.
    """
    about = report.get("provider_metadata")
    if type(about) is not dict or len(about) < 2:
        return None
    provider, told = _text(about.get("provider")), _kept(about)
    if provider is None or not told:
        return None
    known = session.metadata.get("provider_sessions")
    known = known if type(known) is dict else {}
    mine = known.get(provider)
    if type(mine) is dict and told.items() <= mine.items():
        return None
    metadata = {name: value for name, value in session.metadata.items() if name not in TOLD}
    mine = {**(mine if type(mine) is dict else {}), **told}
    return msgspec.structs.replace(
        session, metadata={**metadata, "provider_sessions": {**known, provider: mine}}
    )


def _kept(about: dict[str, Any]) -> dict[str, Any]:
    """What of it is kept with the session."""
    told: dict[str, Any] = {**told_of(about)}
    used = about.get(USED_BEFORE)
    if type(used) is dict and used:
        told[USED_BEFORE] = usage.counts(used)
    return told


def _text(value: Any) -> str | None:
    return value if type(value) is str and 0 < len(value) <= TOLD_CHARS_MAX else None


def _map(value: Any) -> dict[Any, Any]:
    return value if type(value) is dict else {}


def _numbers(value: Any) -> dict[str, float]:
    return {
        str(name): number for name, number in _map(value).items()
        if type(number) in (int, float) and 0 <= number < inf
    }


def _text_keys(value: Any) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if type(value) is dict else {}


__all__ = [
    "TOLD", "TOLD_CHARS_MAX", "USED_BEFORE", "begin_again", "remembered", "settled", "so_far", "told_of",
]
