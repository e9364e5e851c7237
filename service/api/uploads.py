"""Documents sent as a form with a file."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import PurePath
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.api.body import check_value, decode_text, parse_json, read_body, validate
from service.api.disconnect import while_connected
from service.api.fields import FieldError
from service.api.problems import Problem, ProblemError, invalid_fields
from service.api.schemas import LONGEST_TITLE, DocumentIn
from service.uploads.extract import TextExtraction
from service.uploads.kinds import ACCEPTED, kind_of

__all__ = ["read_upload"]

_FIELDS = ("file", "title", "metadata")
# More than there are, so that one too many is named instead of called malformed.
_MOST_FIELDS = 8


async def read_upload(request: Request, limit: int) -> DocumentIn:
    """A form with ``file``, and perhaps ``title`` and ``metadata`` (an object in JSON).

    Raises:
        ProblemError: the form is malformed (400), too large (413), its file of another kind (415), or a field is
            invalid (422).
        ExtractionFailed: the file has no text that can be read.
    """
    form = await _parse(request, await read_body(request, limit), limit)
    try:
        return await _document(request, form)
    finally:
        await form.close()


async def _parse(request: Request, body: bytes, limit: int) -> FormData:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, chunks(), max_files=_MOST_FIELDS, max_fields=_MOST_FIELDS, max_part_size=limit
    )
    # The body is in memory already, and no more than `limit`: a copy on a disk that may be full helps no one.
    parser.spool_max_size = limit + 1
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "the Content-Type has no valid boundary"
        raise ProblemError(Problem("malformed", 400, f"the form is malformed: {reason}")) from None


async def _document(request: Request, form: FormData) -> DocumentIn:
    values: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, value in form.multi_items():
        if name not in _FIELDS:
            errors.append(FieldError(name[:64], "a field of unknown name", " or ".join(_FIELDS)))
        elif name in values:
            errors.append(FieldError(name, "more than one", "one"))
        else:
            values[name] = value
    if "file" not in values:
        errors.append(FieldError("file", "nothing", "a file"))
    if errors:
        raise ProblemError(invalid_fields(*errors))
    file = values.pop("file")
    if isinstance(file, UploadFile):
        values.setdefault("title", PurePath(file.filename or "").name[:LONGEST_TITLE] or None)
        file = await _text(request, file)
    if isinstance(values.get("metadata"), str):
        values["metadata"] = parse_json(values["metadata"])
    sent = {"text": file, **values}
    check_value(sent)
    return validate(DocumentIn, sent)


async def _text(request: Request, file: UploadFile) -> str:
    content = await file.read()
    kind = kind_of(file.filename or "", file.content_type or "", content)
    if kind is None:
        detail = f"file: its name, type and content do not agree on {ACCEPTED}"
        raise ProblemError(Problem("unsupported-media-type", 415, detail))
    if kind == "text":
        return decode_text(content, "file")
    extraction: TextExtraction = request.app.state.extraction
    return await while_connected(request, extraction.text(kind, content))
