"""What requests and responses of OpenAI's routes look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from service.api.schemas import VISIBLE, Seed, StopTexts, TokenCount

__all__ = ["ChatIn", "MessageIn", "ModelList", "ModelOut", "OpenAIErrorOut"]

# Parameters of OpenAI's that have no effect on what this service answers.
_IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
# Those that have none at these values.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
_VISIBLE_TEXT: JsonDict = {"type": "string", "pattern": VISIBLE}
_VISIBLE_PARTS: JsonDict = {
    "type": "array",
    "items": {"$ref": "#/components/schemas/PartIn"},
    "contains": {"type": "object", "properties": {"text": _VISIBLE_TEXT}, "required": ["text"]},
}
_BY_USER: JsonDict = {"properties": {"role": {"const": "user"}}, "required": ["role"]}


class PartIn(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class MessageIn(BaseModel):
    """One turn; what else a client puts into it is not looked at. One of the user must hold a visible character."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "if": _BY_USER,
            "then": {"properties": {"content": {"anyOf": [_VISIBLE_TEXT, _VISIBLE_PARTS]}}, "required": ["content"]},
        },
    )

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[PartIn] | None = None

    @property
    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @model_validator(mode="after")
    def _asks_something(self) -> MessageIn:
        if self.role == "user" and not self.text.strip():
            raise PydanticCustomError("no_text", "at least one visible character in what the user says")
        return self


class StreamOptionsIn(BaseModel):
    """What a stream holds besides the answer."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


def _nothing(value: Any) -> Any:
    """A null stands for the default."""
    return {} if value is None else value


def _is_harmless(name: str, value: Any) -> bool:
    # For Python, true is one.
    return any(
        value == known and isinstance(value, bool) == isinstance(known, bool) for known in _HARMLESS.get(name, ())
    )


def _name_others(schema: dict[str, Any]) -> None:
    """Tell the parameters that are taken and not looked at; of all others, null means that they are not there."""
    schema["properties"] |= {name: {} for name in _IGNORED}
    schema["properties"] |= {name: {"enum": [*values, None]} for name, values in _HARMLESS.items()}
    schema["additionalProperties"] = {"type": "null"}


class ChatIn(BaseModel):
    """A chat; the last message of the user is the question, and all before it is left out."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=_name_others)

    model: str = Field(description="id of a document, or the name of the base model")
    messages: list[MessageIn] = Field(
        min_length=1, max_length=1000, json_schema_extra={"contains": {"type": "object", **_BY_USER}}
    )
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: Seed | None = None
    stop: StopTexts | None = None
    stream: bool | None = None
    stream_options: Annotated[
        StreamOptionsIn, BeforeValidator(_nothing, json_schema_input_type=StreamOptionsIn | None)
    ] = Field(default_factory=StreamOptionsIn)

    def unsupported(self) -> str | None:
        """A parameter that would have an effect elsewhere, and has none here."""
        for name, value in (self.model_extra or {}).items():
            if name not in _IGNORED and value is not None and not _is_harmless(name, value):
                return name
        return None


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
