"""The application: routes, the engine behind them, and how errors are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from perk.errors import PerkError
from perk.perk_model import PerkModel
from service.api import chat, documents, operations, questions
from service.api.observe import Observe
from service.api.openapi import allowed_methods, complete
from service.api.problems import ProblemError, as_problem, problem_response
from service.engine.engine import Engine, EngineParts, load_perk_model
from service.errors import ServiceError
from service.keys import KeyRing
from service.metrics import Metrics
from service.settings import Settings
from service.tracing import open_tracer
from service.uploads.extract import TextExtraction

__all__ = ["create_app"]


def create_app(
    settings: Settings,
    *,
    load_model: Callable[[Settings], PerkModel] | None = None,
    replaced: EngineParts | None = None,
) -> FastAPI:
    """An application with an engine of its own, which its lifespan starts and stops.

    Args:
        settings: of the service.
        load_model: gives the model, on the thread that will own it; None: the one that the settings name.
        replaced: parts of the engine to have in place of the usual ones.

    Raises:
        LoadFailed: the environment asks for traces, and what sends them is not installed.
    """
    metrics = Metrics()
    tracer = open_tracer()
    engine = Engine(settings, load_model or load_perk_model, metrics, tracer, replaced)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.stop()
        await asyncio.to_thread(tracer.close)

    app = _Application(
        title="perk-serve",
        summary="Documents become adapters; questions are answered from the adapter alone.",
        lifespan=lifespan,
        # Another path is another resource, not a redirect that clients follow without their body.
        redirect_slashes=False,
    )
    app.state.engine = engine
    app.state.settings = settings
    app.state.extraction = TextExtraction(settings)
    app.state.keys = KeyRing(settings.api_keys, settings.limits)
    for error in (ProblemError, PerkError, ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, _answer_error)
    app.add_exception_handler(ClientDisconnect, _answer_no_one)
    app.add_middleware(Observe, metrics=metrics, tracer=tracer)
    for module in (operations, documents, questions, chat):
        app.include_router(module.router)
    return app


class _Application(FastAPI):
    """Whose OpenAPI document is complete."""

    def openapi(self) -> dict[str, Any]:
        """The document."""
        is_new = self.openapi_schema is None
        document = super().openapi()
        if is_new:
            complete(document, self.state.settings)
        return document


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error.headers = {**(error.headers or {}), **allowed_methods(request)}
    return problem_response(request, as_problem(error))


async def _answer_no_one(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)
