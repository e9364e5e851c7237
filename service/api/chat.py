"""OpenAI's routes: ``/v1/models`` and ``/v1/chat/completions``, where a document is a model."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from service.api.answers import begin_answer, whole_answer
from service.api.auth import require_key, tenant_of
from service.api.body import read_json
from service.api.chat_schemas import ChatIn, ModelList, ModelOut
from service.api.disconnect import while_connected
from service.api.engine import engine_of, settings_of
from service.api.events import Event, event_response
from service.api.fields import FieldError, describe
from service.api.openapi import body_of, openai_errors
from service.api.problems import Problem, ProblemError, invalid_fields
from service.engine.answer_stream import AnswerStream
from service.engine.questions import AnswerOptions
from service.settings import Settings
from service.store.protocol import Place

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[Depends(require_key)])

_DEFAULT_TOKENS = 64
_BODY_BYTES = 1024**2
_PAGE = 100
_MOST_MODELS = 1000


@router.get("/models", response_model=ModelList, responses=openai_errors(401, 429, 503))
async def list_models(request: Request) -> Response:
    """The base model and the documents that are ready, the newest thousand."""
    documents = engine_of(request).documents
    owner = tenant_of(request).owner
    models = [_base(documents.model_name)]
    after = None
    while len(models) <= _MOST_MODELS:
        page = await documents.page(_PAGE, after, owner)
        models += [
            _model(document.record.id, document.record.created_at, document.model)
            for document in page
            if document.status == "ready"
        ]
        if len(page) < _PAGE:
            break
        after = Place(page[-1].record.created_at, page[-1].record.id)
    return JSONResponse(ModelList(data=models[: _MOST_MODELS + 1]).model_dump())


@router.get("/models/{model:path}", response_model=ModelOut, responses=openai_errors(401, 404, 422, 429, 503))
async def show_model(request: Request, model: str) -> Response:
    """The base model, or a document."""
    documents = engine_of(request).documents
    if model == documents.model_name:
        return JSONResponse(_base(model).model_dump())
    document = await documents.find(model, tenant_of(request).owner)
    return JSONResponse(_model(model, document.record.created_at, document.model).model_dump())


@router.post(
    "/chat/completions",
    response_model=dict[str, Any],
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "A completion; with `stream`, its chunks."},
        **openai_errors(400, 401, 404, 408, 409, 413, 415, 422, 429, 503, 504),
    },
    openapi_extra=body_of(ChatIn),
)
async def complete_chat(request: Request) -> Response:
    """Answer the last message of the user from the adapter of a document, or from the base model."""
    engine = engine_of(request)
    questions, base_name = engine.questions, engine.documents.model_name
    settings = settings_of(request)
    # A question, and turns before it.
    asked = await read_json(request, ChatIn, _BODY_BYTES + 12 * settings.max_question_chars)
    _check_supported(asked)
    question, options = _question(asked, settings), _options(asked, settings)
    document_id = None if asked.model == base_name else asked.model
    stream = await while_connected(request, questions.ask(document_id, question, options, tenant_of(request)))
    completion = _Completion(stream, asked.model)
    if asked.stream:
        return await _streamed(request, completion, include_usage=asked.stream_options.include_usage)
    return JSONResponse(completion.whole(await whole_answer(request, stream)))


class _Completion:
    """An answer in OpenAI's shapes."""

    def __init__(self, stream: AnswerStream, model: str) -> None:
        self.stream = stream
        self._head = {"id": f"chatcmpl-{stream.id.removeprefix('ans_')}", "created": int(time.time()), "model": model}

    def whole(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.stream.finish_reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self.usage()}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        prompt, completion = self.stream.prompt_tokens, self.stream.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _streamed(request: Request, completion: _Completion, *, include_usage: bool) -> Response:
    first, pieces = await begin_answer(request, completion.stream)

    async def chunks() -> AsyncGenerator[Event, None]:
        yield "", completion.chunk({"role": "assistant", "content": first})
        async with aclosing(pieces):
            async for piece in pieces:
                yield "", completion.chunk({"content": piece})
        yield "", completion.chunk({}, completion.stream.finish_reason)
        if include_usage:
            yield "", completion.usage_chunk()

    return event_response(request, chunks(), last=b"data: [DONE]\n\n")


def _check_supported(asked: ChatIn) -> None:
    name = asked.unsupported()
    if name is not None:
        shown = name.encode("ascii", "backslashreplace").decode()[:64]
        error = FieldError(shown, describe((asked.model_extra or {})[name]), "no such parameter, or one without effect")
        detail = f"the parameter {shown} is not supported, or not at this value"
        raise ProblemError(Problem("unsupported-parameter", 400, detail, (error,)))


def _question(asked: ChatIn, settings: Settings) -> str:
    question = next((message.text for message in reversed(asked.messages) if message.role == "user"), None)
    if question is None:
        raise ProblemError(invalid_fields(FieldError("messages", "none of the user", "a message of role user")))
    if len(question) > settings.max_question_chars:
        limit = f"at most {settings.max_question_chars} characters"
        raise ProblemError(invalid_fields(FieldError("messages", describe(question), limit)))
    return question


def _options(asked: ChatIn, settings: Settings) -> AnswerOptions:
    limit = settings.max_answer_tokens
    named = {"max_tokens": asked.max_tokens, "max_completion_tokens": asked.max_completion_tokens}
    errors = [
        FieldError(name, describe(tokens), f"at most {limit}")
        for name, tokens in named.items()
        if tokens is not None and tokens > limit
    ]
    if errors:
        raise ProblemError(invalid_fields(*errors))
    return AnswerOptions(
        max_tokens=asked.max_completion_tokens or asked.max_tokens or min(_DEFAULT_TOKENS, limit),
        # As here, not as there: an answer from a document should be the likeliest unless asked otherwise.
        temperature=asked.temperature or 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=asked.seed,
        stop=tuple(asked.stop or ()),
    )


def _base(name: str) -> ModelOut:
    return ModelOut(id=name, created=0, owned_by="perk")


def _model(document_id: str, created_at: float, base: str) -> ModelOut:
    return ModelOut(id=document_id, created=int(created_at), owned_by=base)
