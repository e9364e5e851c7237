"""The type that a CPU multiplies the numbers of large products in.

A CPU with instructions for bfloat16 (AVX512-BF16 or AMX: AMD since Zen 4, Intel's servers since Cooper Lake) does at
least twice as many operations a second in it, and sums them in float32. What is not a product stays in float32, and so
do the adapters. ``PERK_PRODUCTS=float32`` keeps products in float32 too, ``bfloat16`` narrows them on any CPU.
"""

from __future__ import annotations

import os
from functools import cache

import torch

__all__ = ["padded_rows", "product_dtype"]

_VARIABLE = "PERK_PRODUCTS"
_CHOICES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")

# oneDNN, which makes products in bfloat16, writes code for each shape, a megabyte or so, and keeps that of the last
# 1,024: a gigabyte, where documents have ever new ones. 64 rows more or less are 9 % of a micro-batch's time at most.
_ROWS = 64


def product_dtype() -> torch.dtype:
    """bfloat16 where the CPU has instructions for it, else float32; or what ``PERK_PRODUCTS`` says.

    Raises:
        ValueError: that is something else than ``float32``, ``bfloat16`` or ``auto``.
    """
    choice = os.environ.get(_VARIABLE, "") or "auto"
    if choice == "auto":
        return torch.bfloat16 if _has_instructions() else torch.float32
    if choice not in _CHOICES:
        raise ValueError(f"{_VARIABLE}: {choice!r} is not one of {', '.join(_CHOICES)}, auto")
    return _CHOICES[choice]


def padded_rows(rows: int, dtype: torch.dtype) -> int:
    """Rows that the inputs of products in that type are filled up to, so that there are few shapes."""
    return -(-rows // _ROWS) * _ROWS if dtype == torch.bfloat16 else rows


@cache
def _has_instructions() -> bool:
    # Not in torch before 2.11.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkldnn.is_available() and any(capabilities.get(name) for name in _INSTRUCTIONS)
