"""The GPU benchmark: its contenders agree with the formulas, and it says so where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import Contest, check, contests, main
from kernels.model_shapes import ModelShape

TINY = ModelShape("tiny", hidden=16, key_value=8, intermediate=24, vocabulary=50, layers=2)


def test_all_contenders_of_all_operations_are_right() -> None:
    seen = [(contest.operation, sorted(check(contest))) for contest in contests(TINY, 40, "cpu")]
    assert len(seen) == 10
    assert all("ours" in contenders and len(contenders) >= 2 for _, contenders in seen)


def test_a_wrong_contender_ends_the_run() -> None:
    contest = Contest("sum", lambda: [torch.ones(2)], {"ours": lambda: [torch.full((2,), 1.1)]})
    with pytest.raises(RuntimeError, match=r"sum: ours is off by 1\.0e-01"):
        check(contest)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert main() == 2
    assert "needs a CUDA device" in capsys.readouterr().err
