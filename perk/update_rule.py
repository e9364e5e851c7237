"""The inner loop's update rule: a differentiable optimiser step with a learned step size per tensor and step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import adamw_update, rms_update
from perk.settings import InnerSettings

__all__ = ["Moments", "UpdateRule"]

Moments = tuple[Tensor, Tensor] | None


class UpdateRule:
    """AdamW as in the paper (section 3.3), or the RMS-normalised gradient, by the settings' name."""

    def __init__(self, settings: InnerSettings, sizes: Sequence[int]) -> None:
        self._settings = settings
        self._sizes = list(sizes)

    def start(self, theta: Tensor) -> Moments:
        """Optimiser state before the first step, for adapters ``[D, P]``."""
        if self._settings.rule == "rms":
            return None
        return torch.zeros_like(theta), torch.zeros_like(theta)

    def step(
        self, theta: Tensor, gradient: Tensor, moments: Moments, log_step_sizes: Tensor, index: int
    ) -> tuple[Tensor, Moments]:
        """One step.

        Args:
            theta: adapters, ``[D, P]``.
            gradient: gradients of each document's inner loss, ``[D, P]``.
            moments: state from the step before.
            log_step_sizes: natural logarithm of each tensor's step size in this step, ``[M]``.
            index: number of the step, from 0.

        Returns:
            New adapters ``[D, P]`` and new state; differentiable in all tensors.
        """
        step_sizes = log_step_sizes.exp()
        if moments is None:
            return rms_update(theta, gradient, step_sizes, self._sizes, epsilon=self._settings.epsilon), None
        return adamw_update(
            theta,
            gradient,
            moments,
            step_sizes,
            self._sizes,
            index + 1,
            betas=self._settings.betas,
            weight_decay=self._settings.weight_decay,
            epsilon=self._settings.epsilon,
        )
