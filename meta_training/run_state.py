"""What a run resumes from: its parameters, its optimiser's moments and whatever else it names, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from perk.errors import InvalidInput

__all__ = ["RunState", "has_state"]

_FILE = "state.safetensors"


def has_state(folder: Path) -> bool:
    """Whether a run has saved its state in a folder."""
    return (folder / _FILE).is_file()


@dataclass(frozen=True)
class RunState:
    """State of a run.

    Attributes:
        tensors: parameters as ``parameter.<index>``, of the optimiser what it keeps of each as
            ``optimiser.<index>.<name>``, means as ``mean.<name>``, and whatever else the run needs.
        metadata: numbers and names. They stand inside the same file, so that no crash can leave the two apart.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def of(
        cls,
        parameters: Sequence[Tensor],
        optimiser: torch.optim.Optimizer,
        *,
        mean: Mapping[str, Tensor],
        metadata: Mapping[str, str],
    ) -> RunState:
        """A copy of what these are at present."""
        tensors = {f"parameter.{i}": parameter.detach().clone() for i, parameter in enumerate(parameters)}
        for index, parameter in enumerate(parameters):
            for name, value in optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).clone()
        tensors |= {f"mean.{name}": tensor.clone() for name, tensor in mean.items()}
        return cls(tensors, dict(metadata))

    @classmethod
    def read(cls, folder: Path) -> RunState:
        """The state that a run has saved in its folder.

        Raises:
            InvalidInput: there is none, or it is damaged.
        """
        path = folder / _FILE
        if not has_state(folder):
            raise InvalidInput("resume", str(path), "a state saved by an earlier run")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
            return cls(load_file(path), metadata)
        except SafetensorError as error:
            raise InvalidInput("resume", f"a damaged {_FILE} ({error})", "a state saved by an earlier run") from error

    def write(self, folder: Path) -> None:
        """Put it in the place of the one before, at once."""
        scratch = folder / f".{_FILE}.new"
        save_file(self.tensors, scratch, metadata=self.metadata)
        scratch.replace(folder / _FILE)

    def restore_parameters(self, parameters: Sequence[Tensor]) -> None:
        """Take over the parameters.

        Raises:
            InvalidInput: they are not of these shapes.
        """
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                saved = self.tensors.get(f"parameter.{index}")
                if saved is None or saved.shape != parameter.shape:
                    raise InvalidInput("state", f"no parameter of shape {tuple(parameter.shape)}", "the same settings")
                parameter.copy_(saved)

    def restore_mean(self, mean: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
        """Take over means; what has none yet begins one with its present value."""
        for name, tensor in mean.items():
            tensor.copy_(self.tensors.get(f"mean.{name}", present[name].detach()))

    def restore_optimiser(self, parameters: Sequence[Tensor], optimiser: torch.optim.Optimizer) -> None:
        """Take over what AdamW keeps of the parameters."""
        for index, parameter in enumerate(parameters):
            prefix = f"optimiser.{index}."
            state = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
            if state:
                # It counts its steps on the CPU; its moments lie beside the parameter.
                optimiser.state[parameter] = {
                    name: t if name == "step" else t.to(parameter.device) for name, t in state.items()
                }
