"""The application that Ray Serve runs: ``serve run deploy.ray.application:build``, or a Serve config file."""

from __future__ import annotations

from functools import partial
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig

from deploy.ray.front import create_front
from deploy.ray.options import RayOptions, Scale
from deploy.ray.replicas import Answerer, Encoder
from perk.checkpoint import load_checkpoint
from service.settings import Settings, SettingsError, load_settings

__all__ = ["ANSWERERS", "ENCODERS", "NAME", "build"]

NAME = "perk"
ENCODERS = "encoder"
ANSWERERS = "answerer"
FRONTS = "front"

# Calls that an encoder has at once; each stands for a document that waits for one of them, or is being encoded.
_ENCODES = 8
# Questions of an answerer's batch: with more on their way, another answerer is worth its start.
_ANSWERS = 16
# Longer than most encodes; a replica that goes hands its own back.
_CALM_SECONDS = 600.0
# For the last pieces to be sent.
_LAST_SECONDS = 10.0


def build(options: RayOptions) -> Any:
    """The application; its replicas read all other settings from their environment, as the service does.

    Args:
        options: how many replicas of what.

    Raises:
        SettingsError: a setting is bad, or names no Redis.
    """
    settings = load_settings()
    if settings.redis_url is None:
        raise SettingsError("PERK_REDIS_URL: got nothing, expected the Redis that all replicas share")
    common: dict[str, Any] = {
        "graceful_shutdown_timeout_s": settings.stop_grace_seconds + _LAST_SECONDS,
        "ray_actor_options": {"num_cpus": options.cpus, "num_gpus": options.gpus},
    }
    encoders = serve.deployment(
        name=ENCODERS,
        max_ongoing_requests=_ENCODES,
        autoscaling_config=_scaling(options.encoders, ongoing=_ENCODES / 2),
        **common,
    )(_DeployedEncoder)
    answerers = serve.deployment(
        name=ANSWERERS,
        max_ongoing_requests=_ANSWERS + settings.queue_limit,
        max_queued_requests=settings.queue_limit,
        autoscaling_config=_scaling(options.answerers, ongoing=_ANSWERS / 2),
        **common,
    )(_answerer(settings))
    # Ray evaluates a function itself, and nothing else that can be called.
    create = partial(
        create_front, encoders=ENCODERS, answerers=ANSWERERS, most_encodes=_ENCODES * options.encoders.most
    )
    fronts = serve.deployment(
        name=FRONTS,
        num_replicas=options.fronts,
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=settings.stop_grace_seconds + _LAST_SECONDS,
        ray_actor_options={"num_cpus": 0.1},
    )(serve.ingress(lambda: create())())
    return fronts.bind(encoders.bind(), answerers.bind())


class _DeployedEncoder(Encoder):
    async def __del__(self) -> None:
        # Ray's word for the end of a replica that is not needed any more.
        await self.stop()


def _answerer(settings: Settings) -> type[Answerer]:
    """Answerers that tell Ray of as many adapters as they hold."""
    adapter_bytes = load_checkpoint(settings.checkpoint).tensors["initial"].nbytes
    held = max(settings.memory_budget // 2 // adapter_bytes, 1)

    class MultiplexedAnswerer(Answerer):
        @serve.multiplexed(max_num_models_per_replica=held)
        async def at_hand(self, document_id: str) -> str:
            return document_id

        async def __del__(self) -> None:
            await self.stop()

    return MultiplexedAnswerer


def _scaling(scale: Scale, *, ongoing: float) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=scale.least,
        max_replicas=scale.most,
        target_ongoing_requests=ongoing,
        upscale_delay_s=10.0,
        downscale_delay_s=_CALM_SECONDS,
    )
