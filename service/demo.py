"""The main job once, from outside: start a server, encode the documents of ``examples/``, ask their questions.

`make demo` runs it as ``python -m service.demo``. The same questions then go to the base model alone, without any
document, to show that the answers come from the adapters.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from benchmarks.local_server import ServerError, running_server
from perk.answer import AnswerRequest
from perk.errors import PerkError
from perk.perk_model import PerkModel
from perk.scoring import exact_match
from service.settings import load_settings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# Natural prose is shown, but not yet part of what the shipped checkpoint promises.
_NOT_COUNTED = frozenset({"article"})
# The base model alone goes on after its answer; cutting both at the first line keeps the comparison fair.
_STOP = ("\n",)

_ENCODE_SECONDS = 1800.0
_POLL_SECONDS = 0.5


class DemoError(Exception):
    """The job did not run to its end."""


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers, the expected one first."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A document of ``examples/`` with its questions."""

    name: str
    text: str
    questions: tuple[Question, ...]

    @property
    def counted(self) -> bool:
        """Whether its answers are part of the score."""
        return self.name not in _NOT_COUNTED


def read_examples(folder: Path) -> list[Example]:
    """Read every ``NAME.txt`` of `folder` with its ``NAME.questions.jsonl``.

    Raises:
        DemoError: there is none, or a document has no questions beside it.
    """
    examples = []
    for path in sorted(folder.glob("*.txt")):
        beside = path.with_suffix(".questions.jsonl")
        if not beside.is_file():
            raise DemoError(f"{path.name} has no {beside.name} beside it")
        rows = [json.loads(line) for line in beside.read_text(encoding="utf-8").splitlines() if line.strip()]
        questions = tuple(Question(row["question"], (row["answer"], *row.get("answers", ()))) for row in rows)
        examples.append(Example(path.stem, path.read_text(encoding="utf-8"), questions))
    if not examples:
        raise DemoError(f"no documents (*.txt) in {folder}")
    return examples


def encode(client: httpx.Client, examples: Sequence[Example], console: Console) -> dict[str, str]:
    """Send all documents and wait until each is ready; returns their ids by name.

    Raises:
        DemoError: a document was refused or failed, or encoding took too long.
    """
    documents = {}
    for example in examples:
        body = {"text": example.text, "title": example.name}
        documents[example.name] = _checked(client.post("/documents", json=body))
    columns = (TextColumn("encoding {task.description:<9}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bars = {name: progress.add_task(name, total=1.0) for name in documents}
        deadline = time.monotonic() + _ENCODE_SECONDS
        while pending := [name for name, document in documents.items() if document["status"] != "ready"]:
            if time.monotonic() > deadline:
                raise DemoError(f"not encoded within {_ENCODE_SECONDS:.0f} seconds: {', '.join(pending)}")
            time.sleep(_POLL_SECONDS)
            for name in pending:
                document = documents[name] = _checked(client.get(f"/documents/{documents[name]['id']}"))
                if document["status"] == "failed":
                    raise DemoError(f"{name}: encoding failed: {document.get('error')}")
                progress.update(bars[name], completed=document["progress"])
    for name, document in documents.items():
        run = document["encode"]
        console.print(
            f"{name}: {document['tokens']} tokens in {document['segments']} segments,"
            f" {run['steps']} steps in {run['seconds']:.1f} s,"
            f" loss {run['loss_before']:.2f} → {run['loss_after']:.2f}"
        )
    return {name: document["id"] for name, document in documents.items()}


def _checked(response: httpx.Response) -> Any:
    if response.is_error:
        raise DemoError(f"{response.request.method} {response.request.url.path}: {response.text}")
    return response.json()


def ask(client: httpx.Client, example: Example, document_id: str, console: Console) -> int:
    """Ask a document's questions, print each with its answer; returns how many are right."""
    table = Table("question", "answer", "expected", "ok", title=example.name, title_justify="left")
    table.add_column("ms", justify="right")
    right = 0
    for question in example.questions:
        started = time.monotonic()
        body = {"question": question.text, "stop": _STOP}
        answer = _checked(client.post(f"/documents/{document_id}/ask", json=body))["answer"]
        milliseconds = 1000 * (time.monotonic() - started)
        ok = exact_match(answer, question.answers)
        right += ok
        row = (question.text, answer, question.answers[0], "yes" if ok else "no", f"{milliseconds:.0f}")
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console.print(table)
    return right


def _printable(text: str) -> str:
    """What a wrong answer may hold beside text, such as control characters, must not reach the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def ask_base_model(examples: Sequence[Example]) -> dict[str, int]:
    """Ask all questions of the base model without a document; returns how many it gets right, by name."""
    settings = load_settings()
    model = PerkModel.load(settings.checkpoint, device=settings.device)
    right = {}
    for example in examples:
        answering = model.start_answer([AnswerRequest(q.text, stop=_STOP) for q in example.questions])
        texts = [""] * len(example.questions)
        while not answering.done:
            for delta in answering.advance():
                texts[delta.row] += delta.text
        right[example.name] = sum(
            exact_match(text, question.answers) for text, question in zip(texts, example.questions, strict=True)
        )
    return right


def run(folder: Path, console: Console) -> None:
    """Run the whole job on the documents of `folder`; the last line printed is the score.

    Raises:
        DemoError, ServerError: the job did not run to its end. Wrong answers are no error.
    """
    examples = read_examples(folder)
    with tempfile.TemporaryDirectory(prefix="perk-demo-") as scratch:
        console.print("starting the service")
        with running_server(Path(scratch)) as client:
            ids = encode(client, examples, console)
            with_document = {example.name: ask(client, example, ids[example.name], console) for example in examples}
    console.print("asking the base model the same questions, without the documents")
    without_document = ask_base_model(examples)
    for example in examples:
        console.print(
            f"{example.name}: {with_document[example.name]} of {len(example.questions)} right,"
            f" without the document {without_document[example.name]}{'' if example.counted else ' (not counted)'}"
        )
    counted = [example for example in examples if example.counted]
    total = sum(len(example.questions) for example in counted)
    console.print(f"without the document: {sum(without_document[e.name] for e in counted)} of {total} answers right")
    console.print(f"demo: {sum(with_document[e.name] for e in counted)} of {total} answers right")


def main() -> int:
    """Run the demo; returns the exit status, 0 only if the job ran."""
    # A pipe has no width: wide enough for a question, its answer and the answer expected in one line.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    try:
        run(EXAMPLES, console)
    except (DemoError, ServerError, PerkError) as error:
        print(f"demo: the job did not run: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
