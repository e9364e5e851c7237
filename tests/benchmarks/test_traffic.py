"""Counting of kernels' memory accesses: cases counted by hand, and kernels small enough to be counted in a test."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from benchmarks import access_trace, traffic
from benchmarks.access_trace import Access, Gpu, Trace, count_dram_bytes, record_accesses
from benchmarks.program_family import Tile, choose_programs, complete_family
from benchmarks.traffic import H100, Case, adapter_sizes, measure, traffic_cases
from kernels import adamw_update
from kernels.model_shapes import MODEL_SHAPES, ModelShape
from kernels.triton_ops import adapter_update, lora_linear, programs

with (Path(__file__).resolve().parents[2] / "benchmarks" / "traffic.csv").open() as _table:
    COMMITTED = {row.pop("case"): {name: float(value) for name, value in row.items()} for row in csv.DictReader(_table)}
TINY = ModelShape("tiny", hidden=128, key_value=32, intermediate=256, vocabulary=1024, layers=1)


def test_what_is_requested_is_counted_by_element_and_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_KERNELS", "triton")
    theta = torch.zeros(1, 100)
    with record_accesses(4096) as trace:
        adamw_update(
            theta, theta, (theta, theta), torch.ones(1), [100], 1, betas=(0.9, 0.95), weight_decay=0.0, epsilon=1e-8
        )
    # Seven times 100 numbers; the step size; where the tensor starts and ends.
    assert trace.requested == 7 * 100 * 4 + 4 + 2 * 8
    assert [len(launch) for launch in trace.launches] == [1]


def _load(*granules: int) -> Access:
    return Access(False, granules, (8,) * len(granules))


def _last_load(*granules: int) -> Access:
    return replace(_load(*granules), evict_first=True)


def _store(*granules: int) -> Access:
    return Access(True, granules, (8,) * len(granules))


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        ([[_load(1), _load(1)]], 10),
        # The cache holds two granules: the third drives out the first.
        ([[_load(1), _load(2), _load(3), _load(1)]], 40),
        # What was used last stays.
        ([[_load(1), _load(2), _load(1), _load(3), _load(1)]], 30),
        # A store fills nothing, and is written once at the end, however often it is made; no more than the granule.
        ([[_store(1), _store(1)]], 10),
        # Driven out, it is written at once, and read again.
        ([[_store(1), _load(2), _load(3), _load(1)]], 8 + 30),
        # Two processors take turns, the third program waits for the next wave.
        ([[_load(1), _load(2)], [_load(1), _load(2)], [_load(1)]], 20),
        ([[_load(1), _load(2)], [_load(3), _load(4)], [_load(1)]], 50),
        # What a load gives up goes before what is older, and the oldest of it first.
        ([[_load(1), _last_load(2), _load(3), _load(1)]], 30),
        ([[_last_load(1), _last_load(2), _load(3), _load(2)]], 30),
        # The next program finds what this one has given up; used again without the hint, it is kept again.
        ([[_last_load(1)], [_last_load(1)]], 10),
        ([[_last_load(1), _load(2), _load(1), _load(3), _load(1)]], 30),
        # Given up before it is written.
        ([[_store(1), _last_load(1), _load(2), _load(3), _load(2)]], 8 + 20),
        ([[]], 0),
    ],
)
def test_the_cache_lets_through_what_it_does_not_hold(programs: list[list[Access]], expected: int) -> None:
    gpu = Gpu("tiny", cache=20, processors=2)
    assert count_dram_bytes(Trace(10, [programs]), gpu) == expected


def _program(number: int, *, rows: int = 4, last: bool = True) -> list[Tile]:
    """Reads `rows` lines of 8 bytes, 64 apart, of a block 1000 bytes on from the program before; writes one place."""
    starts = number * 1000 + 64 * np.arange(rows)
    return [Tile(False, starts, np.full(rows, 8), evict_first=last), Tile(True, np.array([5]), np.array([8]))]


def test_programs_that_differ_in_place_are_derived_from_a_few() -> None:
    count = 7
    every = [_program(number) for number in range(count - 1)] + [_program(count - 1, rows=2)]
    recorded = {number: every[number] for number in choose_programs(count)}
    assert len(recorded) == 4
    for derived, expected in zip(complete_family(recorded, count), every, strict=True):
        assert all(tile.same(other) for tile, other in zip(derived, expected, strict=True))


@pytest.mark.parametrize(
    ("number", "program"),
    [
        (5, _program(6)),
        (5, _program(5)[:1]),
        (5, _program(5, rows=3)),
        (5, _program(5, last=False)),
        (1, _program(1)[:1]),
        (1, _program(1, rows=3)),
    ],
)
def test_programs_that_differ_otherwise_are_told(number: int, program: list[Tile]) -> None:
    recorded = {index: _program(index) for index in choose_programs(7)} | {number: program}
    with pytest.raises(RuntimeError, match="no translation"):
        complete_family(recorded, 7)


@pytest.mark.parametrize("name", ["lora_linear 128x256 rank 16", "lora_linear backward 128x256 rank 16"])
def test_derived_programs_are_those_that_would_have_been_interpreted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """700 tokens: six blocks, the last one cut short."""
    monkeypatch.setenv("PERK_KERNELS", "triton")
    (case,) = _cases(700, name)
    work = case.prepare()
    with record_accesses(256) as some:
        work()
    monkeypatch.setattr(access_trace, "_FAMILIES", {})
    work = case.prepare()
    with record_accesses(256) as every:
        work()
    assert [len(launch) for launch in some.launches] == [len(launch) for launch in every.launches]
    assert some.requested == every.requested
    assert count_dram_bytes(some, H100) == pytest.approx(count_dram_bytes(every, H100), rel=0.01)


def test_blocks_of_the_head_that_are_written_down_are_those_that_would_have_been_interpreted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight shares of the vocabulary, five blocks each."""
    monkeypatch.setenv("PERK_KERNELS", "triton")
    rows = []
    for recorded in (3, 5):
        monkeypatch.setattr(traffic, "_RECORDED", recorded)
        (case,) = _cases(1024, "weighted_cross_entropy", replace(TINY, vocabulary=5 * 8 * 128))
        rows.append(measure(case))
    assert rows[0].requested == rows[1].requested
    assert rows[0].dram == pytest.approx(rows[1].dram, rel=0.02)


