"""The type of a CPU's products, and who decides it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels import product_dtype as module
from kernels.product_dtype import padded_rows, product_dtype


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing decided, and nothing remembered of this machine, before or after."""
    monkeypatch.delenv("PERK_PRODUCTS", raising=False)
    module._has_instructions.cache_clear()
    yield
    module._has_instructions.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
@pytest.mark.parametrize("variable", [None, "", "auto"])
def test_it_is_bfloat16_where_there_are_instructions_for_it(
    variable: str | None, capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("PERK_PRODUCTS", variable)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert product_dtype() == expected


def test_a_torch_that_does_not_tell_multiplies_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert product_dtype() == torch.float32


@pytest.mark.parametrize(("name", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_variable_decides(name: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_PRODUCTS", name)
    assert product_dtype() == expected


@pytest.mark.parametrize(("rows", "filled"), [(0, 0), (1, 64), (64, 64), (65, 128), (1000, 1024)])
def test_products_in_bfloat16_have_few_shapes(rows: int, filled: int) -> None:
    assert padded_rows(rows, torch.bfloat16) == filled
    assert padded_rows(rows, torch.float32) == rows


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_PRODUCTS", "float16")
    with pytest.raises(ValueError, match="PERK_PRODUCTS: 'float16' is not one of float32, bfloat16, auto"):
        product_dtype()
