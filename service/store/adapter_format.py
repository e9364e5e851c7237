"""How an adapter is written down: exact, rounded to 16 bits, or as an 8-bit difference from its initialisation."""

from __future__ import annotations

import json
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from service.errors import StoreError
from service.store.format_name import FormatName

__all__ = ["AdapterFormat", "DamagedAdapter"]

# Elements that share a scale: 4 bytes on 64 cost less than a bit and a half each, and keep one outlier local.
_BLOCK = 64
_LEVELS = 127


class DamagedAdapter(StoreError):
    """What was read is not the adapter that was written.

    Attributes:
        reason: what does not fit, a word for the metrics.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the kept adapter is damaged: {reason}")
        self.reason = reason


class AdapterFormat:
    """Adapters ``[P]`` float32 as bytes, and back. Whatever the format written, every format is read.

    Attributes:
        name: of the format that is written.
    """

    def __init__(
        self, name: FormatName = "float32", *, size: int, fingerprint: str, initial: Tensor | None = None
    ) -> None:
        """Prepare the format.

        Args:
            name: of the format to write.
            size: P.
            fingerprint: of all that determines an adapter besides the text, written beside it.
            initial: adapter ``[P]`` that encodes begin from; only differences from it need it.

        Raises:
            ValueError: there is no such format, or it needs `initial`.
        """
        if name not in get_args(FormatName):
            raise ValueError(f"adapter format: got {name!r}, expected one of {', '.join(get_args(FormatName))}")
        if name == "int8-delta" and initial is None:
            raise ValueError("adapter format 'int8-delta' needs the adapter that encodes begin from")
        self.name = name
        self._size = size
        self._fingerprint = fingerprint
        self._initial = initial

    @property
    def bytes_per_adapter(self) -> int:
        """Size of a written adapter, but for a header of less than a kilobyte."""
        blocks = -(-self._size // _BLOCK)
        return {"float32": 4 * self._size, "bf16": 2 * self._size, "int8-delta": self._size + 4 * blocks}[self.name]

    def pack(self, adapter: Tensor) -> bytes:
        """An adapter ``[P]`` as bytes."""
        match self.name:
            case "float32":
                tensors = {"adapter": adapter}
            case "bf16":
                tensors = {"adapter": adapter.to(torch.bfloat16)}
            case "int8-delta":
                tensors = self._delta(adapter)
        metadata = {"fingerprint": self._fingerprint, "format": self.name}
        return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata)

    def unpack(self, content: bytes) -> Tensor:
        """The adapter ``[P]`` in `content`.

        Raises:
            DamagedAdapter: there is none, or another configuration's.
        """
        try:
            tensors = load(content)
            metadata = _metadata(content)
        except (SafetensorError, ValueError):
            raise DamagedAdapter("format") from None
        if metadata.get("fingerprint") != self._fingerprint:
            raise DamagedAdapter("fingerprint")
        if metadata.get("format") == "int8-delta":
            return self._from_delta(tensors)
        adapter = tensors.get("adapter")
        if adapter is None or adapter.shape != (self._size,):
            raise DamagedAdapter("shape")
        return adapter.float()

    def settle(self, adapter: Tensor) -> Tensor:
        """The adapter ``[P]`` as it will be after writing and reading, to be answered with from the first question."""
        return adapter if self.name == "float32" else self.unpack(self.pack(adapter))

    def _delta(self, adapter: Tensor) -> dict[str, Tensor]:
        assert self._initial is not None
        padding = -self._size % _BLOCK
        delta = torch.nn.functional.pad(adapter - self._initial, (0, padding)).view(-1, _BLOCK)
        scales = delta.abs().amax(dim=1) / _LEVELS
        steps = (delta / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        return {"delta": steps.clamp(-_LEVELS, _LEVELS).to(torch.int8).view(-1)[: self._size], "scales": scales}

    def _from_delta(self, tensors: dict[str, Tensor]) -> Tensor:
        delta, scales = tensors.get("delta"), tensors.get("scales")
        blocks = -(-self._size // _BLOCK)
        fits = delta is not None and scales is not None and delta.shape == (self._size,) and scales.shape == (blocks,)
        if not fits or self._initial is None:
            raise DamagedAdapter("shape")
        assert delta is not None
        assert scales is not None
        return self._initial + delta.float() * scales.repeat_interleave(_BLOCK)[: self._size]


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file, which `load` does not give."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return metadata
