"""Starts and stops what documents and questions need: the model thread, the store and the encode queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from perk.errors import PerkError
from perk.perk_model import PerkModel
from service.engine.documents import Documents
from service.engine.encode_queue import EncodeQueue
from service.engine.model_thread import ModelThread
from service.engine.questions import Questions
from service.engine.quotas import Quotas
from service.engine.replicas import Replicas
from service.errors import LoadFailed, NotReady, ServiceError, StoreError
from service.logging import describe_error
from service.metrics import Metrics
from service.settings import Settings
from service.store.adapter_format import AdapterFormat
from service.store.alone import NoOtherReplica
from service.store.disk import DataDirectory, DiskStore
from service.store.memory import MemoryTier
from service.store.protocol import Leases
from service.store.redis import RedisStore
from service.store.redis_connection import RedisConnection
from service.store.redis_leases import RedisLeases
from service.store.shared import SharedStore
from service.tracing import Tracer

__all__ = ["Engine", "EngineParts", "load_perk_model"]

_log = structlog.get_logger(__name__)

# Between two looks for adapters beyond their time; a question never gets one of those, however long this is.
_EXPIRY_SECONDS = 60


@dataclass(frozen=True)
class EngineParts:
    """What a deployment over several machines puts in place of the engine's own.

    Attributes:
        leases: says which documents are encoded here, given what says so in the store.
        questions: takes the questions; called as `Questions`.
        recites: whether what is at hand is recalled while the model is idle; of use where questions are answered.
    """

    leases: Callable[[Leases], Leases] | None = None
    questions: Callable[..., Questions] = Questions
    recites: bool = True


@dataclass(frozen=True)
class _Parts:
    """What there is once the model is loaded."""

    documents: Documents
    questions: Questions
    store: DiskStore | SharedStore
    queue: EncodeQueue


class Engine:
    """The service without HTTP. One event loop owns it.

    Attributes:
        metrics: where everything is counted.
        quotas: what each tenant has used.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Settings], PerkModel],
        metrics: Metrics,
        tracer: Tracer,
        replaced: EngineParts | None = None,
    ) -> None:
        """Prepare the engine; nothing is loaded or opened yet.

        Args:
            settings: of the service.
            load: gives the model, on the thread that will own it.
            metrics: where everything is counted.
            tracer: takes the spans of encodes and questions.
            replaced: parts to have in place of the usual ones.
        """
        self.metrics = metrics
        self._replaced = replaced or EngineParts()
        self.quotas = Quotas()
        self._tracer = tracer
        self._settings = settings
        self._load = load
        self._thread = ModelThread(
            memory_budget=settings.memory_budget // 2,
            question_limit=settings.queue_limit,
            metrics=metrics,
            most_together=settings.encode_together,
        )
        self._directory: DataDirectory | None = None
        self._redis: RedisConnection | None = None
        self._parts: _Parts | None = None
        self._failure: LoadFailed | None = None
        self._started = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load; requests are answered meanwhile, most of them with `NotReady`."""
        self._starting = asyncio.create_task(self._start())

    async def ready(self) -> None:
        """Wait until everything is loaded.

        Raises:
            LoadFailed: it cannot be.
        """
        await self._started.wait()
        if self._failure is not None:
            raise self._failure

    def require_ready(self) -> None:
        """Check that documents can be encoded and questions answered.

        Raises:
            NotReady: they cannot, and why.
        """
        parts = self._running()
        if not self._thread.alive:
            raise NotReady("failed", "the model is not running")
        if self.degraded is None and parts.queue.store_problem is not None:
            raise NotReady("store", parts.queue.store_problem)
        if not parts.store.has_space:
            raise NotReady("store", "the disk of the store has no space for another adapter")

    @property
    def degraded(self) -> str | None:
        """What does not work while the rest does, and is found again by itself; None where all is well."""
        store = self._running().store
        return store.degraded if isinstance(store, SharedStore) else None

    @property
    def documents(self) -> Documents:
        """The documents.

        Raises:
            NotReady: the service is starting or stopping.
        """
        return self._running().documents

    @property
    def questions(self) -> Questions:
        """The questions; raises as `documents` does."""
        return self._running().questions

    async def delete(self, document_id: str, owner: str) -> None:
        """Forget a document, and end the answers that it is giving; raises as `Documents.delete` does."""
        parts = self._running()
        await parts.documents.delete(document_id, owner)
        parts.questions.end_all(document_id)

    async def until_encoded(self, document_id: str) -> None:
        """Wait until the encode of a stored document has ended, well or not, here or in another replica.

        Raises:
            NotReady: the service is starting or stopping.
            StoreError: the store cannot be read.
        """
        parts = self._running()
        record = await parts.store.find(document_id)
        if record is not None and record.status == "queued":
            await parts.queue.add(record).ended()

    def begin_stop(self) -> None:
        """Take no more work and end what runs: encodes after their slice, answers within their time of grace."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())

    async def stop(self) -> None:
        """Stop, and close the store; documents without an adapter stay queued there."""
        self.begin_stop()
        assert self._stopping is not None
        await self._stopping
        if self._parts is not None:
            self._parts.store.close()
        if self._redis is not None:
            await self._redis.close()
        if self._directory is not None:
            self._directory.close()

    def _running(self) -> _Parts:
        if self._stopping is not None:
            raise NotReady("stopping", "the service is stopping")
        if self._failure is not None:
            raise NotReady("failed", str(self._failure))
        if self._parts is None:
            raise NotReady("loading", "the model is being loaded")
        return self._parts

    async def _start(self) -> None:
        try:
            self._parts = await self._open()
        except (PerkError, ServiceError) as error:
            self._failure = LoadFailed(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the service must not hang half-started
            _log.error("start failed", **describe_error(error))
            self._failure = LoadFailed(f"internal error: {type(error).__name__} (the log has its place)")
        self._started.set()

    async def _open(self) -> _Parts:
        settings = self._settings
        # Before the model: what takes seconds to load is no use without a folder to work in.
        is_shared = settings.redis_url is not None
        folder = settings.data_dir / "outbox" if is_shared else settings.data_dir
        self._directory = await asyncio.to_thread(DataDirectory, folder)
        model = await self._thread.start(partial(self._load, settings))
        adapter_format = AdapterFormat(
            settings.adapter_format or ("bf16" if is_shared else "float32"),
            size=model.adapter_size,
            fingerprint=model.fingerprint,
            initial=model.initial,
        )
        disk = await asyncio.to_thread(
            DiskStore,
            self._directory,
            fingerprint=model.fingerprint,
            adapter_size=model.adapter_size,
            metrics=self.metrics,
            adapter_format=adapter_format,
        )
        store: DiskStore | SharedStore = disk
        leases: Leases = NoOtherReplica()
        redis_leases: RedisLeases | None = None
        if settings.redis_url is not None:
            self._redis = RedisConnection(settings.redis_url, self.metrics)
            redis = RedisStore(
                self._redis,
                fingerprint=model.fingerprint,
                adapter_format=adapter_format,
                adapter_ttl=settings.adapter_ttl,
                metrics=self.metrics,
            )
            redis_leases = RedisLeases(self._redis, redis, metrics=self.metrics)
            store = leases = SharedStore(
                self._redis, redis, redis_leases, disk, limit=settings.queue_limit, metrics=self.metrics
            )
            await store.open()
        if self._replaced.leases is not None:
            leases = self._replaced.leases(leases)
        adapters = MemoryTier(
            store,
            budget=settings.memory_budget // 2,
            metrics=self.metrics,
            below_name="redis" if is_shared else "disk",
            on_held=self._thread.recite if self._replaced.recites else None,
        )
        queue = EncodeQueue(
            thread=self._thread,
            documents=store,
            adapters=adapters,
            leases=leases,
            limit=settings.queue_limit,
            together=settings.encode_together,
            adapter_ttl=settings.adapter_ttl,
            metrics=self.metrics,
            tracer=self._tracer,
        )
        documents = Documents(
            model=model,
            thread=self._thread,
            store=store,
            adapters=adapters,
            queue=queue,
            token_limit=settings.max_document_tokens,
            waiting_limit=settings.queue_limit,
            quotas=self.quotas,
            adapter_ttl=settings.adapter_ttl,
            metrics=self.metrics,
        )
        questions = self._replaced.questions(
            thread=self._thread,
            documents=documents,
            quotas=self.quotas,
            deadline_seconds=settings.answer_deadline_seconds,
            metrics=self.metrics,
            tracer=self._tracer,
        )
        self._background.append(asyncio.create_task(queue.run()))
        if isinstance(store, SharedStore) and redis_leases is not None:
            replicas = Replicas(store, redis_leases, queue=queue, adapters=adapters, on_deleted=questions.end_all)
            self._background.append(asyncio.create_task(replicas.run()))
        else:
            for document_id in await store.queued():
                if (record := await store.find(document_id)) is not None:
                    queue.add(record)
        if settings.adapter_ttl is not None:
            self._background.append(asyncio.create_task(_drop_expired(documents)))
        _log.info("ready", model=model.name, checkpoint=model.checkpoint_name, fingerprint=model.fingerprint[:16])
        return _Parts(documents, questions, store, queue)

    async def _stop(self) -> None:
        ending = [task for task in (self._starting, *self._background) if task is not None]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, self._thread.stop(self._settings.stop_grace_seconds), return_exceptions=True)


async def _drop_expired(documents: Documents) -> None:
    while True:
        try:
            await documents.drop_expired()
        except StoreError as error:
            _log.error("store unavailable", problem=str(error))
        await asyncio.sleep(_EXPIRY_SECONDS)


def load_perk_model(settings: Settings) -> PerkModel:
    """The checkpoint that the settings name, on its base."""
    return PerkModel.load(settings.checkpoint, device=settings.device, report=lambda line: _log.info(line))
