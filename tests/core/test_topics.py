"""What is subscribed, counted as it comes and goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.topics import Topics

NAMES = (
    b"",
    b"s",
    b"session.",
    b"session.a.",
    b"session.b.",
    b"session.a.run_started",
    b"session.a",
    b"route.",
    b"rou",
    b"route.set",
    b"node.head",
    b"lifecycle.",
    b"life",
    b"lifecycle.started.x",
    b"packed.all",
    b"packed.one.a.",
)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(NAMES)), max_size=40), st.sampled_from((2, 100)))
def test_counts_are_what_looking_at_every_topic_says(steps: list[tuple[bool, bytes]], most: int) -> None:
    """If topics come and go, then what is wanted is never less than what somebody is subscribed to."""
    topics, held = Topics(most), set()
    for comes, name in steps:
        if comes and name not in held:
            held.add(name)
            topics.add(name)
        elif not comes and name in held:
            held.discard(name)
            topics.discard(name)
    sessions = {t for t in held if t.startswith(b"session.") or b"session.".startswith(t)}
    whole = {t for t in sessions if t.count(b".") == 2 and t.endswith(b".")}
    packed = {t for t in held if t.startswith(b"packed.")}
    routes = any(t.startswith(b"route.") or b"route.".startswith(t) for t in held)
    lifecycle = any(t.startswith(b"lifecycle.") or b"lifecycle.".startswith(t) for t in held)
    assert topics.lifecycle == lifecycle or (topics.lifecycle and topics.over)
    if most == 100:
        assert topics.every_session == bool(sessions - whole) and topics.sessions == whole
        assert topics.packed == packed and topics.routes == routes
        assert topics.over == 0 and len(topics) == len(held)
    else:
        assert topics.every_session or (whole <= topics.sessions and not sessions - whole)
        assert topics.routes or not routes
        assert topics.over or topics.packed == packed


def test_topic_counts_once_and_what_is_over_the_bound_means_everything() -> None:
    """If there are more topics than the bound, then they are counted, and everything is wanted meanwhile."""
    topics = Topics(2)
    for name in (b"session.a.", b"session.a.", b"session.b.", b"session.c."):
        topics.add(name)
    assert (len(topics), topics.over, topics.sessions) == (3, 1, {b"session.a.", b"session.b."})
    assert topics.every_session and topics.routes
    topics.discard(b"session.c.")
    assert (len(topics), topics.over, topics.every_session, topics.routes) == (2, 0, False, False)
    topics.discard(b"never")
    assert len(topics) == 2
