"""A seat's plans, by hand: what an answer that comes late may say about it."""

from __future__ import annotations

from mesh.client._surface_attach import Seat
from mesh.core.attached import Claim
from mesh.errors import NotAllowed


def claimed(key: str) -> Claim:
    return Claim(session_id="s", key=key * 16, claim=key, by=None, since=0.0, ttl_s=30.0)


def renewed(seat: Seat, meanwhile: Claim | None) -> bool:
    """A renewal that is refused; whether the seat drives behind it."""
    plan = seat.renew(1.0)
    next(plan)
    if meanwhile is not None:
        seat._set(meanwhile)
    try:
        plan.send([NotAllowed("another one drives", code="not_driver")])
    except StopIteration as stop:
        return bool(stop.value)
    raise AssertionError("the plan goes on")


def test_refused_renewal_of_a_former_claim_ends_no_new_one() -> None:
    """If a seat lost its right and claims it again while its old claim is being renewed, then it drives."""
    seat = Seat("s", "driver", token=None, by=None, ttl_s=None)
    seat._set(claimed("aa"))
    assert renewed(seat, claimed("bb")) and seat.role == "driver"
    assert not renewed(seat, None) and seat.role == "viewer"
