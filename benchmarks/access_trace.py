"""What a Triton kernel asks of memory: recorded in Triton's interpreter, and what a cache lets through of it.

Two counts of the same accesses:

- requested: bytes of every load and store, masks honoured. Blocked matrix products ask for a tile many times.
- DRAM: bytes that pass an LRU cache of the size of a GPU's L2, fed tile by tile in launch order, the programs of a wave
  (one a multiprocessor) taking turns. A miss of a load fills a granule, a store dirties one, which is written once when
  it is evicted or at the end. Launches follow one another on the same cache, scratch memory counts like any other.

The cache is a model: it is fully associative, has one part, and programs keep step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Access", "Gpu", "Launch", "Trace", "count_dram_bytes", "record_accesses"]


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
    """

    store: bool
    granules: tuple[int, ...]
    sizes: tuple[int, ...]


# Accesses of each program of a launch, in the order of the program numbers.
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

    Args:
        granule: bytes of a granule, a power of two.

    Raises:
        RuntimeError: Triton was imported without ``TRITON_INTERPRET=1``.
    """
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is not 1: only interpreted kernels can be recorded")
    from triton.runtime.interpreter import InterpreterBuilder

    trace = Trace(granule)
    numbers: list[list[tuple[int, ...]]] = []
    plain = {
        name: getattr(InterpreterBuilder, name)
        for name in ("create_masked_load", "create_masked_store", "set_grid_idx", "set_grid_dim")
    }

    def note(pointers: Any, mask: Any, *, store: bool) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        itemsize = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        granules, counts = _count(addresses // np.uint64(granule))
        trace.launches[-1][-1].append(Access(store, tuple(granules.tolist()), tuple((counts * itemsize).tolist())))

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, store=False)
        return plain["create_masked_load"](self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, store=True)
        return plain["create_masked_store"](self, pointers, value, mask, *rest)

    def start_launch(self: Any, *grid: int) -> None:
        trace.launches.append([])
        numbers.append([])
        plain["set_grid_dim"](self, *grid)

    def start_program(self: Any, *index: int) -> None:
        trace.launches[-1].append([])
        numbers[-1].append(index[::-1])
        plain["set_grid_idx"](self, *index)

    replaced = {
        "create_masked_load": load,
        "create_masked_store": store,
        "set_grid_dim": start_launch,
        "set_grid_idx": start_program,
    }
    for name, function in replaced.items():
        setattr(InterpreterBuilder, name, function)
    try:
        yield trace
    finally:
        for name, function in plain.items():
            setattr(InterpreterBuilder, name, function)
        for launch, order in zip(trace.launches, numbers, strict=True):
            # Hardware starts programs along the first axis of the grid first, the interpreter along the last.
            launch[:] = [launch[i] for i in sorted(range(len(launch)), key=order.__getitem__)]


def _count(numbers: Any) -> tuple[Any, Any]:
    """Distinct numbers in order, and how often each occurs; those of a tile lie close: counting beats sorting."""
    if numbers.size == 0:
        return numbers, numbers
    low = numbers.min()
    span = int(numbers.max() - low)
    if span > 8 * numbers.size:
        return np.unique(numbers, return_counts=True)
    counts = np.bincount((numbers - low).astype(np.int64).ravel(), minlength=span + 1)
    (present,) = counts.nonzero()
    return present.astype(np.uint64) + low, counts[present]


def count_dram_bytes(trace: Trace, gpu: Gpu) -> int:
    """Bytes between DRAM and an LRU cache of the GPU's size."""
    capacity = gpu.cache // trace.granule
    # Granule to its bytes that are not written yet; the oldest first.
    cache: OrderedDict[int, int] = OrderedDict()
    moved = 0
    for launch in trace.launches:
        for wave in range(0, len(launch), gpu.processors):
            for access in _in_turns(launch[wave : wave + gpu.processors]):
                for granule, size in zip(access.granules, access.sizes, strict=True):
                    if granule in cache:
                        cache.move_to_end(granule)
                    else:
                        cache[granule] = 0
                        moved += 0 if access.store else trace.granule
                        if len(cache) > capacity:
                            moved += cache.popitem(last=False)[1]
                    if access.store:
                        cache[granule] = min(trace.granule, cache[granule] + size)
    return moved + sum(cache.values())


def _in_turns(programs: Sequence[list[Access]]) -> Iterator[Access]:
    for turn in range(max(map(len, programs), default=0)):
        for program in programs:
            if turn < len(program):
                yield program[turn]
