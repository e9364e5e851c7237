"""What requests and responses look like."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from service.engine.answer_stream import AnswerStream
from service.engine.document import Document

__all__ = [
    "DOCUMENT_TEXT",
    "LONGEST_TITLE",
    "VISIBLE",
    "AnswerOut",
    "AskIn",
    "DocumentIn",
    "DocumentOut",
    "DocumentPage",
    "ProblemOut",
    "Seed",
    "StopTexts",
    "TokenCount",
]

LONGEST_TITLE = 512
_METADATA_BYTES = 16 * 1024
_DEFAULT_TOKENS = 64

# White space as `str.strip` knows it, written so that every dialect of regular expressions reads it.
_SPACE = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
VISIBLE = f"[^{_SPACE}]"
"""Pattern of texts with a visible character."""
DOCUMENT_TEXT = rf"^[^\u0000]*[^\u0000{_SPACE}][^\u0000]*$"
"""Pattern of the texts of documents."""


class _Request(BaseModel):
    # Strict: "5" is no number, and a misspelt field is an error instead of being ignored.
    model_config = ConfigDict(extra="forbid", strict=True)


def _metadata_fits(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata, ensure_ascii=False).encode()) > _METADATA_BYTES:
        raise ValueError(f"at most {_METADATA_BYTES} bytes as JSON")
    return metadata


_StopText = Annotated[str, Field(min_length=1, max_length=256)]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# For JSON, 8.0 is 8.
TokenCount = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_whole)]


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


StopTexts = Annotated[
    list[_StopText],
    BeforeValidator(_as_list, json_schema_input_type=_StopText | list[_StopText]),
    Field(max_length=16, description="text, or texts, that end the answer"),
]


class DocumentIn(_Request):
    """A document to encode."""

    text: str = Field(
        description="the document; it must hold a visible character and no NUL",
        json_schema_extra={"pattern": DOCUMENT_TEXT},
    )
    title: str | None = Field(None, max_length=LONGEST_TITLE)
    metadata: Annotated[dict[str, Any], AfterValidator(_metadata_fits)] = Field(
        default_factory=dict, description=f"kept and given back; at most {_METADATA_BYTES} bytes as JSON"
    )


class AskIn(_Request):
    """A question; the limits of `question` and `max_tokens` are settings and are checked by the route."""

    question: str = Field(description="it must hold a visible character", json_schema_extra={"pattern": VISIBLE})
    max_tokens: TokenCount = _DEFAULT_TOKENS
    temperature: float = Field(0.0, ge=0, le=2, description="0: the likeliest token each time")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: Seed | None = Field(None, description="of the sampling; the same seed, the same answer")
    stop: StopTexts = Field(default_factory=list)
    stream: bool = Field(False, description="server-sent events instead of one JSON object")

    def tokens(self, most: int) -> int:
        """Longest answer: as asked, or as much of the default as there may be at most."""
        return self.max_tokens if "max_tokens" in self.model_fields_set else min(self.max_tokens, most)


class EncodeOut(BaseModel):
    """How the encode went; losses in nats per token, before and at the last step."""

    seconds: float
    steps: int
    loss_before: float
    loss_after: float


class EncodingOut(BaseModel):
    """An encode that runs: inner steps taken and planned so far, segments read of those in this pass, loss in nats per
    token, seconds left. A text that is not learned when these steps are taken gets more."""

    step: int
    steps: int
    segments_done: int
    loss: float | None
    seconds_left: float | None


class DocumentOut(BaseModel):
    """A document; times in RFC 3339, UTC."""

    id: str
    object: Literal["document"] = "document"
    status: Literal["queued", "encoding", "ready", "failed"]
    title: str | None
    metadata: dict[str, Any]
    bytes: int
    tokens: int
    segments: int | None
    progress: float = Field(ge=0, le=1)
    created_at: str
    ready_at: str | None
    expires_at: str | None
    model: str
    checkpoint: str
    encode: EncodeOut | None
    encoding: EncodingOut | None = Field(None, exclude_if=lambda encoding: encoding is None)
    error: str | None = Field(None, exclude_if=lambda error: error is None)

    @classmethod
    def of(cls, document: Document) -> DocumentOut:
        """A document as clients see it."""
        record = document.record
        return cls(
            id=record.id,
            status=document.status,
            title=record.title,
            metadata=record.metadata,
            bytes=record.bytes,
            tokens=document.tokens,
            segments=document.segments,
            progress=document.progress,
            created_at=_rfc_3339(record.created_at),
            ready_at=None if record.ready_at is None else _rfc_3339(record.ready_at),
            expires_at=None if record.expires_at is None else _rfc_3339(record.expires_at),
            model=document.model,
            checkpoint=document.checkpoint,
            encode=None if record.encode is None else EncodeOut.model_validate(record.encode, from_attributes=True),
            encoding=_encoding(document),
            error=record.error,
        )


class DocumentPage(BaseModel):
    """Documents, the newest first."""

    data: list[DocumentOut]
    next_cursor: str | None


class UsageOut(BaseModel):
    """Tokens of prompt and answer."""

    prompt_tokens: int
    completion_tokens: int


class TimingsOut(BaseModel):
    """Milliseconds: waiting for the model, getting the adapter, until the first text, until the end."""

    queue_ms: float
    adapter_ms: float
    first_token_ms: float
    total_ms: float


class AnswerOut(BaseModel):
    """An answer."""

    id: str
    answer: str
    support: str = Field(description="what was recalled of the document before the answer; empty where nothing was")
    finish_reason: Literal["stop", "length"]
    usage: UsageOut
    timings: TimingsOut

    @classmethod
    def of(cls, stream: AnswerStream, text: str) -> AnswerOut:
        """An answer that has ended."""
        return cls.model_validate(
            {
                "id": stream.id,
                "answer": text,
                "support": stream.support,
                "finish_reason": stream.finish_reason,
                "usage": {"prompt_tokens": stream.prompt_tokens, "completion_tokens": stream.completion_tokens},
                "timings": vars(stream.timings),
            }
        )


class ProblemOut(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[Literal["field", "value", "limit"], str]] = Field(
        default_factory=list, description="the fields that are wrong"
    )


def _encoding(document: Document) -> EncodingOut | None:
    progress = document.encoding
    if progress is None:
        return None
    left = document.seconds_left
    return EncodingOut(
        step=progress.step,
        steps=progress.steps,
        segments_done=progress.segments_done[0] if progress.segments_done else 0,
        loss=progress.loss[0] if progress.loss else None,
        seconds_left=None if left is None else round(left, 1),
    )


def _rfc_3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
