"""The processes of a run: one, or as many as ``torchrun`` or ``accelerate launch`` started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Processes", "join_processes"]


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        count: how many there are.
        index: of this one, from 0.
        device: where this one computes, as `load_base_model` takes it.
    """

    count: int = 1
    index: int = 0
    device: str = "auto"

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.index == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over all processes, the same in each; every process must call it."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce  # type: ignore[import-untyped]

        summed = reduce(tensor, "sum")
        assert isinstance(summed, Tensor)
        return summed

    def any(self, happened: bool) -> bool:
        """Whether it happened in any process, the same in each; every process must call it."""
        if self.count == 1:
            return happened
        return bool(self.total(torch.tensor(int(happened), device=self.device)) > 0)


def join_processes() -> Processes:
    """Meet the processes that the launcher started: NCCL on GPUs, gloo on CPUs; alone where none did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    # Takes seconds to import, and one process needs nothing of it.
    from accelerate import PartialState  # type: ignore[import-untyped]

    # It meets over gloo only where it is told that there is no GPU.
    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.num_processes, state.process_index, str(state.device))