def _cases(tokens: int, name: str, shape: ModelShape = TINY) -> list[Case]:
    return [case for case in traffic_cases(shape, tokens) if name in case.name]


@pytest.mark.parametrize(("tokens", "name"), [(1024, "lora_linear 128x256 rank 16"), (512, "adamw_update")])
def test_kernels_stay_near_the_floor_and_peft_does_not(tokens: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_KERNELS", "triton")
    row = measure(_cases(tokens, name)[0])
    assert 1 <= row.dram_to_floor <= 1.15
    assert row.requested >= row.floor
    assert row.peft_to_floor > 2


def test_the_rms_rule_reads_gradients_once_where_groups_of_tensors_fit_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of Qwen2.5-0.5B's layers, a twelfth of an H100's cache and processors, and groups about as small."""
    monkeypatch.setenv("PERK_KERNELS", "triton")
    shape = replace(MODEL_SHAPES["Qwen2.5-0.5B"], layers=2)
    gpu = Gpu("a twelfth of an H100", cache=H100.cache // 12, processors=H100.processors // 12)
    case = next(c for c in traffic_cases(shape, 64) if c.name.startswith("rms_update"))
    monkeypatch.setattr(adapter_update, "_GROUP_BYTES", 1300 << 10)
    assert measure(case, gpu).dram_to_floor <= 1.01


def test_at_full_size_the_rms_rule_goes_over_groups_whose_gradients_stay_in_the_cache() -> None:
    """What the committed row, whose count takes minutes, rests on."""
    sizes = adapter_sizes(MODEL_SHAPES["Qwen2.5-0.5B"], 16)
    groups = adapter_update._groups(sizes, 4)
    # Parameters in and out, and the gradient.
    assert all(3 * 4 * sum(sizes[group]) <= H100.cache for group in groups)
    assert [index for group in groups for index in range(len(sizes))[group]] == list(range(len(sizes)))
    assert COMMITTED["rms_update rank 16"]["dram_to_floor"] <= 1.001


def test_an_upstream_gradient_larger_than_the_cache_keeps_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 32nd of an H100's cache, and slices of 24 MB as small: 512 of 1,024 tokens."""
    monkeypatch.setenv("PERK_KERNELS", "triton")
    gpu = Gpu("a part of an H100", cache=H100.cache // 32, processors=16)
    monkeypatch.setattr(programs, "PROGRAMS", 16)
    (case,) = [case for case in traffic._linear_cases(1024, 128, 640, 64) if "backward" in case.name]
    counts = []
    for cached in (programs.CACHED_BYTES // 32, programs.CACHED_BYTES):
        monkeypatch.setattr(lora_linear, "CACHED_BYTES", cached)
        work = case.prepare()
        with record_accesses(case.granule) as trace:
            work()
        counts.append((trace, count_dram_bytes(trace, gpu) / case.floor))
    (sliced, sliced_ratio), (whole, whole_ratio) = counts
    # dx and dB of each slice, and dA.
    assert [len(launch) for launch in sliced.launches] == [4, 10, 4, 10, 2]
    assert [len(launch) for launch in whole.launches] == [8, 10, 2]
    assert sliced_ratio <= 1.06
    assert whole_ratio >= 1.13
    # The sums read dy for the last time, every byte of it once.
    dy_bytes = 1024 * 640 * 2
    for trace in (sliced, whole):
        accesses = [access for launch in trace.launches for program in launch for access in program]
        assert sum(sum(access.sizes) for access in accesses if access.evict_first) == dy_bytes
    # Without the hint W goes before what has been used up.
    for launch in sliced.launches:
        launch[:] = [[replace(access, evict_first=False) for access in program] for program in launch]
    assert count_dram_bytes(sliced, gpu) / case.floor >= 1.15


def test_every_counted_operation_is_near_its_floor() -> None:
    assert {name: row["dram_to_floor"] for name, row in COMMITTED.items() if row["dram_to_floor"] > 1.15} == {}
    operations = {"lora_linear", "adamw_update", "rms_update", "weighted_cross_entropy"}
    assert {name.split()[0] for name in COMMITTED} >= operations


def test_recording_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_KERNELS", "triton")
    with record_accesses(4096) as trace:
        pass
    (case,) = _cases(512, "adamw_update")
    case.prepare()()
    assert trace.launches == []
