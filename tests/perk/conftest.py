"""Models of the method over the tiny bases, and small documents for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perk import PerkModel
from perk.base_model import load_base_model
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import LoraSettings
from perk.token_weights import TokenWeighting
from tests.perk.encoding_setup import STEPS, Setup


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", "tiny_qwen2"])
def family(request: pytest.FixtureRequest) -> Path:
    """Folder of a tiny base of each supported family in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def make_adapter() -> Callable[[PerkModel, int], Tensor]:
    """Makes a random adapter of a model from a seed: one strong enough to change most answers."""

    def make(model: PerkModel, seed: int) -> Tensor:
        return 0.3 * torch.randn(model.adapter_size, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def register() -> str:
    """A document of two records and a sentence."""
    return (
        "Student <3109998>, Name: Ada Young, Year: Senior, School: School of Engineering, Major: Physics, Grade: 72\n"
        "Student <4210671>, Name: Tom Reed, Year: Junior, School: School of Science, Major: Biology, Grade: 85\n"
        "The train to the north leaves at seven in the morning."
    )


@pytest.fixture(scope="module")
def setup(tiny_gpt2: Path) -> Setup:
    generator = torch.Generator().manual_seed(0)
    base = load_base_model(str(tiny_gpt2), device="cpu", dtype=torch.float64)
    adapted = AdaptedModel(base, LoraSettings(rank=2, alpha=2, first_layer=2))
    weighting = TokenWeighting(base.head.shape[1], 8).double().requires_grad_(False)
    for parameter in weighting.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    tensors = len(adapted.layout.shapes)
    return Setup(
        adapted=adapted,
        weighting=weighting,
        initial=0.2 * torch.randn(adapted.layout.size, generator=generator).double(),
        log_step_sizes=math.log(0.02) + 0.3 * torch.randn(STEPS, tensors, generator=generator).double(),
    )


@pytest.fixture(scope="module")
def documents() -> list[list[Segment]]:
    """A long, a short and a middling document, their segments of many lengths."""
    generator = torch.Generator().manual_seed(1)

    def segment(length: int) -> Segment:
        return Segment(tuple(torch.randint(2, 512, (length,), generator=generator).tolist()), prefix_tokens=2)

    return [[segment(n) for n in lengths] for lengths in ((12, 5, 9, 20, 11), (6,), (14, 3, 8))]
