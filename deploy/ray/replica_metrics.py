"""What the replicas with a model count, together: ``/metrics/replicas`` of the front."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import structlog
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["add_route", "join_texts"]

_log = structlog.get_logger(__name__)

# Prometheus itself waits ten.
_SECONDS = 8.0


def add_route(app: FastAPI, deployments: dict[str, Any]) -> None:
    """Let Prometheus read the replicas' metrics from the front, which alone has an address that lasts.

    Args:
        app: of the front.
        deployments: handles by name; each replica's ``metrics`` returns its name and Prometheus' text.
    """

    @app.get("/metrics/replicas", include_in_schema=False)
    async def metrics() -> Response:
        answers = await asyncio.gather(*(_ask(name, handle) for name, handle in deployments.items()))
        return Response(join_texts(text for texts in answers for text in texts), media_type=CONTENT_TYPE_LATEST)


async def _ask(deployment: str, handle: Any) -> list[tuple[str, str, str]]:
    """Deployment, replica and text of each replica that answers in time."""
    try:
        answers = await handle.broadcast("metrics").results_async(timeout_s=_SECONDS, return_exceptions=True)
    except TimeoutError as error:
        answers = [error]
    for lost in (answer for answer in answers if isinstance(answer, Exception)):
        # The others are worth having.
        _log.warning("replica without metrics", deployment=deployment, error=type(lost).__name__)
    return [(deployment, *answer) for answer in answers if not isinstance(answer, Exception)]


def join_texts(texts: Iterable[tuple[str, str, str]]) -> bytes:
    """One text of many: each sample has its ``deployment`` and ``replica`` as labels, each family stands once.

    Args:
        texts: deployment, replica and Prometheus' text of each replica.
    """
    families: dict[str, Metric] = {}
    for deployment, replica, text in texts:
        for family in text_string_to_metric_families(text):
            joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {**sample.labels, "deployment": deployment, "replica": replica}
                joined.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
