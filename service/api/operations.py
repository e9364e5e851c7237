"""What operators and their tools ask: ``/health``, ``/ready``, ``/metrics``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.engine import engine_of
from service.api.openapi import problems
from service.engine.engine import Engine
from service.errors import ServiceError

__all__ = ["router"]

router = APIRouter(tags=["operations"])


@router.get("/health", response_model=dict[str, str])
async def health() -> Response:
    """The process lives."""
    return JSONResponse({"status": "alive"})


@router.get("/ready", response_model=dict[str, str], responses=problems(503))
async def ready(request: Request) -> Response:
    """Documents can be encoded and questions answered, if only from what is at hand; if not, the reason."""
    engine = engine_of(request)
    engine.require_ready()
    if (detail := engine.degraded) is not None:
        return JSONResponse({"status": "degraded", "detail": detail})
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    engine = engine_of(request)
    try:
        counts = await engine.documents.counts()
    except ServiceError:
        # Nothing is known of the store now; an old number would be worse than none.
        engine.metrics.documents.clear()
    else:
        for status, count in counts.items():
            engine.metrics.documents.labels(status).set(count)
    engine.metrics.ready.set(_is_ready(engine))
    return Response(generate_latest(engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _is_ready(engine: Engine) -> bool:
    try:
        engine.require_ready()
    except ServiceError:
        return False
    return True
