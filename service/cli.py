"""The ``perk`` command: the service itself, and a client of a running one."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn, Self

import typer
from pydantic import ByteSize, Field, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from service.bulk import DocumentClient, Encoded, Source, encode_all, find_sources
from service.client import Client, ClientError
from service.settings import SettingsError, describe_settings, load_settings

__all__ = ["app", "main"]

app = typer.Typer(
    name="perk",
    help="Long documents become adapters, and questions are answered from the adapter alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
documents_app = typer.Typer(help="List, show or delete documents.")
bench_app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.add_typer(documents_app, name="documents")
app.add_typer(bench_app, name="bench")

_Server = Annotated[str, typer.Option("--server", envvar="PERK_SERVER", help="Address of the service.")]
_Key = Annotated[
    str | None, typer.Option("--key", envvar="PERK_API_KEY", help="Its API key, if it wants one.", show_default=False)
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
_Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the document.")]
_MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")]
_Temperature = Annotated[float, typer.Option(min=0, max=2, help="0 takes the likeliest token each time.")]
_Checkpoint = Annotated[str, typer.Option(help="Folder of a checkpoint, or the name of a shipped one.")]
_Tokens = Annotated[int, typer.Option(min=1, help="Length of the document.")]


def _parse_bytes(text: str) -> int:
    try:
        return TypeAdapter(Annotated[ByteSize, Field(ge=1)]).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is not a size such as 512MiB") from error


_DEFAULT_SERVER = "http://127.0.0.1:8000"


@app.command(epilog=f"Settings, from the environment or a .env file:\n\n{describe_settings()}")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
) -> None:
    """Run the service until it is told to stop."""
    try:
        settings = load_settings()
    except SettingsError as error:
        _fail("serve", str(error))
    # Loads torch and the web framework: no other command needs them.
    from service.server import serve as run

    raise typer.Exit(run(settings, host, port))


@app.command()
def encode(
    context: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Text files in UTF-8, or folders of them.", exists=True)
    ],
    glob: Annotated[str, typer.Option(help="What to take from folders.")] = "**/*.txt",
    store: Annotated[
        bool, typer.Option("--store", help="Encode here, into the store that the settings name, without a service.")
    ] = False,
    server: _Server = _DEFAULT_SERVER,
    key: _Key = None,
    as_json: _Json = False,
) -> None:
    """Encode documents on a running service, or straight into a store, and wait until they are ready.

    What is encoded already is not encoded again: a command that was stopped goes on where it was.
    """
    if store and _is_given(context, "server"):
        raise typer.BadParameter("give --store or --server, not both")
    sources = find_sources(paths, glob)
    if not sources:
        _fail("encode", f"no file matches {glob}")
    results: list[Encoded] = []
    try:
        encoding = _store_client("encode", key) if store else _client("encode", server, key)
        with encoding as client, _Bars(len(sources)) as bars:
            for result in encode_all(client, sources, bars.update):
                bars.end(result.source)
                results.append(result)
                if result.problem is not None:
                    print(f"perk encode: {result.source.path}: {result.problem}", file=sys.stderr)
    finally:
        # One that is refused takes nothing from the others.
        if documents := [result.document for result in results if result.document is not None]:
            _print_documents(documents, as_json=as_json)
    if len(sources) > 1:
        known, failed = sum(result.known for result in results), sum(result.problem is not None for result in results)
        summary = f"{len(sources)} files: {len(sources) - known - failed} encoded, {known} known, {failed} failed"
        print(f"perk encode: {summary}", file=sys.stderr)
    if any(result.problem is not None for result in results):
        raise typer.Exit(1)


@app.command()
def ask(
    document_id: _Id,
    question: Annotated[str, typer.Argument(help="The question.")],
    max_tokens: _MaxTokens = 64,
    temperature: _Temperature = 0.0,
    server: _Server = _DEFAULT_SERVER,
    key: _Key = None,
    as_json: _Json = False,
) -> None:
    """Ask a document; the answer is printed as it comes."""
    with _client("ask", server, key) as client:
        if as_json:
            answer = client.ask(document_id, question, max_tokens=max_tokens, temperature=temperature)
            print(json.dumps(answer, ensure_ascii=False))
            return
        for piece in client.ask_streaming(document_id, question, max_tokens=max_tokens, temperature=temperature):
            print(piece, end="", flush=True)
        print()


@documents_app.callback(invoke_without_command=True)
def documents(
    context: typer.Context, server: _Server = _DEFAULT_SERVER, key: _Key = None, as_json: _Json = False
) -> None:
    """List, show or delete documents; without a command, list them."""
    if context.invoked_subcommand is not None:
        # Ignored, they would send the command to another server than the one named.
        if any(_is_given(context, name) for name in context.params):
            raise typer.BadParameter(f"give the options after {context.invoked_subcommand!r}")
    else:
        with _client("documents", server, key) as client:
            _print_documents(client.documents(), as_json=as_json)


@documents_app.command()
def show(document_id: _Id, server: _Server = _DEFAULT_SERVER, key: _Key = None) -> None:
    """Print a document's object as JSON."""
    with _client("documents show", server, key) as client:
        print(json.dumps(client.show(document_id), ensure_ascii=False, indent=2))


