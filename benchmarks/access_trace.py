"""What a Triton kernel asks of memory: recorded in Triton's interpreter, and what a cache lets through of it.

Two counts of the same accesses:

- requested: bytes of every load and store, masks honoured. Blocked matrix products ask for a tile many times.
- DRAM: bytes that pass an LRU cache of the size of a GPU's L2, fed tile by tile in launch order, the programs of a wave
  (one a multiprocessor) taking turns. A miss of a load fills a granule, a store dirties one, which is written once when
  it is evicted or at the end. Launches follow one another on the same cache, scratch memory counts like any other.

What is loaded with ``eviction_policy="evict_first"`` is driven out before all else, the oldest of it first, until it is
touched without that hint. A granule of which one program has used its half stays for the next program's, whose turn
follows at once, unless a miss comes between.

The cache is a model: it is fully associative, has one part, and programs keep step. A GPU need not follow a hint.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.program_family import Tile, choose_programs, complete_family

__all__ = ["Access", "Gpu", "Launch", "Trace", "count_dram_bytes", "record_accesses"]

# Arguments of our kernels that say how many programs do the same for one block after the other, and that by which these
# lie apart, if they do not follow one another.
_FAMILIES = {"token_blocks": "groups", "p_blocks": ""}

# How a load's eviction policy ends: a part of a string since Triton 3.9, the name of an enumeration's member before.
_EVICT_FIRST = "evict_first"


@dataclass(frozen=True)
class Gpu:
    """What the model knows of a GPU.

    Attributes:
        name: its name.
        cache: bytes of its L2 cache.
        processors: multiprocessors; so many programs run at a time.
    """

    name: str
    cache: int
    processors: int


@dataclass(frozen=True)
class Access:
    """A load or a store of a tile.

    Attributes:
        store: it is a store.
        granules: which granules of memory it touches.
        sizes: bytes in each of them.
        evict_first: it is a load whose granules the cache is told not to keep.
    """

    store: bool
    granules: tuple[int, ...]
    sizes: tuple[int, ...]
    evict_first: bool = False


# Accesses of each program of a launch, in the order in which hardware starts them.
Launch = list[list[Access]]


@dataclass
class Trace:
    """Launches in their order.

    Attributes:
        granule: bytes of a granule.
        launches: accesses of each.
    """

    granule: int
    launches: list[Launch] = field(default_factory=list)

    @property
    def requested(self) -> int:
        """Bytes of all loads and stores."""
        return sum(sum(a.sizes) for launch in self.launches for program in launch for a in program)


@contextmanager
def record_accesses(granule: int) -> Iterator[Trace]:
    """Record what the interpreted kernels that run inside the block load and store.

    Of a kernel that says by an argument of `_FAMILIES` how many programs differ in place only, a few are
    interpreted and the others written down (`program_family`): what it would have computed is not to be had then.

    Args:
        granule: bytes of a granule, a power of two.

    Raises:
        RuntimeError: Triton was imported without ``TRITON_INTERPRET=1``, or programs that should differ in place only
            do otherwise.
    """
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is not 1: only interpreted kernels can be recorded")
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    recording = _Recording()
    replaced: list[tuple[Any, str, Any]] = [
        (GridExecutor, "__call__", recording.run_launch),
        (InterpreterBuilder, "set_grid_dim", recording.start_launch),
        (InterpreterBuilder, "set_grid_idx", recording.start_program),
        (InterpreterBuilder, "create_masked_load", recording.load),
        (InterpreterBuilder, "create_masked_store", recording.store),
    ]
    if hasattr(InterpreterBuilder, "get_cache_policy"):
        replaced.append((InterpreterBuilder, "get_cache_policy", recording.make_policy))
    plain = [getattr(owner, name) for owner, name, _ in replaced]
    trace = Trace(granule)
    for (owner, name, wrap), function in zip(replaced, plain, strict=True):
        setattr(owner, name, wrap(function))
    try:
        # Where programs are left out, others compute with what stood in memory before.
        with np.errstate(all="ignore"):
            yield trace
    finally:
        for (owner, name, _), function in zip(replaced, plain, strict=True):
            setattr(owner, name, function)
    trace.launches.extend(
        [[_to_access(tile, granule) for tile in program] for program in launch.programs()]
        for launch in recording.launches
    )


@dataclass
class _Launch:
    """One while it is recorded.

    Attributes:
        grid: its programs along each axis.
        family: how many programs of the first axis differ in place only; 1: none do.
        stride: from one of them to the next.
        recorded: accesses by program.
    """

    grid: tuple[int, ...]
    family: int
    stride: int
    recorded: dict[tuple[int, ...], list[Tile]] = field(default_factory=dict)

    @cached_property
    def interpreted(self) -> list[int]:
        """Programs of the first axis that are interpreted; the executor's own grid only counts them."""
        members = set(choose_programs(self.family))
        return [program for program in range(self.grid[0]) if self._member(program) in members]

    def programs(self) -> list[Sequence[Tile]]:
        """Accesses of all programs in the order in which hardware starts them: along the first axis first."""
        completed: dict[tuple[int, ...], Sequence[Tile]] = {}
        for first, *rest in [index for index in self.recorded if self._member(index[0]) == 0]:
            places = {number: (first + number * self.stride, *rest) for number in range(self.family)}
            recorded = {number: self.recorded[place] for number, place in places.items() if place in self.recorded}
            completed |= zip(places.values(), complete_family(recorded, self.family), strict=True)
        return [completed[index] for index in sorted(completed, key=lambda index: index[::-1])]

    def _member(self, program: int) -> int:
        """Which of its family a program of the first axis is."""
        return program // self.stride % self.family


