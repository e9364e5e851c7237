"""What the OpenAPI document says of bodies that routes read themselves, and of errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.routing import compile_path

from service.api.chat_schemas import OpenAIErrorOut
from service.api.problems import MEDIA_TYPE
from service.api.schemas import ProblemOut

__all__ = ["allowed_methods", "body_of", "openai_errors", "problems"]


def body_of(model: type[BaseModel], *, text: bool = False, upload: bool = False) -> dict[str, Any]:
    """The request body of a route.

    Args:
        model: of the body in JSON.
        text: the document alone may come as plain text.
        upload: it may come as the file of a form.
    """
    content: dict[str, Any] = {"application/json": {"schema": model.model_json_schema()}}
    if text:
        content["text/plain"] = {"schema": {"type": "string"}}
    if upload:
        form = {
            "type": "object",
            "properties": {
                "file": {"type": "string", "format": "binary"},
                "title": {"type": "string"},
                "metadata": {"type": "string", "description": "an object in JSON"},
            },
            "required": ["file"],
            "additionalProperties": False,
        }
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route."""
    schema = ProblemOut.model_json_schema()
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def openai_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of one of OpenAI's routes."""
    return {status: {"description": HTTPStatus(status).phrase, "model": OpenAIErrorOut} for status in statuses}


def allowed_methods(request: Request) -> dict[str, str]:
    """The header ``Allow`` with the methods of all routes of a path; the framework names only those of the first."""
    methods = {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.url.path)
        for method in operations
    }
    return {"Allow": ", ".join(sorted(methods))} if methods else {}
