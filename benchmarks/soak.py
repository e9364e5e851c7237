"""Whether anything grows while a service works: memory, file handles, threads, documents, keys in Redis.

    python -m benchmarks.soak --minutes 5 [--redis-url redis://…]

starts a service and lets clients do all that users do, good and bad, as fast as it goes: an hour of such work fits into
minutes. Every document is deleted again, so whatever is there after a while is there at the end. The status is 1 where
something has grown.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis

from benchmarks.local_server import running_server

__all__ = ["ALLOWED", "grown", "lasting_keys", "main", "probe_process", "run"]

Probe = Callable[[], Mapping[str, float]]

ALLOWED = {"rss_mib": 16.0, "handles": 4.0, "threads": 4.0, "documents": 0.0, "redis_keys": 0.0}
"""What a median may be larger in the last third of the rounds than in the one before. Allocators and pools breathe."""

_PLACES = ("kitchen", "garden", "office", "hall", "attic")
# Leases, progress, and adapters that are being written (docs/redis.md).
_PASSING_SECONDS = 120
# One to warm up, and two to compare.
_LEAST_ROUNDS = 3


def run(client: httpx.Client, probe: Probe, *, seconds: float, clients: int = 4, seed: int = 0) -> dict[str, Any]:
    """Work in rounds, and look after each what is there: between two rounds there is no document.

    Args:
        client: of the service; threads share it.
        probe: what is to be watched, by name.
        seconds: to work, at least three rounds.
        clients: threads that do.
        seed: of what they do.

    Returns:
        ``rounds``, ``requests``, ``seconds``, ``unexpected`` (how often there was a status that there should not have
        been), ``samples`` and ``grown`` (as `grown`).
    """
    samples: list[dict[str, float]] = []
    visits = [_Visitor(client, random.Random(seed + number)) for number in range(clients)]
    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        while len(samples) < _LEAST_ROUNDS or time.monotonic() < started + seconds:
            list(pool.map(_Visitor.stay, visits))
            gc.collect()
            samples.append({"second": time.monotonic() - started, **probe()})
    return {
        "rounds": len(samples),
        "requests": sum(visitor.requests for visitor in visits),
        "seconds": time.monotonic() - started,
        "unexpected": dict(sum((visitor.unexpected for visitor in visits), Counter())),
        "samples": samples,
        "grown": grown(samples),
    }


class _Visitor:
    """One user, who does a bit of everything and leaves nothing behind.

    Attributes:
        requests: made so far.
        unexpected: statuses that there should not have been.
    """

    def __init__(self, client: httpx.Client, chance: random.Random) -> None:
        self._client = client
        self._chance = chance
        self.requests = 0
        self.unexpected: Counter[str] = Counter()

    def stay(self) -> None:
        """Send a document, ask it, be wrong now and then, and delete it."""
        number = self._chance.getrandbits(64)
        text = f"Document {number}. The apple is in the {self._chance.choice(_PLACES)} of house {number % 100}."
        sent = self._call({200, 201}, "POST", "/documents", json={"text": text}, headers={"Prefer": "wait=60"})
        place = f"/documents/{sent.get('id')}"
        body = {"question": "Where is the apple?", "max_tokens": 6}
        self._call({200}, "POST", f"{place}/ask", json=body)
        self._leave_early(f"{place}/ask", {**body, "stream": True, "max_tokens": 200})
        chat = {"model": sent.get("id"), "messages": [{"role": "user", "content": body["question"]}], "max_tokens": 4}
        self._call({200}, "POST", "/v1/chat/completions", json=chat)
        self._call({200}, "GET", f"{place}/events")
        self._call({200}, "GET", f"{place}/adapter")
        self._call({422}, "POST", f"{place}/ask", json={"question": ""})
        self._call({404}, "GET", f"/documents/doc_{0:032x}")
        # Deleted before it is ready.
        other = self._call({202}, "POST", "/documents", json={"text": f"{text} And no one will ever know."})
        self._call({204}, "DELETE", f"/documents/{other.get('id')}")
        self._call({204}, "DELETE", place)

    def _call(self, expected: set[int], method: str, path: str, **options: Any) -> dict[str, Any]:
        """The answer, where it is one in JSON."""
        response = self._client.request(method, path, **options)
        self._note(response.status_code in expected, f"{method} {path.split('/')[1]}: {response.status_code}")
        is_json = response.headers.get("Content-Type") == "application/json"
        found: dict[str, Any] = response.json() if is_json else {}
        return found

    def _leave_early(self, path: str, body: dict[str, Any]) -> None:
        with self._client.stream("POST", path, json=body) as response:
            self._note(response.status_code == httpx.codes.OK, f"stream: {response.status_code}")
            next(response.iter_lines(), None)

    def _note(self, is_expected: bool, what: str) -> None:
        self.requests += 1
        if not is_expected:
            self.unexpected[what] += 1


def grown(samples: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """What is larger in the last third of the samples than in the second, and more so than allowed: both medians."""
    third = len(samples) // 3
    if third == 0:
        raise ValueError(f"samples: got {len(samples)}, expected at least {_LEAST_ROUNDS}")
    before, after = samples[third : 2 * third], samples[2 * third :]
    medians = {
        name: tuple(statistics.median(sample[name] for sample in part) for part in (before, after))
        for name in ALLOWED
        if name in samples[0]
    }
    return {name: (old, new) for name, (old, new) in medians.items() if new - old > ALLOWED[name]}


def probe_process(process: psutil.Process, client: httpx.Client, store: redis.Redis | None = None) -> Probe:
    """Looks at a server's process, its list of documents, and the keys of its Redis."""

    def probe() -> dict[str, float]:
        with process.oneshot():
            found: dict[str, float] = {
                "rss_mib": process.memory_info().rss / 2**20,
                "handles": process.num_fds(),
                "threads": process.num_threads(),
                "documents": len(client.get("/documents").json()["data"]),
            }
        if store is not None:
            found["redis_keys"] = len(lasting_keys(store))
        return found

    return probe


def lasting_keys(store: redis.Redis) -> set[str]:
    """Names of the keys that stay: those of an encode that was given up end by themselves, within two minutes."""
    keys = list(store.scan_iter("perk:*"))
    return {key.decode() for key in keys if not 0 <= store.ttl(key) <= _PASSING_SECONDS and store.exists(key)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="look whether a service that works grows")
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--redis-url", help="of a Redis for this alone; without it: the embedded store")
    parser.add_argument("--csv", type=Path, help="where the samples are written")
    chosen = parser.parse_args(arguments)
    settings = {"PERK_CHECKPOINT": chosen.checkpoint, "PERK_DEVICE": "cpu"}
    if chosen.redis_url:
        settings["PERK_REDIS_URL"] = chosen.redis_url
    before = set(psutil.Process(os.getpid()).children())
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), **settings) as client:
        (process,) = set(psutil.Process(os.getpid()).children()) - before
        store = redis.Redis.from_url(chosen.redis_url) if chosen.redis_url else None
        probe = probe_process(process, client, store)
        result = run(client, probe, seconds=60 * chosen.minutes, clients=chosen.clients)
    samples = result.pop("samples")
    if chosen.csv is not None:
        with chosen.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, samples[0])
            writer.writeheader()
            writer.writerows(samples)
    print(json.dumps({**result, "first": samples[0], "last": samples[-1]}))
    return int(bool(result["grown"] or result["unexpected"]))


if __name__ == "__main__":
    sys.exit(main())
