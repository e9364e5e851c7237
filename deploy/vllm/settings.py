"""What the plugin must be told, in the environment of the vLLM server."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.settings import SettingsError

__all__ = ["VllmSettings", "is_wanted", "load_vllm_settings"]

_PREFIX = "PERK_VLLM_"
# Either says where the documents are; a vLLM server without them has nothing to do with this plugin.
_STORES = ("PERK_REDIS_URL", "PERK_DATA_DIR")


class VllmSettings(BaseSettings):
    """Settings of the plugin; each is the environment variable ``PERK_VLLM_`` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, frozen=True)

    dir: Path | None = Field(
        None, description="folder for adapters, which all processes of vLLM see; unset: one that goes with the server"
    )
    max_lora_rank: int = Field(16, ge=1, le=512, description="--max-lora-rank of the server")
    owner: str = Field("", description="name of the API key whose documents are served; unset: those sent without one")


def is_wanted() -> bool:
    """Whether the environment names a store."""
    return any(os.environ.get(name) for name in _STORES)


def load_vllm_settings() -> VllmSettings:
    """Read and check the settings.

    Raises:
        SettingsError: a value is bad; the message names it.
    """
    try:
        return VllmSettings()
    except ValidationError as error:
        problems = [
            f"{_PREFIX}{str(problem['loc'][0]).upper()}: got {problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise SettingsError("\n".join(problems)) from None
