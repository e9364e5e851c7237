"""Number formats of the kernels: what they take, what they add in, how they multiply."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["accumulator", "check_dtype", "factor", "precision", "sum_dtype"]

# float64 is here for proofs: the derivatives are checked in it, by the very code that runs in the others.
_TRITON = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Refuse a dtype that the kernels do not compute in.

    Raises:
        ValueError: it is none of bfloat16, float16, float32, float64.
    """
    if dtype not in _TRITON:
        raise ValueError(f"{name}: dtype {dtype} is not one of {', '.join(str(known) for known in _TRITON)}")


def accumulator(dtype: torch.dtype) -> Any:
    """Triton's dtype for sums of products of `dtype`."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """torch's dtype for sums of products of `dtype` that one kernel leaves to another."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def factor(dtype: torch.dtype) -> Any:
    """Triton's dtype for the factors of a product, once they are rounded to `dtype`.

    The interpreter multiplies bfloat16 as the integers that it keeps them in; float32 holds the same values.
    """
    if dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return tl.float32
    return _TRITON[dtype]


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of a product: float32 runs on the tensor cores as three products of TF32, to about 2⁻²¹."""
    return "tf32x3" if dtype == torch.float32 else "ieee"
