"""Commands: ``python -m meta_training COMMAND``, where ``--help`` lists them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from meta_training.average import average
from meta_training.enlargement import enlarge
from meta_training.evaluate import evaluate
from meta_training.experiment import read_experiment, run_experiment
from meta_training.make_data import MAKEABLE_TASKS, make_data
from meta_training.practice import PracticeStep, Reads, practise
from meta_training.processes import join_processes
from meta_training.recall import recall
from meta_training.report import report
from meta_training.settings import read_settings
from meta_training.trainer import run_training
from perk.base_model import DEFAULT_BASE
from perk.checkpoint import load_checkpoint
from perk.errors import InvalidInput, PerkError
from perk.perk_model import PerkModel

application = typer.Typer(add_completion=False, no_args_is_help=True, help="Meta-training of PERK checkpoints.")


class _Method(StrEnum):
    perk = "perk"
    ft_icr = "ft-icr"
    in_context = "in-context"
    retrieval = "retrieval"
    base = "base"


class _Split(StrEnum):
    train = "train"
    dev = "dev"


@application.command("train")
def train_command(
    config: Annotated[Path, typer.Option(help="YAML file, see meta_training/configs.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the saved state.")] = False,
    start: Annotated[str | None, typer.Option(help="Begin with this checkpoint's parameters.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value; may be repeated.")] = None,
) -> None:
    """Learn initialisation, step sizes and token weighting."""
    loaded = load_checkpoint(start) if start is not None else None
    run_training(config, overrides or (), resume=resume, start=loaded)


@application.command("practise")
def practise_command(
    config: Annotated[Path, typer.Option(help="YAML file of a run: its seed and stages say what is asked.")],
    checkpoint: Annotated[str, typer.Option(help="Folder, or the name of a shipped checkpoint, to begin with.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    reads: Annotated[
        Reads, typer.Option(help="What the reader reads: a document's entries, or its parts.")
    ] = "entries",
    steps: Annotated[int, typer.Option(min=1, help="Of the reader.")] = 300,
    questions: Annotated[int, typer.Option(min=1, help="Of each step.")] = 4,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate at its highest.")] = 4e-4,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the state saved in --out.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value; may be repeated.")] = None,
) -> None:
    """Learn a reader, of what a document's adapter recalls: numbered entries, or a part with the answer."""
    settings = read_settings(config, overrides or ())
    processes = join_processes()
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[score]}"))
    with Progress(*columns, disable=not processes.main) as progress:
        practice = progress.add_task("practice", total=steps, score="")

        def report(step: int, seen: PracticeStep) -> None:
            chosen = "" if seen.chosen is None else f", chosen {seen.chosen:.0%}"
            progress.update(practice, completed=step, score=f"loss {seen.loss:.3f}, exact {seen.exact:.0%}{chosen}")

        practise(
            PerkModel.load(checkpoint, device=processes.device),
            settings,
            steps=steps,
            reads=reads,
            questions=questions,
            rate=rate,
            report=report,
            processes=processes,
            folder=out,
            resume=resume,
        )


