"""``/documents/{id}/ask``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from service.api.answers import begin_answer, whole_answer
from service.api.auth import require_key, tenant_of
from service.api.body import read_json
from service.api.disconnect import while_connected
from service.api.engine import engine_of, settings_of
from service.api.events import Event, event_response
from service.api.fields import FieldError, describe
from service.api.openapi import body_of, problems
from service.api.problems import ProblemError, invalid_fields
from service.api.schemas import AnswerOut, AskIn
from service.engine.answer_stream import AnswerStream
from service.engine.questions import AnswerOptions
from service.settings import Settings

__all__ = ["router"]

router = APIRouter(prefix="/documents", tags=["questions"], dependencies=[Depends(require_key)])

# Of a character as JSON may spell it (two escapes of six), and of the other fields.
_BYTES_PER_CHARACTER = 12
_OTHER_BYTES = 64 * 1024


@router.post(
    "/{document_id}/ask",
    response_model=AnswerOut,
    responses={
        200: {
            "content": {"text/event-stream": {}},
            "description": "The answer; with `stream`, events: `token` each with `text`, then `done` with the answer.",
        },
        **problems(400, 401, 404, 408, 409, 413, 415, 422, 429, 503, 504),
    },
    openapi_extra=body_of(AskIn),
)
async def ask_document(request: Request, document_id: str) -> Response:
    """Answer a question from the document's adapter alone."""
    settings = settings_of(request)
    questions = engine_of(request).questions
    asked = await read_json(request, AskIn, settings.max_question_chars * _BYTES_PER_CHARACTER + _OTHER_BYTES)
    _check_limits(asked, settings)
    most = asked.tokens(settings.max_answer_tokens)
    options = AnswerOptions(most, asked.temperature, asked.top_p, asked.seed, tuple(asked.stop))
    stream = await while_connected(request, questions.ask(document_id, asked.question, options, tenant_of(request)))
    if asked.stream:
        return await _streamed(request, stream)
    text = await whole_answer(request, stream)
    return JSONResponse(AnswerOut.of(stream, text).model_dump())


def _check_limits(asked: AskIn, settings: Settings) -> None:
    errors = []
    if len(asked.question) > settings.max_question_chars:
        limit = f"at most {settings.max_question_chars} characters"
        errors.append(FieldError("question", describe(asked.question), limit))
    if asked.tokens(settings.max_answer_tokens) > settings.max_answer_tokens:
        errors.append(FieldError("max_tokens", describe(asked.max_tokens), f"at most {settings.max_answer_tokens}"))
    if errors:
        raise ProblemError(invalid_fields(*errors))


async def _streamed(request: Request, stream: AnswerStream) -> Response:
    first, pieces = await begin_answer(request, stream)

    async def events() -> AsyncGenerator[Event, None]:
        text = first
        async with aclosing(pieces):
            if first:
                yield "token", {"text": first}
            async for piece in pieces:
                text += piece
                yield "token", {"text": piece}
        yield "done", AnswerOut.of(stream, text).model_dump()

    return event_response(request, events())
