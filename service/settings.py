"""What an operator may set, in the environment (``PERK_*``) or a ``.env`` file, checked before anything starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from platformdirs import user_data_path
from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["Settings", "SettingsError", "load_settings"]

_PREFIX = "PERK_"
_ENV_FILE = ".env"

# Read from the environment by other packages and by the command-line client; no business of the service.
_NAMES_OF_OTHERS = frozenset({"PERK_CACHE_DIR", "PERK_DATA_ROOT", "PERK_KERNELS", "PERK_API_KEY", "PERK_SERVER"})

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB


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
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    checkpoint: Annotated[str, Field(min_length=1, description="folder of a checkpoint, or the name of a shipped one")]
    checkpoint = "default"
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="where the model runs: auto, cpu or cuda")]
    device = "auto"
    data_dir: Annotated[Path, Field(description="where documents and adapters are kept")]
    data_dir = user_data_path("perk")
    redis_url: Annotated[str | None, Field(description="unset: the embedded store")]
    redis_url = None
    api_keys: Annotated[
        tuple[SecretStr, ...], NoDecode, Field(description="keys that clients must send, between commas; unset: open")
    ]
    api_keys = ()
    max_document_bytes: Annotated[ByteSize, Field(ge=1, description="largest request body that carries a document")]
    max_document_bytes = ByteSize(8 * _MIB)
    max_document_tokens: Annotated[int, Field(ge=1, description="longest document, in tokens")]
    max_document_tokens = 131_072
    queue_limit: Annotated[int, Field(ge=1, description="most documents, and most questions, that may wait")]
    queue_limit = 256
    adapter_ttl: Annotated[int | None, Field(ge=1, description="seconds an adapter is kept; unset: for ever")]
    adapter_ttl = None
    memory_budget: Annotated[
        ByteSize,
        Field(ge=64 * _MIB, description="memory for documents: half for adapters at hand, half for encoding"),
    ]
    memory_budget = ByteSize(4 * _GIB)
