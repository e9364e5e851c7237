"""Request bodies, read within a limit."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.api.engine import settings_of
from service.api.fields import FieldError, field_errors
from service.api.problems import Problem, ProblemError, invalid_fields

__all__ = [
    "check_value",
    "decode_text",
    "media_type",
    "parse_json",
    "read_body",
    "read_json",
    "unsupported_media_type",
    "validate",
]

M = TypeVar("M", bound=BaseModel)

# A client that sends too much rarely reads the answer before it has sent all. So far, what it sends is thrown away.
_DRAIN_BYTES = 256 * 1024**2
_DRAIN_SECONDS = 30.0
_LEAST_BYTES_PER_SECOND = 4096
_DEEPEST = 32


def media_type(request: Request) -> tuple[str, dict[str, str]]:
    """Media type and parameters of the body, names in lower case."""
    essence, *rest = request.headers.get("content-type", "").split(";")
    parameters = {}
    for part in rest:
        name, _, value = part.partition("=")
        parameters[name.strip().lower()] = value.strip().strip('"')
    return essence.strip().lower(), parameters


def unsupported_media_type(request: Request, *accepted: str) -> ProblemError:
    """The error for a body of another media type than those accepted."""
    got = request.headers.get("content-type", "")[:100] or "none"
    detail = f"Content-Type: got {got!r}, expected {' or '.join(accepted)}, in UTF-8"
    return ProblemError(Problem("unsupported-media-type", 415, detail, headers={"Accept": ", ".join(accepted)}))


async def read_body(request: Request, limit: int) -> bytes:
    """The body, of which never more than `limit` bytes are held.

    Raises:
        ProblemError: it is larger (413), or its client pauses for too long (408).
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ProblemError(
            Problem("unsupported-media-type", 415, f"Content-Encoding: got {encoding[:100]!r}, expected none")
        )
    declared = request.headers.get("content-length", "")
    chunks = request.stream()
    if declared.isdecimal() and int(declared) > limit:
        # A client that asks first has sent nothing yet.
        if request.headers.get("expect", "").lower() != "100-continue":
            await _drain(chunks)
        _refuse(limit)
    body = bytearray()
    patience = settings_of(request).body_seconds
    # A few bytes now and then are no progress either: on average it must be this fast.
    deadline = time.monotonic() + patience
    while True:
        try:
            async with asyncio.timeout(min(patience, deadline - time.monotonic())):
                chunk = await anext(chunks, None)
        except TimeoutError:
            detail = f"the body came too slowly: it may pause for {patience:g} seconds (PERK_BODY_SECONDS)"
            raise ProblemError(Problem("too-slow", 408, detail, headers={"Connection": "close"})) from None
        if chunk is None:
            return bytes(body)
        if len(body) + len(chunk) > limit:
            body.clear()
            await _drain(chunks)
            _refuse(limit)
        body += chunk
        deadline += len(chunk) / _LEAST_BYTES_PER_SECOND


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    thrown_away = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in chunks:
                thrown_away += len(chunk)
                if thrown_away > _DRAIN_BYTES:
                    return
    except TimeoutError:
        return


def _refuse(limit: int) -> NoReturn:
    error = FieldError("body", f"more than {limit} bytes", f"at most {limit} bytes")
    raise ProblemError(Problem("body-too-large", 413, error.sentence, (error,), {"Connection": "close"}))


def decode_text(content: bytes, field: str) -> str:
    """Text in UTF-8.

    Raises:
        ProblemError: it is not UTF-8 (422).
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = FieldError(field, f"bytes that are not UTF-8 at position {error.start}", "text in UTF-8")
        raise ProblemError(invalid_fields(problem)) from None


async def read_json(request: Request, model: type[M], limit: int) -> M:
    """A body in JSON, checked against a model.

    Raises:
        ProblemError: it is no JSON (400), too large (413), of another type (415), or has an invalid field (422).
    """
    essence, parameters = media_type(request)
    if essence != "application/json" or parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise unsupported_media_type(request, "application/json")
    text = decode_text(await read_body(request, limit), "body")
    return validate(model, parse_json(text))


def parse_json(text: str) -> Any:
    """A JSON value.

    Raises:
        ProblemError: it is none (400), or has a string, number or depth that cannot be kept (422).
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        detail = f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise ProblemError(Problem("malformed", 400, detail)) from None
    except (ValueError, RecursionError):
        detail = "the body is not JSON that can be read: a number is too long, or values are nested too deep"
        raise ProblemError(Problem("malformed", 400, detail)) from None
    check_value(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no JSON value", name, 0)


def check_value(value: Any) -> None:
    """Refuse what JSON can spell, but no one can keep: half characters, numbers beyond floats, bottomless nesting.

    Raises:
        ProblemError: the value has one of these (422).
    """
    pending: list[tuple[str, Any, int]] = [("", value, 0)]
    while pending:
        place, current, depth = pending.pop()
        name = place or "body"
        if depth > _DEEPEST:
            raise ProblemError(invalid_fields(FieldError(name, "deeper nesting", f"at most {_DEEPEST} levels")))
        match current:
            case str() if not _is_encodable(current):
                error = FieldError(name, "a lone surrogate (half a character)", "whole Unicode characters")
                raise ProblemError(invalid_fields(error))
            case float() if not math.isfinite(current):
                raise ProblemError(invalid_fields(FieldError(name, "a number out of range", "a finite number")))
            case dict():
                for key, item in current.items():
                    if not _is_encodable(key):
                        error = FieldError(name, "a name with a lone surrogate", "whole Unicode characters")
                        raise ProblemError(invalid_fields(error))
                    pending.append((_join(place, key), item, depth + 1))
            case list():
                pending.extend((_join(place, str(index)), item, depth + 1) for index, item in enumerate(current))


def _join(place: str, name: str) -> str:
    shown = name.encode("ascii", "backslashreplace").decode()[:64]
    return f"{place}.{shown}" if place else shown


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def validate(model: type[M], value: Any) -> M:
    """Check a value against a model.

    Raises:
        ProblemError: a field is invalid (422); all of them are named.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ProblemError(invalid_fields(*field_errors(error.errors(include_url=False), model.model_fields))) from None
