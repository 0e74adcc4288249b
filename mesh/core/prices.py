"""What a run costs: the one table of prices, and how a price is found.

Rules of this file:

1. What the provider says it cost, when that is more than 0, is the cost. Else the counts times the price.
2. The price is that of the provider's model: its exact name, else the longest listed beginning of it, else
   the provider's default. A provider that is not listed has no price: the cost is *unknown* then, not 0.
3. Prices are USD per token. Reading from a cache, or writing to it, costs what input costs unless listed.

The table holds list prices; ``[prices.PROVIDER]`` of the config adds to it and overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

from mesh.core.records import CostState
from mesh.core.usage import CACHE_CREATION, CACHE_READ, COST, INPUT, OUTPUT, Counts
from mesh.errors import ConfigError, shown

#: Names of models are what providers say: so many are remembered.
FOUND_MAX = 1_024
#: More than this per token is surely meant per million of them.
USD_PER_TOKEN_MAX = 0.01


class Price(NamedTuple):
    """USD per token."""

    input: float
    output: float
    cache_read: float | None = None
    cache_creation: float | None = None

    def of(self, used: Counts) -> float:
        """What these counts cost."""
        cached = self.input if self.cache_read is None else self.cache_read
        creation = self.input if self.cache_creation is None else self.cache_creation
        return (
            used.get(INPUT, 0) * self.input + used.get(OUTPUT, 0) * self.output
            + used.get(CACHE_READ, 0) * cached + used.get(CACHE_CREATION, 0) * creation
        )


class PriceList(NamedTuple):
    """The prices of one provider."""

    models: dict[str, Price]
    default: Price | None = None

    def find(self, model: str | None) -> Price | None:
        """The price of a model, None when nobody knows it."""
        if model is not None:
            for length in range(len(model), 0, -1):
                if (price := self.models.get(model[:length])) is not None:
                    return price
        return self.default


_CLAUDE = PriceList({
    "claude-opus-4-6": Price(15e-6, 75e-6, 1.5e-6, 18.75e-6),
    "claude-sonnet-4-5": Price(3e-6, 15e-6, 0.3e-6, 3.75e-6),
    "claude-haiku-4-5": Price(0.8e-6, 4e-6, 0.08e-6, 1e-6),
}, Price(3e-6, 15e-6))
_OPENAI = PriceList({
    "o3": Price(10e-6, 40e-6),
    "o3-mini": Price(1.1e-6, 4.4e-6),
    "gpt-4o": Price(2.5e-6, 10e-6),
    "gpt-4o-mini": Price(0.15e-6, 0.6e-6),
}, Price(3e-6, 15e-6))
#: provider -> its prices, where nobody says otherwise.
DEFAULTS: dict[str, PriceList] = {
    "amp": PriceList({}, Price(3e-6, 15e-6)),
    "anthropic": _CLAUDE,
    "claude": _CLAUDE,
    "claude_code": _CLAUDE,
    "codex": _OPENAI,
    "openai": _OPENAI,
}
_KINDS = frozenset(Price._fields)


class Cost(NamedTuple):
    """What something cost, and how that is known."""

    usd: float | None
    state: CostState


class Prices:
    """The prices of a node."""

    def __init__(self, overrides: Mapping[str, Any] | None = None) -> None:
        """Take the defaults and the ``[prices]`` of the config.

        Raises:
            ConfigError: names the key that is wrong.
        """
        self.lists = dict(DEFAULTS)
        self._found: dict[tuple[str | None, str | None], Price | None] = {}
        for provider, table in (overrides or {}).items():
            self.lists[provider] = _merged(self.lists.get(provider), table, f"prices.{provider}")

    def find(self, provider: str | None, model: str | None) -> Price | None:
        """The price of a provider's model, None when it is not known."""
        if (provider, model) not in self._found:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            prices = self.lists.get(provider or "")
            self._found[provider, model] = None if prices is None else prices.find(model)
        return self._found[provider, model]

    def cost(self, provider: str | None, model: str | None, used: Counts) -> Cost:
        """What a provider's counts cost; ``total_cost_usd`` among them is the provider's own word."""
        reported = used.get(COST, 0)
        if reported > 0:
            return Cost(float(reported), CostState.REPORTED)
        if not (used.get(INPUT) or used.get(OUTPUT) or used.get(CACHE_READ) or used.get(CACHE_CREATION)):
            return Cost(None, CostState.NO_USAGE)
        price = self.find(provider, model)
        if price is None:
            return Cost(None, CostState.UNKNOWN_PRICE)
        usd = price.of(used)
        if not isfinite(usd):
            return Cost(None, CostState.UNKNOWN_PRICE)
        return Cost(_rounded(usd), CostState.COMPUTED)


def together(a: Cost, b: Cost) -> Cost:
    """Two costs as one: what is unknown in one is unknown in both; a sum is reported if both were."""
    if CostState.NO_USAGE in (a.state, b.state):
        return a if b.state == CostState.NO_USAGE else b
    if a.usd is None or b.usd is None:
        return Cost(None, CostState.UNKNOWN_PRICE)
    return Cost(_rounded(a.usd + b.usd), a.state if a.state == b.state else CostState.COMPUTED)


def _rounded(usd: float) -> float:
    """Without what binary fractions add to a sum of millionths."""
    return round(usd, 12)


def _merged(base: PriceList | None, table: Any, place: str) -> PriceList:
    """A provider's prices with those of its table, which may name models and may be flat (the default)."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"[{place}] must be a table, not {type(table).__name__}")
    models, default = (dict(base.models), base.default) if base is not None else ({}, None)
    given = table.get("models", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"[{place}.models] must be a table, not {type(given).__name__}")
    for model, prices in given.items():
        models[str(model)] = _price(prices, f"{place}.models.{model}")
    flat = {key: value for key, value in table.items() if key not in ("models", "default")}
    if "default" in table and flat:
        raise ConfigError(f"[{place}] has a default twice: as {place}.default and beside it")
    if flat or "default" in table:
        default = _price(table.get("default", flat), place)
    return PriceList(models, default)


def _price(table: Any, place: str) -> Price:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place} = {shown(table)}: expected input and output, in USD per token")
    for key, value in table.items():
        if key not in _KINDS:
            raise ConfigError(f"unknown key {place}.{key} (known: {', '.join(sorted(_KINDS))}, models)")
        if type(value) not in (int, float) or not 0 <= value <= USD_PER_TOKEN_MAX:
            raise ConfigError(
                f"{place}.{key} = {shown(value)}: expected USD per token, from 0 to {USD_PER_TOKEN_MAX:g} "
                "(3 USD per million tokens are 3e-6)"
            )
    missing = {"input", "output"} - table.keys()
    if missing:
        raise ConfigError(f"{place} needs {min(missing)}, in USD per token")
    return Price(**{key: float(value) for key, value in table.items()})


__all__ = [
    "DEFAULTS", "FOUND_MAX", "USD_PER_TOKEN_MAX", "Cost", "Price", "PriceList", "Prices", "together",
]
