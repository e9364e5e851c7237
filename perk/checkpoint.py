"""What meta-training ships: initialisation, step sizes and token weighting, with the settings that fix their meaning.

A checkpoint is a folder: ``perk.safetensors`` (tensors) and ``perk.json`` (`PerkSettings`).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from perk.adapter_layout import AdapterLayout
from perk.base_model import BaseModel
from perk.errors import BaseMismatch, CheckpointError
from perk.lora import AdaptedModel
from perk.readers import READERS
from perk.settings import PerkSettings
from perk.token_weights import TokenWeighting

__all__ = ["Checkpoint", "load_checkpoint", "new_checkpoint"]

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"

_TENSORS = "perk.safetensors"
_SETTINGS = "perk.json"


@dataclass(frozen=True)
class Checkpoint:
    """Meta-learned parameters with their settings.

    Attributes:
        name: for people.
        settings: base, adapter, inner loop, segmenting, templates.
        tensors: ``initial`` ``[P]``, ``log_step_sizes`` ``[N, M]``, ``token_weighting.*`` where it is on, and
            ``reader`` and ``part_reader`` ``[P]`` where they were learned (`perk.readers`).
    """

    name: str
    settings: PerkSettings
    tensors: dict[str, Tensor]

    @property
    def fingerprint(self) -> str:
        """Hex digest over the settings and every tensor's name, type, shape and bytes."""
        digest = hashlib.sha256(self.settings.model_dump_json().encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, directory: Path) -> None:
        """Write the folder; each file appears whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        scratch = directory / f".{_TENSORS}.new"
        save_file(tensors, scratch, metadata={"format": "perk"})
        scratch.replace(directory / _TENSORS)
        scratch = directory / f".{_SETTINGS}.new"
        scratch.write_text(json.dumps(self.settings.model_dump(mode="json"), indent=2) + "\n")
        scratch.replace(directory / _SETTINGS)

    def require_base(self, base: BaseModel) -> None:
        """Check that this checkpoint was trained on `base`.

        Raises:
            BaseMismatch: it was trained on other weights.
        """
        expected = self.settings.base.fingerprint
        if expected != base.fingerprint:
            raise BaseMismatch(
                f"checkpoint {self.name!r} belongs to base {self.settings.base.source!r} with fingerprint "
                f"{expected[:16]}, but {base.name!r} has fingerprint {base.fingerprint[:16]}"
            )

    def require_layout(self, layout: AdapterLayout) -> None:
        """Check every tensor's shape against the adapter's layout.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or holds NaN or infinity.
        """
        shapes: dict[str, tuple[int, ...]] = {
            "initial": (layout.size,),
            "log_step_sizes": (self.settings.inner.steps, len(layout.shapes)),
        }
        shapes |= {name: shapes["initial"] for name in READERS if name in self.tensors}
        for name, shape in shapes.items():
            found = self.tensors.get(name)
            if found is None or found.shape != shape:
                got = "nothing" if found is None else f"shape {tuple(found.shape)}"
                raise CheckpointError(f"checkpoint {self.name!r}: tensor {name!r} has {got}, expected shape {shape}")
        for name, tensor in self.tensors.items():
            if not tensor.isfinite().all():
                raise CheckpointError(f"checkpoint {self.name!r}: tensor {name!r} holds values that are not finite")

    def token_weighting(self, hidden_size: int) -> TokenWeighting | None:
        """The learned weighting of tokens whose states have `hidden_size`, or None where it is off.

        Raises:
            CheckpointError: one of its tensors is missing or has another shape.
        """
        if not self.settings.inner.token_weighting:
            return None
        weighting = TokenWeighting(hidden_size, self.settings.inner.weighting_hidden)
        try:
            weighting.load_tensors(self.tensors)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint {self.name!r}: token weighting: {error}") from error
        return weighting


def load_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Read a checkpoint folder; a bare name such as ``default`` is one that the project ships.

    Raises:
        CheckpointError: the folder is missing, damaged, or of an unknown format.
    """
    path = Path(name_or_path)
    if not path.is_dir() and (SHIPPED / path).is_dir():
        path = SHIPPED / path
    try:
        settings = PerkSettings.model_validate_json((path / _SETTINGS).read_bytes())
        tensors = load_file(path / _TENSORS)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {str(name_or_path)!r}: cannot read {error.filename or path / _TENSORS}"
        ) from error
    except ValidationError as error:
        raise CheckpointError(f"checkpoint {str(name_or_path)!r}: {_SETTINGS} is not valid: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {str(name_or_path)!r}: {_TENSORS} is damaged: {error}") from error
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    return Checkpoint(name=path.name, settings=settings, tensors=tensors)


def new_checkpoint(adapted: AdaptedModel, settings: PerkSettings, *, seed: int, name: str = "new") -> Checkpoint:
    """A checkpoint as it is before meta-training: an adapter that changes nothing, equal step sizes and weights."""
    generator = torch.Generator().manual_seed(seed)
    base = adapted.base
    bound = settings.model_copy(update={"base": settings.base.model_copy(update={"fingerprint": base.fingerprint})})
    tensors = {
        "initial": adapted.layout.initialise(generator),
        "log_step_sizes": torch.full(
            (settings.inner.steps, len(adapted.layout.shapes)), math.log(settings.inner.step_size)
        ),
    }
    if settings.inner.token_weighting:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weighting = TokenWeighting(base.head.shape[1], settings.inner.weighting_hidden)
        tensors |= weighting.named_tensors()
    return Checkpoint(name=name, settings=bound, tensors=tensors)