class _Recording:
    """Between Triton's interpreter and memory: each method wraps one of the interpreter's functions."""

    def __init__(self) -> None:
        self.launches: list[_Launch] = []

    def run_launch(self, plain: Any) -> Any:
        def call(executor: Any, *arguments: Any, **options: Any) -> None:
            named = dict(zip(executor.arg_names, arguments, strict=False)) | options
            grid = tuple(executor.grid)
            name = next((name for name in _FAMILIES if name in named), "")
            family, stride = int(named.get(name, 1)), int(named.get(_FAMILIES.get(name, ""), 1))
            launch = _Launch(grid, family, stride)
            self.launches.append(launch)
            executor.grid = (len(launch.interpreted), *grid[1:])
            plain(executor, *arguments, **options)

        return call

    def start_launch(self, plain: Any) -> Any:
        def set_grid_dim(builder: Any, _: int, *rest: int) -> None:
            plain(builder, self.launches[-1].grid[0], *rest)

        return set_grid_dim

    def start_program(self, plain: Any) -> Any:
        def set_grid_idx(builder: Any, first: int, *rest: int) -> None:
            launch = self.launches[-1]
            index = (launch.interpreted[first], *rest)
            launch.recorded[index] = []
            plain(builder, *index)

        return set_grid_idx

    def load(self, plain: Any) -> Any:
        def create_masked_load(builder: Any, pointers: Any, mask: Any, other: Any, *policies: Any) -> Any:
            evict_first = any(str(policy).lower().endswith(_EVICT_FIRST) for policy in policies)
            self._note(pointers, mask, store=False, evict_first=evict_first)
            return plain(builder, pointers, mask, other, *policies)

        return create_masked_load

    def make_policy(self, _: Any) -> Any:
        """The interpreter's own says nothing, as it has no cache."""

        def get_cache_policy(_: Any, cache_modifier: str, eviction_policy: str) -> str:
            return f"{cache_modifier} {eviction_policy}"

        return get_cache_policy

    def store(self, plain: Any) -> Any:
        def create_masked_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._note(pointers, mask, store=True)
            return plain(builder, pointers, value, mask, *rest)

        return create_masked_store

    def _note(self, pointers: Any, mask: Any, *, store: bool, evict_first: bool = False) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        starts, lengths = _find_runs(addresses, max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        # Programs run one after the other: the last one begun.
        next(reversed(self.launches[-1].recorded.values())).append(Tile(store, starts, lengths, evict_first))


def _find_runs(addresses: Any, itemsize: int) -> tuple[Any, Any]:
    """Where consecutive elements begin, and the bytes of each run; an address that occurs twice begins a run twice."""
    addresses = np.sort(addresses, axis=None)
    breaks = np.flatnonzero(np.diff(addresses) != itemsize) + 1
    first = np.concatenate(([0], breaks))[: addresses.size]
    counts = np.diff(np.concatenate((first, [addresses.size])))
    return addresses[first], counts * itemsize


def _to_access(tile: Tile, granule: int) -> Access:
    """The granules that a tile touches, in order, and its bytes in each."""
    low, high = tile.starts // granule, (tile.starts + tile.lengths - 1) // granule
    # A run that crosses granules has a part in each.
    parts = high - low + 1
    run = np.repeat(np.arange(parts.size), parts)
    place = low[run] + np.arange(run.size) - np.repeat(np.cumsum(parts) - parts, parts)
    starts, ends = tile.starts[run], (tile.starts + tile.lengths)[run]
    sizes = np.minimum(ends, (place + 1) * granule) - np.maximum(starts, place * granule)
    granules, group = np.unique(place, return_inverse=True)
    totals = np.bincount(group, weights=sizes, minlength=granules.size).astype(np.int64)
    return Access(tile.store, tuple(granules.tolist()), tuple(totals.tolist()), tile.evict_first)


def count_dram_bytes(trace: Trace, gpu: Gpu) -> int:
    """Bytes between DRAM and an LRU cache of the GPU's size."""
    capacity = gpu.cache // trace.granule
    # Granule to its bytes that are not written yet; the oldest first. What is given up goes before what is kept.
    given_up: OrderedDict[int, int] = OrderedDict()
    kept: OrderedDict[int, int] = OrderedDict()
    moved = 0
    for launch in trace.launches:
        for wave in range(0, len(launch), gpu.processors):
            for access in _in_turns(launch[wave : wave + gpu.processors]):
                into = given_up if access.evict_first else kept
                for granule, size in zip(access.granules, access.sizes, strict=True):
                    if granule in kept:
                        unwritten = kept.pop(granule)
                    elif granule in given_up:
                        unwritten = given_up.pop(granule)
                    else:
                        unwritten = 0
                        moved += 0 if access.store else trace.granule
                        if len(given_up) + len(kept) == capacity:
                            moved += (given_up or kept).popitem(last=False)[1]
                    into[granule] = min(trace.granule, unwritten + size) if access.store else unwritten
    return moved + sum(kept.values()) + sum(given_up.values())


def _in_turns(programs: Sequence[list[Access]]) -> Iterator[Access]:
    for turn in range(max(map(len, programs), default=0)):
        for program in programs:
            if turn < len(program):
                yield program[turn]
