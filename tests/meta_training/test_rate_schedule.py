"""Learning rates rise in equal steps to their peak and fall by a cosine to their least."""

from __future__ import annotations

import pytest

from meta_training.rate_schedule import rate_share


def test_rates_rise_to_the_peak_and_fall_to_the_least() -> None:
    shares = [rate_share(step, 104, warmup=4, least=0.1) for step in range(105)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert shares[54] == pytest.approx(0.55)
    assert shares[104] == pytest.approx(0.1)


@pytest.mark.parametrize(("step", "total"), [(0, 1), (3, 4), (9, 4)])
def test_a_run_may_be_all_rise(step: int, total: int) -> None:
    assert 0 < rate_share(step, total, warmup=10, least=0.1) <= 1
