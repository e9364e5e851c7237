"""Which implementation of an operation runs: Triton for tensors on a CUDA device, else torch.

Every launch of a Triton kernel goes through `launch`, so that `kernels.aot` compiles exactly what would run: inside
`compiling` the same code is handed tensors on the meta device, and its kernels are compiled instead of launched.

Triton is imported by the modules of `kernels.triton_ops` only, and those only where a kernel is about to be launched:
a machine without Triton, or without a GPU, never notices it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Compiled", "Compiling", "capability", "compiling", "is_differentiated", "is_forced", "launch", "use_triton"]

_VARIABLE = "PERK_KERNELS"


class Kernel(Protocol):
    """What `triton.jit` makes."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any: ...

    def warmup(self, *args: Any, grid: tuple[int, ...], **options: Any) -> Any: ...


@dataclass(frozen=True)
class Compiled:
    """A kernel as Triton compiled it.

    Attributes:
        name: of the kernel's function.
        options: its constants and compiler options.
        binary: Triton's `CompiledKernel`.
    """

    name: str
    options: dict[str, Any]
    binary: Any


@dataclass
class Compiling:
    """The target that is compiled for, and what has been compiled so far."""

    capability: int
    kernels: list[Compiled] = field(default_factory=list)


_compiling: ContextVar[Compiling | None] = ContextVar("_compiling", default=None)


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on `tensor` runs in Triton; ``PERK_KERNELS=torch`` or ``triton`` overrides the device.

    Raises:
        ValueError: ``PERK_KERNELS`` has another value.
        RuntimeError: it asks for Triton where Triton cannot run.
    """
    if _compiling.get() is not None:
        return True
    choice = os.environ.get(_VARIABLE, "")
    if choice == "torch":
        return False
    if choice == "":
        return tensor.is_cuda and _has_triton()
    if choice != "triton":
        raise ValueError(f"{_VARIABLE}: {choice!r} is not one of torch, triton")
    if not _has_triton():
        raise RuntimeError(f"{_VARIABLE}=triton: the package triton is not installed")
    if not tensor.is_cuda and not _interpreted():
        raise RuntimeError(
            f"{_VARIABLE}=triton: tensors are on {tensor.device}, not on a CUDA device; set TRITON_INTERPRET=1 before "
            "the start to run the kernels in Triton's interpreter"
        )
    return True


def is_forced() -> bool:
    """Whether Triton was asked for by name, or is being compiled for: then nothing else may run in its place."""
    return _compiling.get() is not None or os.environ.get(_VARIABLE) == "triton"


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether autograd will ask for the derivative of an operation on `tensors`."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def launch(kernel: Kernel, grid: Sequence[int], *args: Any, **options: Any) -> None:
    """Run `kernel` on every program of `grid`, or compile it only, inside `compiling`; an empty grid does nothing."""
    # Said outright, because Triton's default is about to change.
    options["enable_fp_fusion"] = True
    state = _compiling.get()
    if state is not None:
        binary = kernel.warmup(*args, grid=tuple(grid), **options)
        state.kernels.append(Compiled(binary.metadata.name, options, binary))
    elif all(grid):
        kernel[tuple(grid)](*args, **options)


def capability(device: torch.device) -> int:
    """Compute capability that a launch on `device` is for, such as 90; in the interpreter, that of any GPU: 80."""
    state = _compiling.get()
    if state is not None:
        return state.capability
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@contextmanager
def compiling(target: int) -> Iterator[Compiling]:
    """Compile the kernels that are launched inside the block for compute capability `target`, and run none.

    Triton's active driver must answer for that target; `kernels.aot` sees to it.
    """
    state = Compiling(target)
    token = _compiling.set(state)
    try:
        yield state
    finally:
        _compiling.reset(token)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on"}
