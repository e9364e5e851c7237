"""API keys."""

from __future__ import annotations

from fastapi import Request

from service.api.engine import engine_of
from service.api.problems import Problem, ProblemError
from service.keys import KeyRing, Tenant

__all__ = ["require_key", "tenant_of"]


async def require_key(request: Request) -> None:
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
