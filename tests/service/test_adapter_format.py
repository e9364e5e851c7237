"""Adapters as bytes: small, checked, and the same after any number of readings."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from service.store.adapter_format import AdapterFormat, DamagedAdapter, FormatName

_SIZE = 1000
_NAMES: tuple[FormatName, ...] = ("float32", "bf16", "int8-delta")


@pytest.fixture
def initial() -> Tensor:
    return 0.05 * torch.randn(_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adapter(initial: Tensor) -> Tensor:
    return initial + 0.004 * torch.randn(_SIZE, generator=torch.Generator().manual_seed(1))


def _format(name: FormatName, initial: Tensor, fingerprint: str = "f") -> AdapterFormat:
    return AdapterFormat(name, size=_SIZE, fingerprint=fingerprint, initial=initial)


@pytest.mark.parametrize(("name", "largest_error"), [("float32", 0.0), ("bf16", 2**-8), ("int8-delta", 1e-3)])
def test_an_adapter_comes_back_as_exactly_as_its_format_allows(
    name: FormatName, largest_error: float, initial: Tensor, adapter: Tensor
) -> None:
    kept = _format(name, initial)

    found = kept.unpack(kept.pack(adapter))

    assert found.dtype == torch.float32
    assert (found - adapter).abs().max() <= largest_error * adapter.abs().max()
    assert torch.equal(found, kept.settle(adapter)), "what is answered with before and after a reading differs"
    assert len(kept.pack(adapter)) - kept.bytes_per_adapter in range(1024)


def test_a_difference_in_8_bits_takes_little_more_than_a_quarter(initial: Tensor) -> None:
    exact, small = _format("float32", initial), _format("int8-delta", initial)
    assert small.bytes_per_adapter / exact.bytes_per_adapter == pytest.approx(0.266, abs=0.001)


def test_an_adapter_that_has_not_moved_is_kept_exactly(initial: Tensor) -> None:
    assert torch.equal(_format("int8-delta", initial).settle(initial), initial)


@pytest.mark.parametrize("written", _NAMES)
@pytest.mark.parametrize("reading", _NAMES)
def test_every_format_is_read_whatever_is_written_now(
    written: FormatName, reading: FormatName, initial: Tensor, adapter: Tensor
) -> None:
    writer = _format(written, initial)
    assert torch.equal(_format(reading, initial).unpack(writer.pack(adapter)), writer.settle(adapter))


def test_what_is_not_the_adapter_is_refused(initial: Tensor, adapter: Tensor) -> None:
    kept = _format("bf16", initial)
    content = kept.pack(adapter)
    metadata = {"fingerprint": "f", "format": "int8-delta"}
    for damaged, reason in [
        (b"", "format"),
        (content[:-1], "format"),
        (_format("bf16", initial, fingerprint="g").pack(adapter), "fingerprint"),
        (save({"adapter": torch.zeros(3)}, metadata={"fingerprint": "f"}), "shape"),
        (save({"other": adapter}, metadata={"fingerprint": "f"}), "shape"),
        (save({"delta": torch.zeros(3, dtype=torch.int8)}, metadata=metadata), "shape"),
    ]:
        with pytest.raises(DamagedAdapter) as error:
            kept.unpack(damaged)
        assert error.value.reason == reason


def test_a_difference_needs_what_it_differs_from() -> None:
    with pytest.raises(ValueError, match="int8-delta"):
        AdapterFormat("int8-delta", size=_SIZE, fingerprint="f")
