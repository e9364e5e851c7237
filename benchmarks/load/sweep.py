"""Throughput and latency by number of users and by share of documents among their turns, as CSV and plot.

    python -m benchmarks.load.sweep --users 1 8 32 --encode-shares 0 0.05 --seconds 60 --csv load.csv --plot load.png

starts a service of its own (or takes ``--url``), encodes a few documents, and runs Locust once for every pair.
``--meanwhile-words 25000`` has a document of so many words encode during every run.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import httpx

from benchmarks.local_server import encode_document, running_server

__all__ = ["Measured", "main", "measure", "plot", "read_statistics"]

_USERS = Path(__file__).with_name("users.py")
_DOCUMENTS = 8


@dataclass(frozen=True)
class Measured:
    """One kind of request under one load; times in milliseconds."""

    users: int
    encode_share: float
    meanwhile_words: int
    kind: str
    requests: int
    failures: int
    per_second: float
    p50: float
    p95: float
    p99: float


def measure(
    client: httpx.Client,
    documents: Sequence[str],
    *,
    users: int,
    encode_share: float,
    seconds: int,
    meanwhile_words: int = 0,
) -> list[Measured]:
    """Run Locust once.

    Args:
        client: of the service.
        documents: ids of ready documents.
        users: at once.
        encode_share: of their turns that send a document.
        seconds: of the run; requests on their way at its end are not counted.
        meanwhile_words: of a document that encodes during the run; 0: none does.

    Raises:
        RuntimeError: that document was encoded, or failed, before the run's end.
        subprocess.CalledProcessError: Locust did not run.
    """
    with tempfile.TemporaryDirectory() as folder, _encoding_meanwhile(client, meanwhile_words):
        prefix = Path(folder) / "run"
        command = f"locust -f {shlex.quote(str(_USERS))} --headless --only-summary --exit-code-on-error 0"
        command += f" --host {client.base_url} -u {users} -r {users} -t {seconds}s --csv {shlex.quote(str(prefix))}"
        subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            env={
                **os.environ,
                "PERK_LOAD_DOCUMENTS": ",".join(documents),
                "PERK_LOAD_ENCODE_SHARE": str(encode_share),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return read_statistics(
            Path(f"{prefix}_stats.csv"), users=users, encode_share=encode_share, meanwhile_words=meanwhile_words
        )


@contextmanager
def _encoding_meanwhile(client: httpx.Client, words: int) -> Iterator[None]:
    if not words:
        yield
        return
    text = " ".join(f"{uuid.uuid4().hex[:4]}" for _ in range(words))
    document = _sent(client.post("/documents", json={"text": text}))
    try:
        yield
        status = _sent(client.get(f"/documents/{document['id']}"))["status"]
        if status not in ("queued", "encoding"):
            raise RuntimeError(f"the document of {words} words is {status} before the end of the run: take more words")
    finally:
        client.delete(f"/documents/{document['id']}").raise_for_status()


def _sent(response: httpx.Response) -> dict[str, Any]:
    response.raise_for_status()
    document: dict[str, Any] = response.json()
    return document


def read_statistics(path: Path, *, users: int, encode_share: float, meanwhile_words: int) -> list[Measured]:
    """The rows of Locust's own table that say something of the service: ``ask`` and ``encode``."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Name"] in ("ask", "encode")]
    return [
        Measured(
            users=users,
            encode_share=encode_share,
            meanwhile_words=meanwhile_words,
            kind=row["Name"],
            requests=int(row["Request Count"]),
            failures=int(row["Failure Count"]),
            per_second=float(row["Requests/s"]),
            p50=float(row["50%"]),
            p95=float(row["95%"]),
            p99=float(row["99%"]),
        )
        for row in rows
        if int(row["Request Count"])
    ]


def plot(measured: Sequence[Measured], out: Path) -> None:
    """Questions a second, and their median and 99th percentile, by number of users: a line for each share."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (throughput, latency) = plt.subplots(1, 2, figsize=(10, 4))
    for share in sorted({m.encode_share for m in measured}):
        rows = [m for m in measured if m.encode_share == share and m.kind == "ask"]
        users = [m.users for m in rows]
        label = f"{share:.0%} documents"
        (line,) = throughput.plot(users, [m.per_second for m in rows], marker="o", label=label)
        latency.plot(users, [m.p50 for m in rows], marker="o", color=line.get_color(), label=f"{label}, median")
        latency.plot(users, [m.p99 for m in rows], marker="x", ls="--", color=line.get_color(), label=f"{label}, p99")
    throughput.set(xlabel="users at once", ylabel="questions a second")
    latency.set(xlabel="users at once", ylabel="milliseconds to the whole answer", yscale="log")
    for axes in (throughput, latency):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _text(number: int) -> str:
    """A short document."""
    return f"Student <{3_100_000 + number}>, Name: Ada Young, Year: Senior, Grade: {40 + number}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a running service; one of its own without")
    parser.add_argument("--checkpoint", default="default", help="of a service of its own")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--encode-shares", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--meanwhile-words", type=int, default=0)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        if chosen.url:
            client = stack.enter_context(httpx.Client(base_url=chosen.url, timeout=300.0))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            client = stack.enter_context(running_server(folder, PERK_CHECKPOINT=chosen.checkpoint))
        documents = [encode_document(client, _text(number)) for number in range(_DOCUMENTS)]
        measured: list[Measured] = []
        for share in chosen.encode_shares:
            for users in chosen.users:
                rows = measure(
                    client,
                    documents,
                    users=users,
                    encode_share=share,
                    seconds=chosen.seconds,
                    meanwhile_words=chosen.meanwhile_words,
                )
                measured += rows
                for row in rows:
                    print(row, flush=True)
    with chosen.csv.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Measured))
        writer.writerows(astuple(row) for row in measured)
    if chosen.plot:
        plot(measured, chosen.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
