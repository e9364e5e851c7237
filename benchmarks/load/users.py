"""What a user of the service does under load; Locust runs many of them (`locust -f benchmarks/load/users.py`).

``PERK_LOAD_DOCUMENTS`` names the documents asked, comma-separated; ``PERK_LOAD_ENCODE_SHARE`` is the share of a user's
turns that send a new document and wait for its adapter; ``PERK_LOAD_API_KEY`` goes with every request where it is set.
"""

from __future__ import annotations

import os
import random
import time
import uuid

from locust import HttpUser, events, task

__all__ = ["Reader"]

_MAX_TOKENS = 12
_POLL_SECONDS = 0.25
_DOCUMENT_LINES = 6


class Reader(HttpUser):
    """Asks without a pause: the load is the number of users."""

    def on_start(self) -> None:
        """Learn from the environment what to ask."""
        self._documents = os.environ["PERK_LOAD_DOCUMENTS"].split(",")
        self._encode_share = float(os.environ.get("PERK_LOAD_ENCODE_SHARE", "0"))
        if key := os.environ.get("PERK_LOAD_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"

    @task
    def turn(self) -> None:
        """A question, or now and then a document."""
        if random.random() < self._encode_share:
            self._encode()
        else:
            self._ask()

    def _ask(self) -> None:
        question = f"What is the grade of the student with ID {random.randrange(1_000_000, 10_000_000)}?"
        self.client.post(
            f"/documents/{random.choice(self._documents)}/ask",
            json={"question": question, "max_tokens": _MAX_TOKENS},
            name="ask",
        )

    def _encode(self) -> None:
        """From sending a text that no one sent before until its adapter is there, as one figure named ``encode``."""
        text = "\n".join(f"The word of line {line} is {uuid.uuid4().hex[:8]}." for line in range(_DOCUMENT_LINES))
        started = time.perf_counter()
        with self.client.post("/documents", json={"text": text}, name="send", catch_response=True) as sent:
            if not sent.ok:
                sent.failure(f"status {sent.status_code}")
                return
            document = sent.json()
        while document["status"] in ("queued", "encoding"):
            time.sleep(_POLL_SECONDS)
            document = self.client.get(f"/documents/{document['id']}", name="status").json()
        failed = None if document["status"] == "ready" else RuntimeError(f"status {document['status']}")
        events.request.fire(
            request_type="JOB",
            name="encode",
            response_time=1000 * (time.perf_counter() - started),
            response_length=0,
            exception=failed,
        )
