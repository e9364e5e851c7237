"""What a request finds in its application."""

from __future__ import annotations

from starlette.requests import Request

from service.engine.engine import Engine
from service.settings import Settings

__all__ = ["engine_of", "settings_of"]


def engine_of(request: Request) -> Engine:
    """The engine."""
    engine: Engine = request.app.state.engine
    return engine


def settings_of(request: Request) -> Settings:
    """The settings."""
    settings: Settings = request.app.state.settings
    return settings
