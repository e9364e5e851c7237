"""Decoding rows on a CPU is what the base's modules do with each of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perk.base_model import load_base_model
from perk.lora import AdaptedModel
from perk.row_cache import RowCache, RowCaches
from perk.settings import LoraSettings

# Of three rows: what each reads by itself, and the two tokens that all of them read then, one after the other.
ALONE = [[2, 9, 4, 100, 37], [3], [8, 8, 1]]
TOGETHER = [[11, 12], [300, 7], [45, 45]]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"], indirect=True)
@pytest.mark.parametrize(
    "lora",
    [
        LoraSettings(rank=3),
        LoraSettings(rank=5, first_layer=2),
        LoraSettings(rank=3, first_layer=1, targets=("k_proj", "up_proj", "down_proj")),
        None,
    ],
    ids=["all layers", "upper layers", "some maps", "no adapters"],
)
def test_logits_are_those_of_the_modules(
    family: Path, lora: LoraSettings | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = AdaptedModel(load_base_model(str(family), device="cpu"), lora or LoraSettings())
    exact = AdaptedModel(load_base_model(str(family), device="cpu", dtype=torch.float64), lora or LoraSettings())
    theta: Tensor | None = None
    if lora is not None:
        theta = 0.3 * torch.randn(3, adapted.layout.size, generator=torch.Generator().manual_seed(0))
    expected = []
    for row, ids in enumerate(ALONE):
        with torch.no_grad(), exact.bind(None if theta is None else theta[row : row + 1].double()):
            expected.append(exact.base.model(torch.tensor([ids + TOGETHER[row]])).logits[0, len(ids) - 1 :])

    # Whatever the modules would do is not looked at.
    monkeypatch.setattr(adapted.base.backbone, "forward", None)
    caches = [RowCache() for _ in ALONE]
    adapters = [None] * 3 if theta is None else list(theta)
    found = [
        [_read(adapted, [ids], [cache], [adapter])[0]]
        for ids, cache, adapter in zip(ALONE, caches, adapters, strict=True)
    ]
    for step in range(2):
        together = _read(adapted, [[ids[step]] for ids in TOGETHER], caches, adapters)
        for logits, own in zip(found, together, strict=True):
            logits.append(own)

    torch.testing.assert_close(
        torch.stack([torch.cat(row) for row in found]).double(), torch.stack(expected), rtol=1e-4, atol=1e-4
    )


def _read(
    adapted: AdaptedModel, ids: list[list[int]], caches: list[RowCache], adapters: Sequence[Tensor | None]
) -> Tensor:
    """Logits ``[R, 1, V]`` behind the tokens of R rows."""
    with torch.inference_mode():
        return adapted.decode(torch.tensor(ids), RowCaches(caches), adapters, adapted.start_decoding(), last=1)
