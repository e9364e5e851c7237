"""What an operator may set, in the environment (``PERK_*``) or a ``.env`` file, checked before anything starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from platformdirs import user_data_path
from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis.asyncio.connection import parse_url

from service.keys import ApiKey, Limits, read_keys
from service.store.format_name import FormatName

__all__ = ["Settings", "SettingsError", "describe_settings", "load_settings"]

_PREFIX = "PERK_"
_ENV_FILE = ".env"

# Read from the environment by other packages and by the command-line client; no business of the service.
_NAMES_OF_OTHERS = frozenset(
    {
        "PERK_CACHE_DIR",
        "PERK_DATA_ROOT",
        "PERK_KERNELS",
        "PERK_PRODUCTS",
        "PERK_API_KEY",
        "PERK_SERVER",
        "PERK_VLLM_DIR",
        "PERK_VLLM_MAX_LORA_RANK",
        "PERK_VLLM_OWNER",
    }
)

_MIB = 1024**2
_GIB = 1024**3
_CENTURY = 100 * 365 * 24 * 3600


class SettingsError(Exception):
    """A setting is unknown or has a bad value; the message names each one."""


class Settings(BaseSettings):
    """Settings of the service; each is the environment variable ``PERK_`` + its name in capitals.

    Sizes are bytes, with or without a unit (``64MiB``); times are seconds.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=_ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        # Unknown names are found below, in both places at once.
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    checkpoint: str = Field("default", min_length=1, description="folder of a checkpoint, or the name of a shipped one")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs: auto, cpu or cuda")
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("perk"), description="where documents and adapters are kept"
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis that replicas share, such as redis://host:6379/0; unset: the embedded store"
    )
    adapter_format: FormatName | None = Field(
        None, description="how adapters are written: float32, bf16 or int8-delta; unset: bf16 in Redis, else float32"
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        (), description="keys that clients may send, between commas, or @ and a JSON file of them; unset: open to all"
    )
    requests_per_minute: int | None = Field(None, ge=1, description="requests of a key a minute; unset: no limit")
    documents_per_key: int | None = Field(None, ge=1, description="documents that a key may keep; unset: no limit")
    tokens_per_day: int | None = Field(
        None, ge=1, description="tokens that a key may encode, ask and be answered a day (UTC); unset: no limit"
    )
    max_document_bytes: ByteSize = Field(
        ByteSize(8 * _MIB), ge=1, description="largest request body that may carry a document"
    )
    max_document_tokens: int = Field(131_072, ge=1, description="longest document, in tokens")
    max_question_chars: int = Field(8192, ge=1, description="longest question, in characters")
    max_answer_tokens: int = Field(512, ge=1, description="longest answer, in tokens")
    body_seconds: float = Field(
        30, gt=0, allow_inf_nan=False, description="longest pause of a client while it sends or reads a body"
    )
    upload_seconds: int = Field(30, ge=1, description="longest time to read the text of an uploaded file")
    upload_memory: ByteSize = Field(
        ByteSize(512 * _MIB), ge=64 * _MIB, description="memory for reading the text of one uploaded file"
    )
    queue_limit: int = Field(64, ge=1, description="most documents, and most questions, that may wait")
    adapter_ttl: int | None = Field(
        None, ge=1, le=_CENTURY, description="seconds that an adapter is kept after its last use; unset: for ever"
    )
    memory_budget: ByteSize = Field(
        ByteSize(2 * _GIB),
        ge=_MIB,
        description="memory for documents: half for adapters at hand, half for encoding",
    )
    encode_together: int = Field(
        1,
        ge=1,
        le=64,
        description="short documents encoded together; above 1, an adapter depends on its company in its last digits",
    )
    answer_deadline_seconds: float = Field(
        300, gt=0, allow_inf_nan=False, description="time that a question has until the end of its answer"
    )
    stop_grace_seconds: float = Field(
        20, ge=0, allow_inf_nan=False, description="time that running answers get when the service is stopped"
    )

    @model_validator(mode="before")
    @classmethod
    def _names_known(cls, values: Any) -> Any:
        known = {_environment_name(field) for field in cls.model_fields}
        in_environment = {name for name in os.environ if name.upper().startswith(_PREFIX)}
        in_file = {name for name in dotenv_values(_ENV_FILE) if name.upper().startswith(_PREFIX)}
        problems = [
            f"{name} is not a setting" for name in sorted(in_environment) if name not in known | _NAMES_OF_OTHERS
        ]
        for name in sorted(in_file - known):
            if name in _NAMES_OF_OTHERS:
                problems.append(f"{name} is read from the environment only, not from {_ENV_FILE}")
            elif name not in in_environment:
                problems.append(f"{name} in {_ENV_FILE} is not a setting")
        if problems:
            raise ValueError(f"{'; '.join(problems)} (settings: {', '.join(sorted(known))})")
        return values

    @field_validator("redis_url")
    @classmethod
    def _redis_url_readable(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            try:
                parse_url(url.get_secret_value())
            except ValueError:
                # Its own message may quote what stands in the address.
                raise ValueError("expected an address redis://, rediss:// or unix://") from None
        return url

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, keys: Any) -> Any:
        return read_keys(keys) if isinstance(keys, str) else keys

    @property
    def limits(self) -> Limits:
        """Of each key that has none of its own."""
        return Limits(self.requests_per_minute, self.documents_per_key, self.tokens_per_day)


def load_settings() -> Settings:
    """Read and check all settings.

    Raises:
        SettingsError: a ``PERK_*`` name is unknown, or a value is bad; the message names every one of them.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            field = str(problem["loc"][0]) if problem["loc"] else ""
            message = problem["msg"].removeprefix("Value error, ")
            # The value helps to find the mistake; a key or a password in an address must not be shown.
            value = "" if field in ("", "api_keys", "redis_url") else f" got {_given(field)!r}:"
            lines.append(f"{_environment_name(field)}:{value} {message}" if field else message)
        raise SettingsError("\n".join(lines)) from None


def describe_settings() -> str:
    """One line a setting: its environment variable, meaning and default."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = default.human_readable() if isinstance(default, ByteSize) else default
        suffix = "" if default in (None, ()) or name == "data_dir" else f" (default {shown})"
        lines.append(f"{_environment_name(name)}: {field.description}{suffix}")
    return "\n\n".join(lines)


def _environment_name(field: str) -> str:
    return f"{_PREFIX}{field.upper()}"


def _given(field: str) -> str | None:
    name = _environment_name(field)
    return os.environ.get(name) or dotenv_values(_ENV_FILE).get(name)
