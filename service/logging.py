"""Structured logs: one JSON object a line on standard error, never with the text of a document or question."""

from __future__ import annotations

import logging
import sys
import traceback

import structlog
from transformers.utils import logging as transformers_logging

__all__ = ["configure_logs", "describe_error"]


def configure_logs(level: int = logging.INFO) -> None:
    """Send the logs of this process, those of libraries included, to standard error as JSON, from a level on."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=[])],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Our own line a request says more than the server's; httpx logs whole addresses.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Its progress bars are no JSON.
    transformers_logging.disable_progress_bar()


def describe_error(error: BaseException) -> dict[str, object]:
    """Type and place of an unexpected error, for a log line.

    Its message is left out: libraries quote the text that they stumbled over.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "trace": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