@documents_app.command()
def delete(document_id: _Id, server: _Server = _DEFAULT_SERVER, key: _Key = None) -> None:
    """Delete a document: its text and its adapter."""
    with _client("documents delete", server, key) as client:
        client.delete(document_id)


@app.command()
def export(
    document_id: _Id,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.", file_okay=False)],
    server: _Server = _DEFAULT_SERVER,
    key: _Key = None,
) -> None:
    """Write a document's adapter as a PEFT folder."""
    with _client("export", server, key) as client:
        for path in client.export(document_id, folder):
            print(path)


@bench_app.command("encode")
def bench_encode(
    tokens: _Tokens = 1024,
    checkpoint: _Checkpoint = "default",
    all_layers: Annotated[bool, typer.Option("--all-layers", help="Adapters on all layers.")] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Rank of the adapters.", show_default="the checkpoint's")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Inner steps, the first ones.", show_default="all of the checkpoint's")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each side, after one untimed.")] = 3,
    memory_budget: Annotated[
        int | None,
        typer.Option(
            parser=_parse_bytes,
            metavar="SIZE",
            envvar="PERK_MEMORY_BUDGET",
            help="Memory for the encoding, such as 512MiB.",
            show_default="2 GiB",
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Encode a document, and fine-tune on it with peft, autograd and AdamW in the same run."""
    from benchmarks.encode import main as run

    run(
        tokens,
        checkpoint,
        as_json,
        repeats=repeats,
        all_layers=all_layers,
        rank=rank,
        steps=steps,
        memory_budget=memory_budget,
    )


@bench_app.command("ask")
def bench_ask(checkpoint: _Checkpoint = "default", as_json: _Json = False) -> None:
    """Ask one question, and eight together."""
    from benchmarks.ask import main as run

    run(checkpoint, as_json)


def main() -> None:
    """Run the command."""
    app()


@contextmanager
def _client(command: str, server: str, key: str | None) -> Iterator[Client]:
    try:
        with Client(server, key) as client:
            yield client
    except (ClientError, OSError) as error:
        _fail(command, str(error))


@contextmanager
def _store_client(command: str, key: str | None) -> Iterator[DocumentClient]:
    try:
        settings = load_settings()
        # Loads torch: no other client does.
        from service.logging import configure_logs
        from service.store_client import StoreClient

        # The bars tell what goes well.
        configure_logs(logging.WARNING)
        with StoreClient(settings, key) as client:
            yield client
    except (ClientError, SettingsError, OSError) as error:
        _fail(command, str(error))


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Whether an option stands in the command itself, and not only in the environment."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _fail(command: str, reason: str) -> NoReturn:
    print(f"perk {command}: {reason}", file=sys.stderr)
    raise typer.Exit(1)


class _Bars:
    """A bar of each file on its way, and one of all files. On standard error: the output is for programs."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
        self._bars: dict[Source, TaskID] = {}
        self._all = self._progress.add_task(f"{total} files", total=total) if total > 1 else None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, source: Source, done: float) -> None:
        """Show how far a file is, 0 to 1."""
        if source not in self._bars:
            self._bars[source] = self._progress.add_task(source.title, total=1.0)
        self._progress.update(self._bars[source], completed=done)

    def end(self, source: Source) -> None:
        """One file less to come."""
        if self._all is not None:
            self._progress.remove_task(self._bars.pop(source))
            self._progress.advance(self._all)


def _print_documents(documents: Iterable[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for document in documents:
            print(json.dumps(document, ensure_ascii=False))
        return
    table = Table("id", "title", "status", "tokens", "seconds")
    for document in documents:
        seconds = f"{document['encode']['seconds']:.1f}" if document["encode"] else ""
        row = (document["id"], document["title"] or "", document["status"], str(document["tokens"]), seconds)
        table.add_row(*map(Text, row))
    # Ids are for copying: a pipe, which has no width, must not fold them.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
