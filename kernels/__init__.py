"""Operations of the inner loop. They know tensors only, and carry a document dimension D everywhere."""

from __future__ import annotations

from kernels.adapter_update import adamw_update, rms_update
from kernels.lora_linear import lora_linear, quantise_rows
from kernels.multi_adapter import RowAdapters, multi_adapter
from kernels.weighted_cross_entropy import weighted_cross_entropy

__all__ = [
    "RowAdapters",
    "adamw_update",
    "lora_linear",
    "multi_adapter",
    "quantise_rows",
    "rms_update",
    "weighted_cross_entropy",
]
