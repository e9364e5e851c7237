"""API keys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from service.api.engine import engine_of
from service.api.problems import Problem, ProblemError
from service.keys import KeyRing, Tenant

__all__ = ["require_key", "tenant_of"]

# They are read by the ring of keys; these tell the OpenAPI document of them.
_BEARER = HTTPBearer(auto_error=False, description="needed where the service has keys")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="instead of a bearer token")


async def require_key(
    request: Request,
    _bearer: Annotated[Any, Security(_BEARER)] = None,
    _header: Annotated[Any, Security(_HEADER)] = None,
) -> None:
    """Refuse requests without a key that the settings name (without any there, all are let in), or too many of them.

    Raises:
        ProblemError: there is no key, or a wrong one (401).
        RateExceeded: its tenant sends too many requests.
    """
    ring: KeyRing = request.app.state.keys
    tenant = ring.tenant(request.headers)
    if tenant is None:
        detail = "expected a valid API key, as Authorization: Bearer KEY or as X-API-Key: KEY"
        raise ProblemError(Problem("unauthorized", 401, detail, headers={"WWW-Authenticate": 'Bearer realm="perk"'}))
    engine_of(request).quotas.admit(tenant)
    request.state.tenant = tenant


def tenant_of(request: Request) -> Tenant:
    """Whose request this is, once `require_key` has let it in."""
    tenant: Tenant = request.state.tenant
    return tenant
