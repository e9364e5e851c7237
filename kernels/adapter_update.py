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

from collections.abc import Sequence

import torch
from torch import Tensor

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
    rate = _per_element(step_sizes, sizes)
    return theta - rate * (corrected / denominator + weight_decay * theta), (first, second)


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
    """
    if use_triton(theta) and not is_differentiated(theta, gradient, step_sizes):
        # Triton is imported where it runs, and nowhere else.
        from kernels.triton_ops import adapter_update as triton_adapter_update

        return triton_adapter_update.rms_update(theta, gradient, step_sizes, sizes, epsilon=epsilon)
    mean_square = torch.stack([part.square().mean(-1) for part in gradient.split(list(sizes), dim=-1)], dim=-1)
    factor = step_sizes * (mean_square + epsilon**2).rsqrt()
    return theta - _per_element(factor, sizes) * gradient


def _per_element(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Repeat one value per tensor, ``[..., M]``, over the tensor's elements, ``[..., P]``."""
    parts = [value.expand(*value.shape[:-1], size) for value, size in zip(values.split(1, -1), sizes, strict=True)]
    return torch.cat(parts, dim=-1)