@application.command("enlarge")
def enlarge_command(
    checkpoint: Annotated[str, typer.Option(help="Folder, or the name of a shipped checkpoint, to begin with.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    rank: Annotated[int | None, typer.Option(min=1, help="Of the new adapter.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the new inner loop.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is new in the adapter.")] = 0,
) -> None:
    """Give a checkpoint a larger rank or more inner steps; meta-training goes on from there (train --start)."""
    model = PerkModel.load(checkpoint, in_context=load_checkpoint(checkpoint).settings.in_context)
    enlarge(model.checkpoint, model.adapted.layout, rank=rank, steps=steps, seed=seed).save(out)


@application.command("average")
def average_command(
    checkpoints: Annotated[list[str], typer.Argument(help="Folders, or names of shipped checkpoints.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    shares: Annotated[
        list[float] | None, typer.Option("--share", help="Of each in the mean, in their order; none: all alike.")
    ] = None,
) -> None:
    """Average checkpoints of runs that began with the same one; the first's segments and templates are taken."""
    average([load_checkpoint(name) for name in checkpoints], shares).save(out)


@application.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[str, typer.Option(help="Folder, or the name of a shipped checkpoint.")],
    data: Annotated[Path, typer.Option(help="JSON Lines in the exchange format.")],
    method: Annotated[_Method, typer.Option(help="Who answers.")] = _Method.perk,
    limit: Annotated[int | None, typer.Option(min=1, help="Most documents.")] = None,
    position: Annotated[float | None, typer.Option(help="Of the needle, as the data were made; for report.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="name=value by which report tells ablations apart.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score a checkpoint on questions about documents."""
    marks = {"position": position, "ablation": _read_tags(tags or ())}
    scores = evaluate(checkpoint, data, method=method.value, limit=limit)
    scores |= {name: value for name, value in marks.items() if value not in (None, {})}
    if as_json:
        print(json.dumps(scores))
        return
    table = Table("task", "questions", "exact match", "F1")
    for task, row in scores["by_task"].items():
        table.add_row(task or "-", str(row["questions"]), f"{row['exact_match']:.3f}", f"{row['f1']:.3f}")
    table.add_row("all", str(scores["questions"]), f"{scores['exact_match']:.3f}", f"{scores['f1']:.3f}")
    Console().print(table)


@application.command("recall")
def recall_command(
    checkpoint: Annotated[str, typer.Option(help="Folder, or the name of a shipped checkpoint.")],
    data: Annotated[Path, typer.Option(help="JSON Lines in the exchange format.")],
    documents: Annotated[int, typer.Option(min=1, help="Of the file, read as one text.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read documents as one long text, and see how much of it is recalled and how it answers."""
    result = recall(checkpoint, data, documents=documents)
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


@application.command("make-data")
def make_data_command(
    task: Annotated[str, typer.Argument(help=f"One of: {', '.join(MAKEABLE_TASKS)}.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    tokens: Annotated[int, typer.Option(help="About this many tokens a document.")] = 1024,
    count: Annotated[int, typer.Option(help="Number of documents.")] = 50,
    seed: Annotated[int, typer.Option(help="The same seed writes the same file.")] = 0,
    position: Annotated[float | None, typer.Option(help="Place of the relevant passage, 0 to 1.")] = None,
    records: Annotated[int | None, typer.Option(min=1, help="Exact number of students of a register.")] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Most questions of a document, where the task has such a limit.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Folder or hub id of a question set, instead of the published one.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="name=value of another option that the task has in a configuration.")
    ] = None,
    split: Annotated[_Split, typer.Option(help="dev is never trained on.")] = _Split.dev,
    base: Annotated[str, typer.Option(help="Base model whose tokeniser counts the tokens.")] = DEFAULT_BASE,
) -> None:
    """Write generated documents and questions."""
    named = {"records": records, "questions": questions, "source": source}
    options = {name: value for name, value in named.items() if value is not None} | _read_options(option or ())
    lines = make_data(
        task,
        out,
        tokens=tokens,
        count=count,
        seed=seed,
        position=position,
        split=split.value,
        base=base,
        options=options,
    )
    print(f"{out}: {lines} questions about {count} documents")


@application.command("experiment")
def experiment_command(
    file: Annotated[Path, typer.Argument(help="YAML file, see meta_training/experiments.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value of every run.")] = None,
) -> None:
    """Train some runs, score them on the same data, and report; a second call goes on where the first was stopped."""
    print(f"{run_experiment(read_experiment(file), overrides or ())}: done")


@application.command("report")
def report_command(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines that evaluate --json printed.")],
    page: Annotated[Path, typer.Option(help="Page whose marked section is written.")] = Path("docs/results.md"),
) -> None:
    """Turn evaluations into tables and plots."""
    print(f"{page}: {report(files, page)} evaluations")


def _read_tags(tags: Sequence[str]) -> dict[str, str | int | float | bool]:
    """Names and values; a value that JSON reads as a number or a truth value is one."""
    read: dict[str, str | int | float | bool] = {}
    for name, value in _pairs("tag", tags):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = value
        read[name] = parsed if isinstance(parsed, bool | int | float) else value
    return read


def _read_options(options: Sequence[str]) -> dict[str, Any]:
    """Names and values, which are YAML as in a configuration."""
    read = {}
    for name, value in _pairs("option", options):
        try:
            read[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InvalidInput("option", repr(f"{name}={value}"), "a YAML value") from error
    return read


def _pairs(field: str, given: Sequence[str]) -> Iterator[tuple[str, str]]:
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InvalidInput(field, repr(pair), "name=value")
        yield name, value


def main() -> None:
    """Entry point: known errors become one line and exit code 2."""
    try:
        application()
    except PerkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
