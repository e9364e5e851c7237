"""The GPU's encoding benchmark: both sides take the same document and steps, and it says so where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_encode import Case, main, measure
from kernels.model_shapes import ModelShape

TINY = ModelShape("tiny", hidden=64, key_value=64, intermediate=96, vocabulary=500, layers=2)


def test_both_sides_start_at_one_loss_and_lower_it() -> None:
    ours, theirs = measure(TINY, Case(tokens=1024, micro_batch=512, rank=4, steps=3), "cpu", dtype=torch.float32)
    assert (ours.contender, theirs.contender) == ("ours", "peft")
    assert ours.loss_before == pytest.approx(theirs.loss_before, rel=1e-5)
    assert max(ours.loss_after - ours.loss_before, theirs.loss_after - theirs.loss_before) < 0


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_encode"])
    assert main() == 2
    assert "needs a CUDA device" in capsys.readouterr().err
