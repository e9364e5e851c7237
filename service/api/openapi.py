"""What the OpenAPI document says beyond what the framework reads from the routes: bodies, errors, limits."""

from __future__ import annotations

from copy import deepcopy
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.routing import compile_path

from service.api.chat_schemas import ChatIn, MessageIn, OpenAIErrorOut
from service.api.problems import MEDIA_TYPE
from service.api.schemas import DOCUMENT_TEXT, LONGEST_TITLE, AskIn, DocumentIn, ProblemOut
from service.settings import Settings
from service.uploads.kinds import ACCEPTED

__all__ = ["allowed_methods", "body_of", "complete", "openai_errors", "problems"]

_REFERENCE = "#/components/schemas/{model}"
# The routes read these bodies, and answer with this error, without the framework.
_OWN_MODELS = (DocumentIn, AskIn, ChatIn, ProblemOut)


def body_of(model: type[BaseModel], *, text: bool = False, upload: bool = False) -> dict[str, Any]:
    """The request body of a route.

    Args:
        model: of the body in JSON.
        text: the document alone may come as plain text.
        upload: it may come as the file of a form.
    """
    content: dict[str, Any] = {"application/json": {"schema": _reference(model)}}
    if text:
        content["text/plain"] = {"schema": {"type": "string", "pattern": DOCUMENT_TEXT}}
    if upload:
        form = {
            "type": "object",
            "properties": {
                "file": {"type": "string", "format": "binary", "description": ACCEPTED},
                "title": {"type": "string", "maxLength": LONGEST_TITLE},
                "metadata": {"type": "object", "description": "in JSON"},
            },
            "required": ["file"],
            "additionalProperties": False,
        }
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route."""
    content = {MEDIA_TYPE: {"schema": _reference(ProblemOut)}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def openai_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of one of OpenAI's routes."""
    return {status: {"description": HTTPStatus(status).phrase, "model": OpenAIErrorOut} for status in statuses}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def complete(document: dict[str, Any], settings: Settings) -> None:
    """Add to an OpenAPI document the models that it refers to, and the limits that are settings."""
    _, found = models_json_schema([(model, "validation") for model in _OWN_MODELS], ref_template=_REFERENCE)
    schemas: dict[str, Any] = document["components"]["schemas"]
    # A copy: what the models say of themselves is of all applications.
    schemas.update(deepcopy(found["$defs"]))
    longest = {"maxLength": settings.max_question_chars}
    schemas[AskIn.__name__]["properties"]["question"].update(longest)
    by_user = schemas[MessageIn.__name__]["then"]["properties"]["content"]["anyOf"]
    by_user[0] = by_user[0] | longest
    most = {"maximum": settings.max_answer_tokens}
    max_tokens = schemas[AskIn.__name__]["properties"]["max_tokens"]
    max_tokens |= most | {"default": min(max_tokens["default"], settings.max_answer_tokens)}
    for name in ("max_tokens", "max_completion_tokens"):
        schemas[ChatIn.__name__]["properties"][name]["anyOf"][0].update(most)


def allowed_methods(request: Request) -> dict[str, str]:
    """The header ``Allow`` with the methods of all routes of a path; the framework names only those of the first."""
    methods = {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.url.path)
        for method in operations
    }
    return {"Allow": ", ".join(sorted(methods))} if methods else {}
