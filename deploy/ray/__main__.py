"""``python -m deploy.ray``: the service on Ray, on this machine or the cluster that it belongs to."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Annotated

import ray
import typer
from pydantic import ValidationError
from ray import serve

from deploy.ray.application import NAME, build
from deploy.ray.options import RayOptions, Scale
from perk.errors import PerkError
from service.settings import SettingsError

_Count = typer.Option(min=1)


def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    encoders: Annotated[int, typer.Option(min=1, help="Least encoders.")] = 1,
    most_encoders: Annotated[int, typer.Option(min=1, help="Most encoders.")] = 2,
    answerers: Annotated[int, typer.Option(min=1, help="Least answerers.")] = 2,
    most_answerers: Annotated[int, typer.Option(min=1, help="Most answerers.")] = 4,
    cpus: Annotated[float, typer.Option(min=0.01, help="Processor cores of each.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each, or the part of one.")] = 0.0,
    address: Annotated[str | None, typer.Option(envvar="RAY_ADDRESS", help="A cluster; unset: one here.")] = None,
) -> None:
    """Run the service on Ray until it is told to stop. Settings are those of the service; PERK_REDIS_URL is needed."""
    try:
        options = RayOptions(
            encoders=Scale(least=encoders, most=most_encoders),
            answerers=Scale(least=answerers, most=most_answerers),
            cpus=cpus,
            gpus=gpus,
        )
        application = build(options)
    except (SettingsError, PerkError, ValidationError) as error:
        print(f"python -m deploy.ray: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    # A cluster that is there already is not for us to configure.
    ray.init(address=address) if address else ray.init(include_dashboard=False)
    stopped = threading.Event()
    # After Ray's own, which would end the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(application, name=NAME)
        print(f"listening on http://{host}:{port}", file=sys.stderr, flush=True)
        stopped.wait()
        serve.delete(NAME)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
