"""Learned weight of each token in the inner loss (PERK section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["TokenWeighting"]


class TokenWeighting(nn.Module):
    """Two-layer MLP from a token's last hidden state to its positive weight.

    It reads the frozen base's state, without any adapter: a token's weight is then the same in every inner step, is
    computed once a document, and cannot be lowered by the inner loop to lower the loss.
    The last layer starts at zero, where all tokens weigh the same.
    """

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, inner_size)
        self.down = nn.Linear(inner_size, 1)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, states: Tensor) -> Tensor:
        """States ``[..., H]`` to weights ``[...]``."""
        # States of different bases differ in scale by orders of magnitude; the MLP should not care.
        scaled = functional.layer_norm(states, states.shape[-1:])
        raw = self.down(functional.gelu(self.up(scaled))).squeeze(-1)
        weights: Tensor = functional.softplus(raw, beta=3.0)
        return weights

    def named_tensors(self) -> dict[str, Tensor]:
        """Its weights under stable names, for a checkpoint."""
        return {f"token_weighting.{name}": tensor.detach() for name, tensor in self.named_parameters()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the weights from a checkpoint's tensors.

        Raises:
            KeyError: a tensor is missing.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(tensors[f"token_weighting.{name}"])
