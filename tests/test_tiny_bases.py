"""The tiny base models that other tests stand on are what those tests take them for."""

from __future__ import annotations

import pytest
import torch

from perk.base_model import load_base_model


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2", "tiny_qwen2"])
def test_a_tiny_base_loads_like_any_other_folder(family: str, request: pytest.FixtureRequest) -> None:
    base = load_base_model(str(request.getfixturevalue(family)), device="cpu")

    text = "Mary went to the kitchen. — é漢字 \t«x»\nDone."
    ids = base.tokenizer.encode(text)
    assert base.tokenizer.decode(ids) == text
    assert max(ids) < base.head.shape[0] <= 512
    assert base.eos_id not in ids
    assert base.max_positions == 1024

    with torch.no_grad():
        logits = base.model(torch.tensor([ids])).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.3, "a base that is nearly constant would hide wrong gradients"
