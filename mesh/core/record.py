"""What all records have in common: frozen, typed, a map form, and a reader that refuses what is wrong.

A map that comes from a newer node may hold more keys; they are ignored. A missing optional key gives the
default; a missing required one, or a value of another type, is refused with its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import msgspec

from mesh.core.plain import RECORD_DEPTH_MAX, converted, to_json
from mesh.errors import InvalidArgument

#: A text that is not empty.
Text = Annotated[str, msgspec.Meta(min_length=1)]
#: A whole number from 0.
Count = Annotated[int, msgspec.Meta(ge=0)]
#: A whole number from 1.
Number = Annotated[int, msgspec.Meta(ge=1)]


class Record(msgspec.Struct, frozen=True):
    """A typed, frozen value with a map form."""

    def to_map(self) -> dict[str, Any]:
        """The record as plain maps and lists, keys named as the fields (the table of ``core.plain``)."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        found: dict[str, Any] = converted(values, type(self).__name__, depth_max=RECORD_DEPTH_MAX)
        return found

    def to_json(self) -> str:
        """``to_map`` as one line of JSON; bytes are base64."""
        return to_json(self)

    #: Field -> the code of a wrong value; that of all others is ``validation_error``.
    REFUSALS: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Self:
        """Build from a map; unknown keys are ignored.

        Raises:
            InvalidArgument: ``validation_error``, or the field's own code; the message names the field.
        """
        if not isinstance(values, Mapping):
            raise InvalidArgument(f"a {cls.__name__} is read from a map, not {type(values).__name__}")
        try:
            return msgspec.convert(values if type(values) is dict else dict(values), cls)
        except (msgspec.ValidationError, RecursionError) as exc:
            raise _refusal(cls, str(exc)) from exc


def _refusal(cls: type[Record], reason: str) -> InvalidArgument:
    """The typed error of what msgspec says: ``Expected `str`, got `int` - at `$.id```."""
    what, _, place = reason.partition(" - at ")
    fields = _FIELD.findall(place)
    code = cls.REFUSALS.get(fields[-1] if fields else "", "validation_error")
    where = place.strip("`").replace("$", cls.__name__, 1) or cls.__name__
    return InvalidArgument(f"{where}: {what[:200]}", code=code, details={"path": where})


_FIELD = re.compile(r"\.(\w+)")


__all__ = ["Count", "Number", "Record", "Text"]
