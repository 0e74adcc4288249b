"""The fuzz targets for a second each, with hypothesis; and every input that ever was a finding."""

from __future__ import annotations

import os

import pytest
from crashes import CRASHES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS

from mesh.core import wire

#: ``MESH_FUZZ_EXAMPLES`` is no setting of a node, so it is read before the tests clean the environment.
EXAMPLES = int(os.environ.pop("MESH_FUZZ_EXAMPLES", "150"))
_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)
#: Bytes of any kind; msgpack that is whole; calls; a header before them; and all of these with a wound.
_WHOLE = st.one_of(
    st.binary(max_size=400),
    _VALUES.map(wire.pack),
    st.lists(st.tuples(st.text(), st.lists(_VALUES, max_size=3)), max_size=3).map(wire.pack),
    st.text().map(lambda text: text.encode()),
    st.builds(
        lambda kind, flags, request, body: wire.encode_header(kind, flags=flags, request_id=request) + body,
        st.integers(0, 255),
        st.integers(0, 255),
        st.integers(0, 2**64 - 1),
        _VALUES.map(wire.pack),
    ),
)


@st.composite
def _wounded(draw: st.DrawFn) -> bytes:
    """Something whole with a few of its bytes cut, replaced or doubled."""
    data = bytearray(draw(_WHOLE))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=_WHOLE | _wounded() | st.binary(min_size=200, max_size=4000))
def test_whatever_the_bytes_are_the_target_behaves(name: str, data: bytes) -> None:
    """If any bytes arrive, then the answer is typed and the invariants hold."""
    TARGETS[name](data)


@pytest.mark.parametrize(("name", "data"), CRASHES)
def test_what_was_found_once_is_not_found_again(name: str, data: bytes) -> None:
    """If an input that broke a target comes again, then it behaves."""
    TARGETS[name](data)
