"""API keys."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from fastapi import Request
from pydantic import SecretStr

from service.api.problems import Problem, ProblemError
from service.settings import Settings

__all__ = ["require_key"]


async def require_key(request: Request) -> None:
    """Refuse requests without a key that the settings name; without any there, all are let in.

    Raises:
        ProblemError: there is no key, or a wrong one (401).
    """
    settings: Settings = request.app.state.settings
    if settings.api_keys and not _is_known(_sent_key(request), settings.api_keys):
        detail = "expected a valid API key, as Authorization: Bearer KEY or as X-API-Key: KEY"
        raise ProblemError(Problem("unauthorized", 401, detail, headers={"WWW-Authenticate": 'Bearer realm="perk"'}))


def _sent_key(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return request.headers.get("x-api-key", "").strip()


def _is_known(key: str, keys: Sequence[SecretStr]) -> bool:
    # Each is compared, in constant time: how long it takes says nothing about any of them.
    matches = [hmac.compare_digest(key.encode(), known.get_secret_value().encode()) for known in keys]
    return any(matches)
