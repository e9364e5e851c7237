"""Tasks of a stage come in the shares of their weights, over any few documents."""

from __future__ import annotations

from itertools import pairwise

import pytest

from meta_training.task_mixture import pick_task


@pytest.mark.parametrize("offset", [0.0, 0.37, 0.999])
@pytest.mark.parametrize("weights", [[3, 5, 0.7], [1, 1], [2, 1, 1, 4], [1]])
def test_every_stretch_has_its_shares(weights: list[float], offset: float) -> None:
    picks = [pick_task(weights, number, offset) for number in range(400)]
    for length in (10, 30, 100):
        for start in range(0, 400 - length, 7):
            stretch = picks[start : start + length]
            for index, weight in enumerate(weights):
                assert abs(stretch.count(index) - length * weight / sum(weights)) < 2.5


def test_no_task_is_left_out_for_long() -> None:
    picks = [pick_task([3, 5, 1], number, 0.2) for number in range(300)]
    for index, longest in ((0, 5), (1, 3), (2, 21)):
        places = [number for number, pick in enumerate(picks) if pick == index]
        assert max(b - a for a, b in pairwise(places)) <= longest
