"""Which implementation runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kernels.dispatch import compiling, is_forced, use_triton


def test_cpu_tensors_run_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERK_KERNELS", raising=False)
    assert not use_triton(torch.zeros(1))


def test_torch_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_KERNELS", "torch")
    assert not use_triton(torch.zeros(1))


def test_triton_on_cpu_tensors_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert use_triton(torch.zeros(1))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match=r"PERK_KERNELS=triton: tensors are on cpu.*TRITON_INTERPRET=1"):
        use_triton(torch.zeros(1))


def test_triton_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_KERNELS", "triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="the package triton is not installed"):
        use_triton(torch.zeros(1))


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_KERNELS", "cuda")
    with pytest.raises(ValueError, match="PERK_KERNELS: 'cuda' is not one of torch, triton"):
        use_triton(torch.zeros(1))


def test_using_the_operations_does_not_import_triton() -> None:
    code = "import sys, kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_what_was_asked_for_by_name_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERK_KERNELS", raising=False)
    assert not is_forced()
    monkeypatch.setenv("PERK_KERNELS", "torch")
    assert not is_forced()
    monkeypatch.setenv("PERK_KERNELS", "triton")
    assert is_forced()
    monkeypatch.delenv("PERK_KERNELS")
    with compiling(90):
        assert is_forced()
