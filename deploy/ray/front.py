"""The replicas that take requests: the service's own application, over engines elsewhere."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path

from fastapi import FastAPI
from ray import serve

from deploy.ray.encoder_calls import EncoderCalls
from deploy.ray.remote_questions import RemoteQuestions
from deploy.ray.replica_metrics import add_route
from perk.perk_model import PerkModel
from service.app import create_app
from service.engine.engine import EngineParts
from service.errors import StoreError
from service.logging import configure_logs
from service.settings import Settings, load_settings
from service.store.disk import DataDirectory

__all__ = ["create_front"]

# For an encoder to have loaded its model.
_ENCODER_SECONDS = 600.0


def create_front(*, encoders: str, answerers: str, most_encodes: int) -> FastAPI:
    """The application, inside a replica of Ray Serve.

    Args:
        encoders: name of their deployment.
        answerers: name of theirs.
        most_encodes: calls that all encoders together have at once.
    """
    configure_logs()
    settings = load_settings()
    settings = settings.model_copy(update={"data_dir": _own_folder(settings.data_dir)})
    name = serve.get_replica_context().app_name
    encoder_handle = serve.get_deployment_handle(encoders, name)
    answerer_handle = serve.get_deployment_handle(answerers, name)

    def load_outline(settings: Settings) -> PerkModel:
        fingerprint: str = encoder_handle.fingerprint.remote().result(timeout_s=_ENCODER_SECONDS)
        return PerkModel.load_outline(settings.checkpoint, fingerprint)

    replaced = EngineParts(
        recites=False,
        leases=lambda _: EncoderCalls(encoder_handle, limit=most_encodes),
        questions=partial(RemoteQuestions, answerers=answerer_handle, queue_limit=settings.queue_limit),
    )
    app = create_app(settings, load_model=load_outline, replaced=replaced)
    add_route(app, {encoders: encoder_handle, answerers: answerer_handle})
    return app


def _own_folder(data_dir: Path) -> Path:
    """The first folder that no other front on this machine has: its outbox is found again after a restart."""
    for number in count():
        folder = data_dir / f"front-{number}"
        try:
            DataDirectory(folder / "outbox").close()
        except StoreError:
            if number < 100:
                continue
            raise
        return folder
    raise AssertionError("never reached")
