"""Kernels compile without a GPU, and what the assembler makes of them does not get worse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernels.aot import KernelReport, faults, main
from kernels.model_shapes import MODEL_SHAPES

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = json.loads((ROOT / "kernels" / "aot_report.json").read_text())

GOOD = KernelReport(
    kernel="k",
    variant="0",
    target="sm_89",
    operation="o",
    case="c",
    model="m",
    product=True,
    warps=4,
    registers=100,
    spills=0,
    shared=99 << 10,
    mma=8,
    wgmma=0,
)


def _compile(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.aot", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["target"], row["kernel"], row["variant"]


def test_the_committed_report_covers_all_targets_and_has_no_fault() -> None:
    rows = COMMITTED["kernels"]
    assert {row["target"] for row in rows} == {"sm_80", "sm_89", "sm_90"}
    assert COMMITTED["models"] == list(MODEL_SHAPES)
    assert not [(_key(row), found) for row in rows if (found := faults(KernelReport(**row)))]


@pytest.mark.parametrize(
    ("target", "operation", "case"),
    [("sm_90", "lora_linear", "bfloat16 rank 16 into 576x576"), ("sm_80", "multi_adapter", "576x576")],
)
def test_what_is_compiled_now_is_no_worse_than_the_committed_report(
    target: str, operation: str, case: str, tmp_path: Path
) -> None:
    triton = pytest.importorskip("triton")
    chosen = ["--targets", target, "--models", "SmolLM2-135M", "--operations", operation, "--cases", case]

    result = _compile(*chosen, "--cache", str(tmp_path), "--json")

    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["kernels"]
    assert rows
    assert list(tmp_path.rglob("*.cubin")), "the cache is filled"
    if triton.__version__ != COMMITTED["triton"]:
        pytest.skip(f"the report is of Triton {COMMITTED['triton']}")
    committed = {_key(row): row for row in COMMITTED["kernels"]}
    for row in rows:
        before = committed[_key(row)]
        assert row["registers"] <= before["registers"]
        assert row["shared"] <= before["shared"]
        assert (row["mma"] > 0, row["wgmma"] > 0) == (before["mma"] > 0, before["wgmma"] > 0)


def test_a_kernel_fails_that_spills_or_does_not_fit_or_leaves_the_tensor_cores_idle() -> None:
    assert faults(GOOD) == []
    assert faults(replace(GOOD, spills=8)) == ["spills 8 bytes of registers"]
    assert faults(replace(GOOD, shared=100 << 10)) == ["asks for 102400 bytes of shared memory of 101376"]
    assert faults(replace(GOOD, mma=0)) == ["is a product without tensor-core instructions"]
    assert faults(replace(GOOD, mma=0, product=False)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "h100"], "target 'h100' is not of the form sm_90"),
        (["--models", "GPT-5"], "model 'GPT-5' is not one of SmolLM2-135M"),
        ([], "TRITON_INTERPRET is set: interpreted kernels are not compiled"),
    ],
)
def test_what_cannot_be_compiled_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
