"""Captured gradients are those of the passes that they were captured from, on a CUDA device (`make test-cuda`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from perk.base_model import load_base_model
from perk.gradient_graphs import GradientGraphs
from perk.inner_loss import InnerLoss
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import LoraSettings
from perk.token_weights import TokenWeighting

# Elsewhere Triton interprets its kernels, which a graph cannot capture.
pytestmark = pytest.mark.skipif("PERK_TEST_DEVICE" not in os.environ, reason="needs a CUDA device: make test-cuda")


def _segments(seed: int) -> list[Segment]:
    """Five of one length, so that micro-batches of two have one shape but for the last."""
    rows = torch.randint(2, 500, (5, 24), generator=torch.Generator().manual_seed(seed)).tolist()
    return [Segment(tuple(row), prefix_tokens=3) for row in rows]


@pytest.mark.parametrize("candidates", [None, 100])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize(("documents", "first_layer"), [(1, 0), (3, 2)])
def test_every_replay_adds_what_the_pass_itself_would(
    documents: int,
    first_layer: int,
    kernels: str,
    candidates: int | None,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PERK_KERNELS", kernels)
    base = load_base_model(str(tiny_llama), device="cuda", dtype=torch.float32)
    adapted = AdaptedModel(base, LoraSettings(rank=4, first_layer=first_layer))
    weighting = TokenWeighting(base.head.shape[1], 8).to("cuda")
    inner = InnerLoss(
        adapted,
        [_segments(seed) for seed in range(documents)],
        weighting=weighting,
        candidates=candidates,
        token_limit=48 * documents,
    )
    prepared = [inner.prepare(batch) for batch in inner.batches]
    weights = [inner.weights(batch) for batch in prepared]
    theta = torch.zeros(documents, adapted.layout.size, device="cuda")
    graphs = GradientGraphs()
    for step in range(4):
        theta = 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(step)).cuda()
        gradient, expected = torch.ones_like(theta), torch.ones_like(theta)
        for batch, weight in zip(prepared, weights, strict=True):
            loss = graphs.add_gradient(inner, theta, batch, weight, gradient)
            torch.testing.assert_close(loss, inner.add_gradient(theta, batch, weight, expected))
        torch.testing.assert_close(gradient, expected)
    assert len(inner.batches) == 3
