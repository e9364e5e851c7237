"""Which field of a request is wrong, what it holds and what it may hold; never the text of a document or question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["FieldError", "describe", "field_errors", "parameter_errors"]

_LONGEST_NAME = 64


@dataclass(frozen=True)
class FieldError:
    """One field.

    Attributes:
        field: its name, with dots and indices where it is nested.
        value: what it holds, in words.
        limit: what it may hold.
    """

    field: str
    value: str
    limit: str

    @property
    def sentence(self) -> str:
        """All three in one."""
        return f"{self.field}: got {self.value}, expected {self.limit}"

    def body(self) -> dict[str, str]:
        """As clients see it."""
        return {"field": self.field, "value": self.value, "limit": self.limit}


def field_errors(errors: Iterable[Mapping[str, Any]], known: Iterable[str]) -> list[FieldError]:
    """Read the errors that pydantic finds in a body.

    Args:
        errors: as `ValidationError.errors` gives them.
        known: names of the fields that may be there.
    """
    return [_field_error(error, error["loc"], known) for error in errors]


def parameter_errors(errors: Iterable[Mapping[str, Any]]) -> list[FieldError]:
    """Read the errors that pydantic finds in parameters of a path or query, which hold no texts and are quoted."""
    found = []
    for error in errors:
        # The first part of the place says path or query.
        problem = _field_error(error, error["loc"][1:], ())
        found.append(replace(problem, value=_printable(repr(error.get("input")))))
    return found


def _field_error(error: Mapping[str, Any], place: Sequence[str | int], known: Iterable[str]) -> FieldError:
    name = ".".join(_printable(str(part)) for part in place) or "body"
    match error["type"]:
        case "missing":
            return FieldError(name, "nothing", "a value")
        case "extra_forbidden":
            return FieldError(name, "a field of unknown name", f"one of {', '.join(known)}")
        case "model_type":
            return FieldError(name, describe(error.get("input")), "an object")
        case kind:
            limit = (
                str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ").split(", unable")[0]
            )
            value = describe(error.get("input"))
            if kind in ("string_too_long", "string_too_short"):
                limit = limit.removeprefix("String should have ")
            return FieldError(name, value, limit)


def describe(value: Any) -> str:
    """A value in words; of texts only the length."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else _short_integer(value)
        case str():
            if not value:
                return "an empty string"
            return f"a text of {len(value)} character{'s' if len(value) > 1 else ''}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case _:
            return "an object"


def _short_integer(value: int) -> str:
    return str(value) if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"


def _printable(name: str) -> str:
    """A name that the client has made up."""
    shown = name.encode("ascii", "backslashreplace").decode()
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[:_LONGEST_NAME]}…"
