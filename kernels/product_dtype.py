"""The type that a CPU multiplies the numbers of large products in.

A CPU with instructions for bfloat16 (AVX512-BF16 or AMX: AMD since Zen 4, Intel's servers since Cooper Lake) does at
least twice as many operations a second in it, and sums them in float32. What is not a product stays in float32, and so
do the adapters. ``PERK_PRODUCTS=bfloat16`` asks for it, ``auto`` does so where the CPU has the instructions.

It is not the default: oneDNN, which makes these products, keeps the code of the last 1,024 shapes, up to a gigabyte in
all, and documents have ever new ones. With fewer (``ONEDNN_PRIMITIVE_CACHE_CAPACITY``) a step takes longer.
"""

from __future__ import annotations

import os
from functools import cache

import torch

__all__ = ["product_dtype"]

_VARIABLE = "PERK_PRODUCTS"
_CHOICES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def product_dtype() -> torch.dtype:
    """float32, or what ``PERK_PRODUCTS`` says.

    Raises:
        ValueError: that is something else than ``float32``, ``bfloat16`` or ``auto``.
    """
    choice = os.environ.get(_VARIABLE, "") or "float32"
    if choice == "auto":
        return torch.bfloat16 if _has_instructions() else torch.float32
    if choice not in _CHOICES:
        raise ValueError(f"{_VARIABLE}: {choice!r} is not one of {', '.join(_CHOICES)}, auto")
    return _CHOICES[choice]


@cache
def _has_instructions() -> bool:
    # Not in torch before 2.11.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkldnn.is_available() and any(capabilities.get(name) for name in _INSTRUCTIONS)
