"""``/documents``: send, look at, list and delete documents, and take their adapters away."""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncGenerator
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import WithJsonSchema

from service.api.auth import require_key, tenant_of
from service.api.body import decode_text, media_type, read_body, read_json, unsupported_media_type, validate
from service.api.disconnect import while_connected
from service.api.engine import engine_of, settings_of
from service.api.events import Event, event_response
from service.api.openapi import body_of, problems
from service.api.schemas import DocumentIn, DocumentOut, DocumentPage
from service.api.uploads import read_upload
from service.engine.document import Document
from service.store.protocol import Place

__all__ = ["router"]

router = APIRouter(prefix="/documents", tags=["documents"], dependencies=[Depends(require_key)])

_WAIT = re.compile(r"""(?:^|[,;\s])wait\s*=\s*"?(\d{1,9})"?\s*(?:$|[,;])""", re.IGNORECASE)
_LONGEST_WAIT_SECONDS = 3600
# The moment of a document's creation, in the bits of a float that is positive and finite, and the digits of its id.
_CURSOR = r"^[0-6][0-9a-f]{47}$"
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`wait=SECONDS`: answer only when the encode has ended, or after that time (RFC 7240)",
    "schema": {"type": "string"},
    "example": "wait=30",
}
_LOCATION = {"Location": {"description": "of the document", "schema": {"type": "string"}}}


@router.post(
    "",
    status_code=202,
    response_model=DocumentOut,
    responses={
        200: {"model": DocumentOut, "description": "The same text is encoded already.", "headers": _LOCATION},
        201: {
            "model": DocumentOut,
            "description": "Encoded within the time of `Prefer: wait=SECONDS`.",
            "headers": _LOCATION,
        },
        202: {"description": "Taken; it will be encoded.", "headers": _LOCATION},
        **problems(400, 401, 403, 408, 413, 415, 422, 429, 503),
    },
    openapi_extra=body_of(DocumentIn, text=True, upload=True) | {"parameters": [_PREFER]},
)
async def send_document(request: Request) -> Response:
    """Encode a document."""
    documents = engine_of(request).documents
    tenant = tenant_of(request)
    sent = await _read_document(request)
    document, was_ready = await documents.take(sent.text, title=sent.title, metadata=sent.metadata, tenant=tenant)
    structlog.contextvars.bind_contextvars(document_id=document.record.id)
    headers = {"Location": f"/documents/{document.record.id}"}
    if was_ready:
        return _response(document, 200, headers)
    seconds = _preferred_wait(request)
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
        document = await while_connected(request, documents.wait(document.record.id, seconds, tenant.owner))
    return _response(document, 201 if document.ended else 202, headers)


@router.get("", response_model=DocumentPage, responses=problems(401, 422, 429, 503))
async def list_documents(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[
        str | None,
        Query(description="`next_cursor` of the page before", pattern=_CURSOR),
        # A parameter that is not there is not null.
        WithJsonSchema({"type": "string", "pattern": _CURSOR}),
    ] = None,
) -> Response:
    """Documents, the newest first."""
    after = None if cursor is None else _place(cursor)
    found = await engine_of(request).documents.page(limit + 1, after, tenant_of(request).owner)
    page = found[:limit]
    next_cursor = _cursor(page[-1]) if len(found) > limit else None
    shown = DocumentPage(data=[DocumentOut.of(document) for document in page], next_cursor=next_cursor)
    return JSONResponse(shown.model_dump())


@router.get("/{document_id}", response_model=DocumentOut, responses=problems(401, 404, 422, 429, 503))
async def show_document(request: Request, document_id: str) -> Response:
    """A document as it stands."""
    return _response(await engine_of(request).documents.find(document_id, tenant_of(request).owner), 200)


@router.delete("/{document_id}", status_code=204, response_class=Response, responses=problems(401, 404, 422, 429, 503))
async def delete_document(request: Request, document_id: str) -> Response:
    """Forget text and adapter, everywhere; an encode or answer that runs ends."""
    await engine_of(request).delete(document_id, tenant_of(request).owner)
    return Response(status_code=204)


@router.get(
    "/{document_id}/events",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "`progress`, then `ready` or `failed`."},
        **problems(401, 404, 422, 429, 503),
    },
)
async def follow_document(request: Request, document_id: str) -> Response:
    """Follow an encode."""
    documents = engine_of(request).documents
    owner = tenant_of(request).owner
    await documents.find(document_id, owner)

    async def events() -> AsyncGenerator[Event, None]:
        async for document in documents.follow(document_id, owner):
            yield (document.status if document.ended else "progress"), DocumentOut.of(document).model_dump()

    return event_response(request, events())


@router.get(
    "/{document_id}/adapter",
    response_class=Response,
    responses={
        200: {"content": {"application/zip": {}}, "description": "The PEFT folder."},
        **problems(401, 404, 409, 422, 429, 503),
    },
)
async def take_adapter(request: Request, document_id: str) -> Response:
    """The adapter as a PEFT folder, in a zip archive."""
    exporting = engine_of(request).documents.export(document_id, tenant_of(request).owner)
    archive = await while_connected(request, exporting)
    disposition = f'attachment; filename="{document_id}.zip"'
    return Response(archive, media_type="application/zip", headers={"Content-Disposition": disposition})


def _response(document: Document, status: int, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(DocumentOut.of(document).model_dump(), status_code=status, headers=headers)


async def _read_document(request: Request) -> DocumentIn:
    limit = settings_of(request).max_document_bytes
    essence, parameters = media_type(request)
    match essence:
        case "application/json":
            return await read_json(request, DocumentIn, limit)
        case "text/plain" if parameters.get("charset", "utf-8").lower() in ("utf-8", "utf8", "us-ascii"):
            return validate(DocumentIn, {"text": decode_text(await read_body(request, limit), "text")})
        case "multipart/form-data":
            return await read_upload(request, limit)
        case _:
            raise unsupported_media_type(request, "application/json", "text/plain", "multipart/form-data")


def _preferred_wait(request: Request) -> int | None:
    """Seconds of ``Prefer: wait`` (RFC 7240); a preference that cannot be read is no error."""
    found = _WAIT.search(", ".join(request.headers.getlist("prefer")))
    return min(int(found[1]), _LONGEST_WAIT_SECONDS) if found else None


def _cursor(document: Document) -> str:
    record = document.record
    return struct.pack(">d", record.created_at).hex() + record.id.removeprefix("doc_")


def _place(cursor: str) -> Place:
    (created_at,) = struct.unpack(">d", bytes.fromhex(cursor[:16]))
    return Place(created_at, f"doc_{cursor[16:]}")
