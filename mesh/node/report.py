"""What a run reports beside its events: what it used, its turns, and how its provider calls itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.core import usage
from mesh.core.account import TOLD, told_of
from mesh.core.policy import LIMITS
from mesh.core.wire import pack
from mesh.errors import InvalidArgument, shown
from mesh.providers.base import Output

#: Events that policies count, and as what.
COUNTED = {kind.event: kind.metric for kind in LIMITS.values() if kind.event is not None}


class Report:
    """The account of one attempt. ``changed`` is told to send it along with the next batch of events."""

    def __init__(self, changed: Callable[[Callable[[], bytes]], None]) -> None:
        self.mode: str = usage.UsageMode.TOTAL
        self.used: usage.Counts = {}
        self._turns = 0
        self.counts: dict[str, float] = {}  #: what policies count beside tokens and cost
        self.provider: str | None = None
        self._about: dict[str, Any] = {}
        self._before: list[dict[str, Any]] = []  #: what other agents used, whom this one took over from
        self._changed = changed

    def count(self, data: dict[str, Any]) -> None:
        """Fold what was used into the run's counts, as the event says, else as the provider declares.

        Raises:
            InvalidArgument: another ``mode``.
        """
        mode = data.get("mode", self.mode)
        if mode not in ("delta", "total"):
            raise InvalidArgument(f"mode of token_usage_updated is delta or total, not {shown(mode)}")
        self.used = usage.folded(self.used, data, mode)
        self.tell({"model": data.get("model")})
        self._changed(self.encoded)

    @property
    def model(self) -> str | None:
        """The model that answers, as far as the provider said."""
        model: str | None = self._about.get(TOLD[1])
        return model

    def turn(self) -> None:
        """One more turn is complete."""
        self._turns += 1
        self._changed(self.encoded)

    def note(self, event_type: str) -> None:
        """An event that policies count."""
        metric = COUNTED[event_type]
        self.counts[metric] = self.counts.get(metric, 0) + 1
        self._changed(self.encoded)

    def tell(self, data: dict[str, Any]) -> None:
        """Take what the provider says about itself: the id to resume by, its model."""
        if not data:
            return
        session_id = data.get("provider_session_id") or data.get("session_id") or data.get("thread_id")
        told = told_of({TOLD[0]: session_id, TOLD[1]: data.get(TOLD[1])})
        if told and not told.items() <= self._about.items():
            self._about |= told
            self._changed(self.encoded)

    def routed(self, routing: dict[str, Any]) -> None:
        """Take how a router came to its provider."""
        self._about["routing"] = routing
        self._changed(self.encoded)

    def before(self, spent: Report) -> None:
        """Another agent used something before this one began."""
        self._before.append({
            "provider": spent.provider, "model": spent.model, "token_usage": spent.used,
        })
        self._changed(self.encoded)

    def anew(self) -> None:
        """Another agent begins."""
        self.used, self._about = {}, {}

    def end(self, output: Output, metadata: dict[str, Any]) -> None:
        """Take what the provider says at the end; its last word on a count is the count."""
        if metadata:
            self.tell(metadata)
            self._about = {**metadata, **self._about}
        if output.token_usage or output.cost_usd is not None:
            self.used |= usage.counts(output.token_usage) | usage.counts({usage.COST: output.cost_usd})

    def to_map(self) -> dict[str, Any]:
        """The report as it travels."""
        counts = {"counts": self.counts} if self.counts else {}
        return {
            "token_usage": self.used, "turn_count": self._turns, **counts,
            "provider_metadata": {"provider": self.provider, **self._about},
            **({"before": self._before} if self._before else {}),
        }

    def encoded(self) -> bytes:
        """The report so far, for a batch that does not settle the run."""
        return pack(self.to_map())


__all__ = ["COUNTED", "Report"]
