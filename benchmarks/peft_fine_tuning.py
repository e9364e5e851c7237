"""The same inner loop as a user of `peft` would write it: its model, autograd, `torch.optim.AdamW`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

from perk.base_model import load_base_model
from perk.batches import MicroBatch
from perk.perk_model import PerkModel

__all__ = ["PeftFineTuning"]

_IGNORED = -100


class PeftFineTuning:
    """Fine-tunes a PEFT adapter on one document's micro-batches.

    It starts from the checkpoint's initialisation, written as a PEFT folder: rank, scale, targets and layers are the
    same by construction. The loss is the mean NLL of the same tokens, over the whole vocabulary, unweighted.
    """

    def __init__(self, model: PerkModel, plan: Sequence[Sequence[MicroBatch]]) -> None:
        """Load a base of its own, untouched by our adapters.

        Args:
            model: gives the adapter and the settings of the inner loop.
            plan: micro-batches of one document that each step reads.
        """
        self._settings = model.settings.inner
        base = load_base_model(model.settings.base.source, device="cpu")
        with tempfile.TemporaryDirectory(prefix="perk-bench-") as folder:
            model.export_peft(model.checkpoint.tensors["initial"], Path(folder))
            self._model = PeftModel.from_pretrained(base.model, folder, is_trainable=True)
        self._model.eval()  # as in our encoding: whatever dropout the base has is off
        self._parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._initial = [parameter.detach().clone() for parameter in self._parameters]
        self._plan = [[(batch.ids, _labels(batch)) for batch in batches] for batches in plan]
        self._loss_tokens = sum(int((labels != _IGNORED).sum()) for _, labels in self._plan[0])

    @property
    def trainable(self) -> int:
        """Number of elements that are trained."""
        return sum(parameter.numel() for parameter in self._parameters)

    def run(self) -> list[float]:
        """All steps from the start; returns the mean NLL a token entering each of them."""
        with torch.no_grad():
            for parameter, initial in zip(self._parameters, self._initial, strict=True):
                parameter.copy_(initial)
        optimizer = torch.optim.AdamW(
            self._parameters,
            lr=self._settings.step_size,
            betas=self._settings.betas,
            weight_decay=self._settings.weight_decay,
        )
        losses = []
        for batches in self._plan:
            optimizer.zero_grad()
            total = 0.0
            for ids, labels in batches:
                logits = self._model(input_ids=ids, use_cache=False).logits
                nll = functional.cross_entropy(
                    logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="sum"
                )
                loss = nll / self._loss_tokens
                loss.backward()
                total += loss.item()
            optimizer.step()
            losses.append(total)
        return losses


def _labels(batch: MicroBatch) -> Tensor:
    """Id that each position predicts, ``[S, T]``, or -100 where it carries no loss."""
    labels = torch.full(batch.ids.shape, _IGNORED)
    carries_loss = batch.shares[0] > 0
    labels.view(-1)[batch.positions[0][carries_loss]] = batch.targets[0][carries_loss]
    return labels
