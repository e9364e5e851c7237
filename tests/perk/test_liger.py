"""Liger's operations are for bases on a CUDA device only."""

from __future__ import annotations

from pathlib import Path

import torch

from perk.base_model import load_base_model
from perk.liger import use_liger


def test_a_base_on_the_cpu_stays_as_it_is(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    classes = [type(module) for module in base.model.modules()]
    assert base.device == torch.device("cpu")
    assert not use_liger(base)
    assert [type(module) for module in base.model.modules()] == classes
