"""One optimiser step over the flat adapter buffers of D documents, with a step size per tensor.

AdamW (arXiv 1711.05101) with moments m, v and bias correction at step k (from 1):
    m ← β1 m + (1 − β1) g      v ← β2 v + (1 − β2) g²
    θ ← θ − η (m̂ / sqrt(v̂ + ε²) + λ θ)
RMS-normalised gradient descent: θ ← θ − η g / sqrt(mean(g²) + ε²), the mean taken over each tensor of each document.

Where no derivative is asked for, CUDA tensors go through one launch of a Triton kernel, two for the RMS rule
(`kernels.triton_ops.adapter_update`); meta-training, which differentiates the step, through the formulas below.

ε² stands under the root so that the step has a derivative where a gradient is exactly zero (A's gradient while B = 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kernels.dispatch import is_differentiated, use_triton

__all__ = ["adamw_update", "rms_update"]


def adamw_update(
    theta: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    step_sizes: Tensor,
    sizes: Sequence[int],
    step: int,
    *,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """AdamW on every document's buffer, differentiable in all tensors.

    Args:
        theta: adapters, ``[D, P]``.
        gradient: their gradients, ``[D, P]``.
        moments: first and second moment, each ``[D, P]``.
        step_sizes: one step size per tensor, ``[M]``.
        sizes: number of elements of each of the M tensors; they add up to P.
        step: number of this step, from 1.
        betas: decay of the two moments.
        weight_decay: decoupled decay λ.
        epsilon: floor of the denominator.

    Returns:
        New adapters ``[D, P]`` and new moments.

    Raises:
        ValueError: the sizes do not add up to P.
    """
    if use_triton(theta) and not is_differentiated(theta, gradient, *moments, step_sizes):
        # Triton is imported where it runs, and nowhere else.
        from kernels.triton_ops import adapter_update as triton_adapter_update

        return triton_adapter_update.adamw_update(
            theta,
            gradient,
            moments,
            step_sizes,
            sizes,
            step,
            betas=betas,
            weight_decay=weight_decay,
            epsilon=epsilon,
        )
    first = torch.lerp(gradient, moments[0], betas[0])
    second = torch.lerp(gradient.square(), moments[1], betas[1])
    corrected = first / (1 - betas[0] ** step)
    denominator = (second / (1 - betas[1] ** step) + epsilon**2).sqrt()
    tensors = _Tensors.of(sizes, theta)
    move = tensors.cut(corrected / denominator + weight_decay * theta)
    return (tensors.cut(theta) - tensors.spread(step_sizes) * move).flatten(-2), (first, second)


def rms_update(theta: Tensor, gradient: Tensor, step_sizes: Tensor, sizes: Sequence[int], *, epsilon: float) -> Tensor:
    """Gradient descent with each tensor's gradient divided by its root mean square.

    Args:
        theta: adapters, ``[D, P]``.
        gradient: their gradients, ``[D, P]``.
        step_sizes: one step size per tensor, ``[M]``.
        sizes: number of elements of each of the M tensors; they add up to P.
        epsilon: floor of the root mean square.

    Returns:
        New adapters, ``[D, P]``; differentiable in all tensors.

    Raises:
        ValueError: the sizes do not add up to P.
    """
    if use_triton(theta) and not is_differentiated(theta, gradient, step_sizes):
        # Triton is imported where it runs, and nowhere else.
        from kernels.triton_ops import adapter_update as triton_adapter_update

        return triton_adapter_update.rms_update(theta, gradient, step_sizes, sizes, epsilon=epsilon)
    tensors = _Tensors.of(sizes, theta)
    parts = tensors.cut(gradient)
    # The norm makes no squares in memory, but has no second derivative where a gradient is zero.
    differentiated = is_differentiated(theta, gradient, step_sizes)
    squares = parts.square().sum(-1) if differentiated else torch.linalg.vector_norm(parts, dim=-1).square_()
    factor = step_sizes * (tensors.sums(squares) / theta.new_tensor(sizes) + epsilon**2).rsqrt()
    return torch.addcmul(tensors.cut(theta), tensors.spread(factor), parts, value=-1).flatten(-2)


@dataclass(frozen=True)
class _Tensors:
    """Which tensor each part of a buffer belongs to, the parts as long as every tensor is a multiple of.

    With it, whatever goes by tensor takes a few operations on the whole buffer instead of a few for each of hundreds of
    tensors, which a GPU would spend more time starting than running.

    Attributes:
        length: elements of a part.
        owners: 1 where a part belongs to a tensor, else 0, ``[parts, M]``; in float64, as products of float32 may be
            rounded to TF32.
    """

    length: int
    owners: Tensor

    @classmethod
    def of(cls, sizes: Sequence[int], buffer: Tensor) -> _Tensors:
        if sum(sizes) != buffer.shape[-1]:
            raise ValueError(f"sizes: add up to {sum(sizes)}, and theta has {buffer.shape[-1]} elements")
        length = math.gcd(*sizes)
        counts = torch.tensor([size // length for size in sizes])
        numbers = torch.arange(len(sizes)).repeat_interleave(counts)
        return cls(length, one_hot(numbers, len(sizes)).to(buffer.device, torch.float64))

    def cut(self, buffer: Tensor) -> Tensor:
        """``[..., P]`` as ``[..., parts, length]``."""
        parts: Tensor = buffer.unflatten(-1, (-1, self.length))
        return parts

    def sums(self, values: Tensor) -> Tensor:
        """Sums by tensor ``[..., M]`` of one value a part, ``[..., parts]``."""
        return (values.double() @ self.owners).to(values.dtype)

    def spread(self, values: Tensor) -> Tensor:
        """One value a tensor, ``[..., M]``, for each of its parts, ``[..., parts, 1]``."""
        return (values.double() @ self.owners.T).to(values.dtype)[..., None]
