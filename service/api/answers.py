"""An answer on its way to a client that may go away meanwhile."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import Request

from service.api.disconnect import while_connected
from service.engine.answer_stream import AnswerStream

__all__ = ["begin_answer", "whole_answer"]


async def whole_answer(request: Request, stream: AnswerStream) -> str:
    """The text of an answer, once it has ended; its place in the batch is free then, however it ends."""
    try:
        return await while_connected(request, _text(stream))
    finally:
        stream.close()


async def begin_answer(request: Request, stream: AnswerStream) -> tuple[str, AsyncGenerator[str, None]]:
    """The first piece of an answer (empty where it has no text), and the pieces after it.

    What cannot be asked is still answered with its own status: the response begins with the first token.
    """
    pieces = stream.pieces()
    return await while_connected(request, _next(pieces)), pieces


async def _text(stream: AnswerStream) -> str:
    return "".join([piece async for piece in stream.pieces()])


async def _next(pieces: AsyncGenerator[str, None]) -> str:
    return await anext(pieces, "")
