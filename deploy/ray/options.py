"""How many replicas of what, and on which machines. All else is set as for the service, in the environment."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["RayOptions", "Scale"]


class Scale(BaseModel):
    """Replicas of one kind, added and removed by the work that there is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    least: int = Field(ge=1, le=1000)
    most: int = Field(ge=1, le=1000)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.most < self.least:
            raise ValueError(f"most: got {self.most}, expected at least {self.least}, which is the least")
        return self


class RayOptions(BaseModel):
    """Arguments of the application (``args`` in a Serve config file)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoders: Scale = Scale(least=1, most=4)
    answerers: Scale = Scale(least=2, most=8)
    fronts: int = Field(1, ge=1, le=100, description="replicas that take requests; they have no model")
    cpus: float = Field(1.0, gt=0, description="processor cores of an encoder or answerer")
    gpus: float = Field(0.0, ge=0, description="GPUs of an encoder or answerer; a part of one where they share it")
