"""What a run costs, and how that is known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.prices import DEFAULTS, Cost, Price, PriceList, Prices, together
from mesh.core.records import CostState
from mesh.errors import ConfigError

MILLION = {"input_tokens": 1_000_000, "output_tokens": 1_000_000}
#: provider, model, USD for a million tokens each of input, output, cache read, cache creation (spec 10.8).
LISTED = [
    ("claude", None, 3, 15, 3, 3),
    ("claude", "claude-opus-4-6", 15, 75, 1.5, 18.75),
    ("claude", "claude-sonnet-4-5", 3, 15, 0.3, 3.75),
    ("claude", "claude-haiku-4-5", 0.8, 4, 0.08, 1),
    ("claude", "claude-haiku-4-5-20251001", 0.8, 4, 0.08, 1),
    ("claude", "another", 3, 15, 3, 3),
    ("codex", None, 3, 15, 3, 3),
    ("codex", "o3", 10, 40, 10, 10),
    ("codex", "o3-mini", 1.1, 4.4, 1.1, 1.1),
    ("codex", "o3-mini-2025-01-31", 1.1, 4.4, 1.1, 1.1),
    ("codex", "gpt-4o", 2.5, 10, 2.5, 2.5),
    ("codex", "gpt-4o-mini", 0.15, 0.6, 0.15, 0.15),
    ("amp", "any", 3, 15, 3, 3),
]


@pytest.mark.parametrize(("provider", "model", "input", "output", "read", "creation"), LISTED)
def test_each_listed_price(
    provider: str, model: str | None, input: float, output: float, read: float, creation: float
) -> None:
    """If a model is listed, then its tokens cost what the list says; the longest beginning wins."""
    for name, usd in (
        ("input_tokens", input), ("output_tokens", output),
        ("cache_read_tokens", read), ("cache_creation_tokens", creation),
    ):
        cost = Prices().cost(provider, model, {name: 1_000_000})
        assert (cost.usd, cost.state) == (pytest.approx(usd), CostState.COMPUTED), name


def test_reported_cost_wins() -> None:
    """If the provider says what it cost, then that is the cost, whatever the list says."""
    cost = Prices().cost("claude", None, {**MILLION, "total_cost_usd": 0.25})
    assert cost == Cost(0.25, CostState.REPORTED)


def test_reported_zero_is_not_a_price() -> None:
    """If the provider reports 0, then the cost is computed."""
    assert Prices().cost("amp", None, {**MILLION, "total_cost_usd": 0}).state == CostState.COMPUTED


def test_unknown_provider_has_an_unknown_price() -> None:
    """If nobody knows a provider's prices, then the cost is unknown, not 0."""
    assert Prices().cost("python", "m", MILLION) == Cost(None, CostState.UNKNOWN_PRICE)
    assert Prices().cost(None, None, MILLION) == Cost(None, CostState.UNKNOWN_PRICE)


def test_nothing_used_costs_nothing_that_is_known() -> None:
    """If no tokens were reported, then there is no usage, and no cost."""
    assert Prices().cost("claude", "m", {}) == Cost(None, CostState.NO_USAGE)
    assert Prices().cost("claude", "m", {"input_tokens": 0, "turns": 3}) == Cost(None, CostState.NO_USAGE)


def test_config_adds_and_overrides() -> None:
    """If the config names models or a default, then they win, and the rest of the list holds."""
    prices = Prices({
        "python": {"models": {"mine": {"input": 1e-6, "output": 2e-6}}},
        "claude": {"input": 1e-6, "output": 1e-6},
    })
    assert prices.cost("python", "mine-2", MILLION).usd == pytest.approx(3)
    assert prices.cost("python", "other", MILLION).state == CostState.UNKNOWN_PRICE
    assert prices.cost("claude", None, MILLION).usd == pytest.approx(2)
    assert prices.cost("claude", "claude-opus-4-6", MILLION).usd == pytest.approx(90)
    assert DEFAULTS["claude"].default == Price(3e-6, 15e-6)


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"p": 3}, "prices.p"),
        ({"p": {"models": 3}}, "prices.p.models"),
        ({"p": {"models": {"m": 3}}}, "prices.p.models.m"),
        ({"p": {"input": 3.0, "output": 15.0}}, "million"),
        ({"p": {"input": -1e-6, "output": 0}}, "input"),
        ({"p": {"input": "3", "output": 0}}, "input"),
        ({"p": {"input": True, "output": 0}}, "input"),
        ({"p": {"input": float("nan"), "output": 0}}, "input"),
        ({"p": {"input": 1e-6}}, "output"),
        ({"p": {"input": 1e-6, "outptu": 1e-6}}, "outptu"),
        ({"p": {"input": 1e-6, "output": 0, "default": {"input": 1e-6, "output": 0}}}, "twice"),
    ],
)
def test_wrong_price_is_named(tables: dict[str, Any], named: str) -> None:
    """If a price is wrong, or was meant per million tokens, then the refusal names it."""
    with pytest.raises(ConfigError) as refused:
        Prices(tables)
    assert named in refused.value.message


@given(models=st.sets(st.text("ab-", min_size=1, max_size=6)), model=st.text("ab-", max_size=8))
def test_the_longest_beginning_is_found(models: set[str], model: str) -> None:
    """If several listed names begin a model's name, then the longest is its price; else the default."""
    listed = {name: Price(len(name), 0) for name in models}
    fitting = [len(name) for name in models if model.startswith(name)]
    assert PriceList(listed, Price(0, 0)).find(model) == Price(max(fitting, default=0), 0)


COSTS = st.sampled_from([
    Cost(None, CostState.NO_USAGE), Cost(None, CostState.UNKNOWN_PRICE), Cost(1.0, CostState.REPORTED),
    Cost(2.0, CostState.COMPUTED),
])


@given(a=COSTS, b=COSTS, c=COSTS)
def test_costs_of_attempts_add_in_any_order(a: Cost, b: Cost, c: Cost) -> None:
    """If attempts are added, then their order does not matter, and what is unknown stays unknown."""
    assert together(a, b) == together(b, a)
    assert together(together(a, b), c) == together(a, together(b, c))
    if CostState.UNKNOWN_PRICE in (a.state, b.state):
        assert together(a, b).usd is None
