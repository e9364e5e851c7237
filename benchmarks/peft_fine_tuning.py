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
from perk.settings import InnerSettings

__all__ = ["PeftFineTuning"]

_IGNORED = -100


class PeftFineTuning:
    """Fine-tunes a PEFT adapter on one document's micro-batches, where its model is.

    The loss is the mean NLL of their tokens, over the whole vocabulary, unweighted.
    """

    def __init__(self, model: PeftModel, inner: InnerSettings, batches: Sequence[MicroBatch]) -> None:
        """Remember where the adapter starts.

        Args:
            model: PEFT's.
            inner: number of steps; step size, betas and weight decay of AdamW.
            batches: micro-batches of one document; each step reads them all.
        """
        self._settings = inner
        self._model = model
        self._model.eval()  # as in our encoding: whatever dropout the base has is off
        self._parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._initial = [parameter.detach().clone() for parameter in self._parameters]
        device = self._parameters[0].device
        self._batches = [(batch.ids.to(device), _labels(batch).to(device)) for batch in batches]
        self._loss_tokens = sum(int((labels != _IGNORED).sum()) for _, labels in self._batches)

    @classmethod
    def of(cls, model: PerkModel, batches: Sequence[MicroBatch], dtype: torch.dtype = torch.float32) -> PeftFineTuning:
        """From a checkpoint's initialisation, on a base of its own, untouched by our adapters, on the CPU.

        The adapter comes as a PEFT folder: rank, scale, targets and layers are the same by construction. PEFT loads it
        in float32, whatever `dtype` the base computes in.
        """
        base = load_base_model(model.settings.base.source, device="cpu", dtype=dtype)
        with tempfile.TemporaryDirectory(prefix="perk-bench-") as folder:
            model.export_peft(model.checkpoint.tensors["initial"], Path(folder))
            adapted = PeftModel.from_pretrained(base.model, folder, is_trainable=True)
        return cls(adapted, model.settings.inner, batches)

    @property
    def trainable(self) -> int:
        """Number of elements that are trained."""
        return sum(parameter.numel() for parameter in self._parameters)

    def run(self, steps: int | None = None) -> list[float]:
        """The first so many steps, or all, from the start; returns the mean NLL a token entering each of them."""
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
        for _ in range(self._settings.steps if steps is None else min(steps, self._settings.steps)):
            optimizer.zero_grad()
            total = torch.zeros((), device=self._parameters[0].device)
            for ids, labels in self._batches:
                logits = self._model(input_ids=ids, use_cache=False).logits.float()
                nll = functional.cross_entropy(
                    logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="sum"
                )
                loss = nll / self._loss_tokens
                loss.backward()
                total += loss.detach()
            optimizer.step()
            losses.append(total)
        # Read at the end: on a GPU, reading waits.
        return [float(loss) for loss in losses]


def _labels(batch: MicroBatch) -> Tensor:
    """Id that each position predicts, ``[S, T]``, or -100 where it carries no loss."""
    labels = torch.full(batch.ids.shape, _IGNORED)
    carries_loss = batch.shares[0] > 0
    labels.view(-1)[batch.positions[0][carries_loss]] = batch.targets[0][carries_loss]
    return labels
