"""What each tenant has used of what it may use, in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import RateExceeded, TokensSpent
from service.keys import Tenant

__all__ = ["Quotas"]

_DAY_SECONDS = 86_400


@dataclass
class _Usage:
    """Of one tenant.

    Attributes:
        free_at: when all its requests so far are paid for, by the clock.
        day: that `tokens` are of, counted from 1970.
        tokens: used on that day.
    """

    free_at: float = -math.inf
    day: int = 0
    tokens: int = 0


class Quotas:
    """Rates and tokens of all tenants; there are as many as the settings have keys. One event loop owns it."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """Start with nothing used.

        Args:
            clock: seconds, for rates.
            wall_clock: Unix time, for days.
        """
        self._clock = clock
        self._wall_clock = wall_clock
        self._usage: dict[str, _Usage] = {}

    def admit(self, tenant: Tenant) -> None:
        """Count a request; as many as a minute allows may come at once, and each place is free again in turn.

        Raises:
            RateExceeded: it is one too many; it has not been counted.
        """
        limit = tenant.limits.requests_per_minute
        if limit is None:
            return
        usage = self._of(tenant)
        now = self._clock()
        interval = 60 / limit
        free_at = max(usage.free_at, now) + interval
        early = free_at - now - 60
        # A millionth of a second is what adding up has cost, not a request.
        if early > 1e-6:
            raise RateExceeded(limit, math.ceil(early))
        usage.free_at = free_at

    def require_tokens(self, tenant: Tenant, tokens: int = 1) -> None:
        """Check that tokens may be used.

        Raises:
            TokensSpent: they would be more than are left today.
        """
        limit = tenant.limits.tokens_per_day
        if limit is not None and self._today(tenant).tokens + tokens > limit:
            raise TokensSpent(limit, math.ceil(_DAY_SECONDS - self._wall_clock() % _DAY_SECONDS))

    def spend(self, tenant: Tenant, tokens: int) -> None:
        """Note tokens that were used."""
        if tenant.limits.tokens_per_day is not None:
            self._today(tenant).tokens += tokens

    def _today(self, tenant: Tenant) -> _Usage:
        usage = self._of(tenant)
        day = int(self._wall_clock() // _DAY_SECONDS)
        if usage.day != day:
            usage.day, usage.tokens = day, 0
        return usage

    def _of(self, tenant: Tenant) -> _Usage:
        return self._usage.setdefault(tenant.owner, _Usage())
