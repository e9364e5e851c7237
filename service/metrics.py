"""The metrics of one running service, in a registry of their own."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

__all__ = ["Metrics", "tokens_label"]

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SLICE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ENCODE_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_LOSS_BUCKETS = (0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12)

# Largest numbers of tokens of each class of documents, beside its label.
_TOKEN_CLASSES = ((256, "256"), (1024, "1k"), (4096, "4k"), (16_384, "16k"), (65_536, "64k"))


def tokens_label(tokens: int) -> str:
    """The label of all documents of about this length."""
    return next((label for most, label in _TOKEN_CLASSES if tokens <= most), "more")


class Metrics:
    """All metrics, as in docs/metrics.md; labels take few values: never an id, a key or a path as it was sent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        self.requests = self._counter("requests", "Requests answered.", "method", "route", "status")
        self.request_seconds = self._histogram(
            "request_seconds", "Time from a request to the end of its response.", _REQUEST_BUCKETS, "route"
        )
        self.rejected = self._counter("rejected", "Requests refused, by kind of problem.", "reason")

        self.ready = self._gauge("ready", "Whether documents can be encoded and questions answered.")

        self.documents = self._gauge("documents", "Documents in the store.", "status")
        self.documents_received = self._counter(
            "documents_received", "Documents taken, by whether they were there.", "outcome"
        )
        self.encodes = self._counter("encodes", "Encodes that ended.", "outcome")
        self.encode_seconds = self._histogram(
            "encode_seconds", "Time of an encode's slices.", _ENCODE_BUCKETS, "tokens"
        )
        self.ready_seconds = self._histogram(
            "ready_seconds", "Time from a document's place in the queue to its kept adapter.", _ENCODE_BUCKETS, "tokens"
        )
        self.encoded_tokens = self._counter("encoded_tokens", "Tokens of encoded documents.")
        self.loss_before = self._histogram(
            "inner_loss_before", "Loss entering the first inner step, in nats per token.", _LOSS_BUCKETS
        )
        self.loss_after = self._histogram(
            "inner_loss_after", "Loss entering the last inner step, in nats per token.", _LOSS_BUCKETS
        )
        self.reencodes = self._counter("reencodes", "Documents encoded again, their adapter being gone.")

        self.questions = self._counter("questions", "Questions that ended.", "outcome")
        self.first_token_seconds = self._histogram(
            "first_token_seconds", "Time from a question to the first token of its answer.", _REQUEST_BUCKETS
        )
        self.ask_seconds = self._histogram(
            "ask_seconds", "Time from a question to the end of its answer.", _REQUEST_BUCKETS
        )
        self.answered_tokens = self._counter("answered_tokens", "Tokens of answers.")

        self.waiting = self._gauge("waiting", "Jobs that wait for the model.", "kind")
        self.waiting_limit = self._gauge("waiting_limit", "Most jobs that may wait for the model.", "kind")
        self.wait_seconds = self._histogram(
            "wait_seconds", "Time that a job waits for the model.", _REQUEST_BUCKETS, "kind"
        )
        self.slice_seconds = self._histogram("slice_seconds", "Time of one slice of a job.", _SLICE_BUCKETS, "kind")
        self.batch_rows = self._histogram("batch_rows", "Rows of the batch of a slice.", _ROW_BUCKETS, "kind")

        self.adapter_reads = self._counter("adapter_reads", "Adapters looked for, by the tier that had them.", "tier")
        self.adapter_seconds = self._histogram(
            "adapter_seconds", "Time from a question to its adapter.", _REQUEST_BUCKETS
        )
        self.adapters_dropped = self._counter(
            "adapters_dropped", "Adapters dropped from the store, by reason.", "reason"
        )
        self.tier_bytes = self._gauge("tier_bytes", "Bytes of adapters in a tier.", "tier")
        self.tier_evictions = self._counter("tier_evictions", "Adapters that made room for others in a tier.", "tier")
        self.store_errors = self._counter("store_errors", "Failed writes and reads of the store.", "reason")
        self.redis_up = self._gauge("redis_up", "Whether Redis answers; not a number where none is used.")
        self.redis_up.set(math.nan)
        self.redis_errors = self._counter("redis_errors", "Commands that Redis did not answer as it should.", "reason")
        self.outbox_documents = self._gauge("outbox_documents", "Documents on this replica's disk that wait for Redis.")
        self.leases_lost = self._counter("leases_lost", "Encodes that another replica has taken over.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"perk_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"perk_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"perk_{name}", text, labels, buckets=buckets, registry=self.registry)
