"""The GPU benchmark: its contenders agree with the formulas, and it says so where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import Contest, check, contests
from kernels.model_shapes import ModelShape

ROOT = Path(__file__).resolve().parents[2]
TINY = ModelShape("tiny", hidden=16, key_value=8, intermediate=24, vocabulary=50, layers=2)


def test_all_contenders_of_all_operations_are_right() -> None:
    seen = [(contest.operation, sorted(check(contest))) for contest in contests(TINY, 40, "cpu")]
    assert len(seen) == 10
    assert all("ours" in contenders and len(contenders) >= 2 for _, contenders in seen)


def test_a_wrong_contender_ends_the_run() -> None:
    contest = Contest("sum", lambda: [torch.ones(2)], {"ours": lambda: [torch.full((2,), 1.1)]})
    with pytest.raises(RuntimeError, match=r"sum: ours is off by 1\.0e-01"):
        check(contest)


def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "needs a CUDA device" in result.stderr
