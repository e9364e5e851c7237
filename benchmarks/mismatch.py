"""Whether an answer ever depends on what else is asked: many clients, many documents, every answer compared.

    python -m benchmarks.mismatch --questions 10000

starts a service with room at hand for a few adapters only, sends documents that each hold other facts, asks every
question of every document alone, and then all of them again and again from many clients at once. Text, support, token
counts and the reason of the end must be those of the answer given alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.local_server import encode_document, running_server

__all__ = ["main", "run"]

_QUESTIONS = (
    "What is the grade of student {id}?",
    "What is the name of student {id}?",
    "Where is the {thing}?",
    "Which year is the student with ID {id} in, and where is the {thing} kept now?",
)
_NAMES = ("Ada Young", "Tom Reed", "Mary Stone", "John Field")
_YEARS = ("Senior", "Junior", "Sophomore", "Freshman")
_THINGS = ("apple", "lamp", "ticket", "violin")
_PLACES = ("kitchen", "garden", "office", "station", "attic")
# Of a question that was refused because too many wait.
_PAUSE_SECONDS = 0.05


def run(
    client: httpx.Client,
    *,
    documents: int = 64,
    questions: int = 10_000,
    clients: int = 32,
    max_tokens: int = 12,
    seed: int = 0,
) -> dict[str, float]:
    """Encode, ask alone, ask together, compare.

    Args:
        client: of the service; threads share it.
        documents: to encode.
        questions: to ask together.
        clients: threads that ask.
        max_tokens: of the longest answer; answers get fewer in turn, so that they end at different times.
        seed: of the order.

    Returns:
        ``documents``, ``questions``, ``clients``, ``mismatches``, ``distinct`` (different answers given alone) and
        ``questions_per_second`` alone and together.
    """
    chance = random.Random(seed)
    asked: list[tuple[str, dict[str, Any]]] = []
    for number in range(documents):
        document_id = encode_document(client, _text(number))
        for index, question in enumerate(_QUESTIONS):
            text = question.format(id=3_100_000 + number, thing=_THINGS[number % 4])
            asked.append((document_id, {"question": text, "max_tokens": 1 + (max_tokens * (index + 1) - 1) // 4}))
    started = time.perf_counter()
    alone = [_ask(client, *pair) for pair in asked]
    alone_seconds = time.perf_counter() - started

    order = [chance.randrange(len(asked)) for _ in range(questions)]
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        same = list(pool.map(lambda index: _ask(client, *asked[index]) == alone[index], order))
    seconds = time.perf_counter() - started
    return {
        "documents": documents,
        "questions": questions,
        "clients": clients,
        "mismatches": same.count(False),
        "distinct": len({json.dumps(answer) for answer in alone}),
        "alone_questions_per_second": len(asked) / alone_seconds,
        "together_questions_per_second": questions / seconds,
    }


def _text(number: int) -> str:
    """A document of facts that no other document holds."""
    chance = random.Random(number)
    name, year = chance.choice(_NAMES), chance.choice(_YEARS)
    lines = [
        f"Student <{3_100_000 + number}>, Name: {name}, Year: {year}, Grade: {40 + number % 60}",
        f"The {_THINGS[number % 4]} is in the {chance.choice(_PLACES)} of house {number}.",
    ]
    return "\n".join(lines)


def _ask(client: httpx.Client, document_id: str, body: dict[str, Any]) -> list[Any]:
    """All of an answer that must not depend on anything else."""
    response = client.post(f"/documents/{document_id}/ask", json=body)
    while response.status_code in (409, 429):
        time.sleep(_PAUSE_SECONDS)
        response = client.post(f"/documents/{document_id}/ask", json=body)
    response.raise_for_status()
    answer = response.json()
    return [answer["answer"], answer["support"], answer["finish_reason"], answer["usage"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line; the status is 1 where an answer differs."""
    parser = argparse.ArgumentParser(description="compare answers given together with answers given alone")
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--memory-budget", default="64MiB", help="half of it for adapters at hand")
    chosen = parser.parse_args(arguments)
    settings = {
        "PERK_CHECKPOINT": chosen.checkpoint,
        "PERK_DEVICE": "cpu",
        "PERK_MEMORY_BUDGET": chosen.memory_budget,
        "PERK_QUEUE_LIMIT": "256",
    }
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), **settings) as client:
        result = run(
            client,
            documents=chosen.documents,
            questions=chosen.questions,
            clients=chosen.clients,
            max_tokens=chosen.max_tokens,
        )
    print(json.dumps(result))
    return int(result["mismatches"] > 0)


if __name__ == "__main__":
    sys.exit(main())
