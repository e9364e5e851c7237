"""What requests and responses of OpenAI's routes look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.api.schemas import StopTexts

__all__ = ["ChatIn", "MessageIn", "ModelList", "ModelOut", "OpenAIErrorOut"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class MessageIn(BaseModel):
    """One turn; what else a client puts into it is not looked at."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


def _nothing(value: Any) -> Any:
    """A null stands for the default."""
    return {} if value is None else value


class ChatIn(BaseModel):
    """A chat; the last message of the user is the question, and all before it is left out."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str = Field(description="id of a document, or the name of the base model")
    messages: list[MessageIn] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: StopTexts | None = None
    stream: bool | None = None
    stream_options: Annotated[_StreamOptions, BeforeValidator(_nothing)] = Field(default_factory=_StreamOptions)


class ModelOut(BaseModel):
    """The base model, or a document that can be asked as if it were one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The base model, and documents, the newest first."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


class _ErrorOut(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorOut(BaseModel):
    """OpenAI's error object."""

    error: _ErrorOut
