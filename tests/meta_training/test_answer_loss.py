"""Loss, share of exact answers and gradient are the same through merged layers as through the modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meta_training.answer_loss import AnswerLoss
from perk.base_model import load_base_model
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import LoraSettings


def test_merged_layers_and_modules_agree(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    adapted = AdaptedModel(base, LoraSettings(rank=4, first_layer=1))
    draws = torch.Generator().manual_seed(3)
    theta = 0.05 * torch.randn(1, adapted.layout.size, generator=draws)
    segments = [
        Segment(ids=tuple(torch.randint(512, (length,), generator=draws).tolist()), prefix_tokens=length - 2)
        for length in (7, 20, 9, 9, 13)
    ]
    with torch.no_grad(), adapted.bind(theta):
        for place in (1, 3):
            # Two answers are what the model would say.
            ids = list(segments[place].ids)
            for index in (-2, -1):
                states = adapted.upper_states(adapted.lower_states(torch.tensor([ids[:index]])))
                ids[index] = int((states[0, -1] @ base.head.T).argmax())
            segments[place] = replace(segments[place], ids=tuple(ids))
    merged = adapted.start_merging(torch.float32)
    merged.merge(theta)
    loss_of = AnswerLoss(adapted, token_limit=30)
    loss, exact, gradient = loss_of(theta, [segments], merged)
    expected_loss, expected_exact, expected_gradient = loss_of(theta, [segments])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert exact == pytest.approx(0.4)
    assert expected_exact == pytest.approx(0.4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
