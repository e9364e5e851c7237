"""Adapters of rows lie side by side, each copied once while its row stays."""

from __future__ import annotations

import torch

from perk.adapter_places import AdapterPlaces


def test_rows_that_come_and_go_find_their_adapters() -> None:
    ones, twos = torch.ones(3), torch.full((3,), 2.0)
    places = AdapterPlaces(3, torch.device("cpu"), torch.bfloat16)
    assert places.put([None, None]) is None
    for adapters in ([None, ones], [twos, ones, None, twos, ones], [ones], [ones, None], [twos, twos]):
        expected = [[0.0] * 3 if adapter is None else adapter.tolist() for adapter in adapters]
        found = places.put(adapters)
        assert found is not None
        assert (found.dtype, found.tolist()) == (torch.bfloat16, expected)


def test_what_stands_in_its_place_is_not_copied_again() -> None:
    ones = torch.ones(3)
    places = AdapterPlaces(3, torch.device("cpu"), torch.float32)
    first = places.put([None, ones])
    ones.zero_()
    again = places.put([None, ones])
    assert first is not None
    assert again is not None
    assert (again.data_ptr(), again.tolist()) == (first.data_ptr(), [[0.0] * 3, [1.0] * 3])
