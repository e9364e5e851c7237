"""The way to Redis: its errors in our words, and whether it can be reached."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from service.errors import StorageFull, StoreError, StoreUnavailable
from service.metrics import Metrics

__all__ = ["DamagedValue", "RedisConnection"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_CONNECT_SECONDS = 2.0
# Without a byte; a chunk of an adapter may take longer in all.
_SILENCE_SECONDS = 5.0
# Commands under way at once, each on a connection of its own; more wait here.
_MOST_CONNECTIONS = 16
# A connection that was cut is opened again at once, and a command that it had carried sent again: all of ours may be.
_RETRIES = 2
_PAUSES_SECONDS = (0.1, 5.0)
# Redis refuses to write: memory is full; its own disk is; it has become a replica of another.
_FULL = ("OOM", "MISCONF")
_READ_ONLY = ("READONLY", "MASTERDOWN", "NOREPLICAS")


class DamagedValue(StoreError):
    """A key holds something else than what we write there."""

    def __init__(self) -> None:
        super().__init__("Redis holds something else under one of our names")


class RedisConnection:
    """A pool of connections to one Redis. One event loop owns it.

    Attributes:
        available: whether Redis answers, as far as is known; while not, commands fail at once.
    """

    def __init__(self, url: SecretStr, metrics: Metrics) -> None:
        """Prepare the connection; nothing is sent yet.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``; it may hold a password and is never shown.
            metrics: where errors are counted.

        Raises:
            StoreError: the URL cannot be read.
        """
        self._metrics = metrics
        self._slots = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._away = asyncio.Event()
        self.available = True
        metrics.redis_up.set(1)
        try:
            self.client: Redis = Redis.from_url(
                url.get_secret_value(),
                socket_connect_timeout=_CONNECT_SECONDS,
                socket_timeout=_SILENCE_SECONDS,
                socket_keepalive=True,
                health_check_interval=15,
                retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), _RETRIES),
            )
        except ValueError:
            raise StoreError("PERK_REDIS_URL: not a redis://, rediss:// or unix:// address") from None

    async def open(self) -> None:
        """Look whether Redis answers; where it does not, `watch` goes on looking.

        Raises:
            StoreError: it answers, but will not have us.
        """
        try:
            await self.run(lambda client: client.ping())
        except StoreUnavailable:
            _log.warning("redis away at the start")

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()

    async def run(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        """Let an operation use Redis.

        Raises:
            StoreUnavailable: it does not answer.
            StorageFull: it has no space left.
            DamagedValue: a key is not of the type that it should be.
            StoreError: it refuses.
        """
        if not self.available:
            raise _unavailable()
        async with self._slots:
            # What a cancelled task does to clean up is not cancelled again.
            cancelled = _cancellations()
            try:
                return await operation(self.client)
            except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                self._count("refused")
                raise StoreError(f"Redis refuses us: {type(error).__name__}") from None
            except (ConnectionError, TimeoutError, BusyLoadingError, OSError) as error:
                self._count("unavailable")
                self._lose(type(error).__name__)
                raise _unavailable() from None
            except ResponseError as error:
                # Of Redis' own sentence only the first word is sure to hold nothing of ours.
                word = str(error).split(" ", 1)[0][:32]
                if isinstance(error, OutOfMemoryError) or any(name in str(error) for name in _FULL):
                    self._count("full")
                    raise StorageFull from None
                if "WRONGTYPE" in str(error):
                    self._count("damaged")
                    raise DamagedValue from None
                if isinstance(error, ReadOnlyError) or any(name in str(error) for name in _READ_ONLY):
                    self._count("unavailable")
                    self._lose(word)
                    raise _unavailable() from None
                self._count("other")
                raise StoreError(f"Redis refuses a command: {word}") from None
            except RedisError as error:
                self._count("other")
                raise StoreError(f"Redis: {type(error).__name__}") from None
            finally:
                if _cancellations() > cancelled:
                    # The client swallows a cancellation that comes as a command ends.
                    raise asyncio.CancelledError

    async def watch(self, on_return: Callable[[], None]) -> None:
        """While Redis is away, look for it at growing intervals; runs until cancelled.

        Args:
            on_return: called each time that it has come back.
        """
        shortest, longest = _PAUSES_SECONDS
        while True:
            await self._away.wait()
            pause = shortest
            while not await self._answers():
                # Not all replicas at the same moment.
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, longest)
            self._away.clear()
            self.available = True
            self._metrics.redis_up.set(1)
            _log.info("redis is back")
            on_return()

    async def _answers(self) -> bool:
        try:
            role = (await self.client.info("replication"))["role"]
        except (RedisError, OSError):
            return False
        return bool(role == "master")

    def _lose(self, problem: str) -> None:
        if self.available:
            self.available = False
            self._metrics.redis_up.set(0)
            self._away.set()
            _log.error("redis away", problem=problem)

    def _count(self, reason: str) -> None:
        self._metrics.redis_errors.labels(reason).inc()


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("Redis cannot be reached; this replica answers from what it has at hand")


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
