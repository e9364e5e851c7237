"""y_n + s_n (x_n A_nᵀ) B_nᵀ: the low-rank maps of a batch in which every row has its own adapter, of its own rank.

Decoding answers for many documents at once: the frozen product runs over all rows together, and this adds to each row
what its own adapter does to it. Nothing is padded to the widest rank: an adapter lies in its buffer as it is.

Bytes at least: every row's A, B and x once, y once in and once out. The products are negligible beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.dispatch import is_differentiated, use_triton

__all__ = ["RowAdapters", "multi_adapter"]


@dataclass(frozen=True)
class RowAdapters:
    """Where the adapter of each of N rows lies. It holds the buffer itself, so that nothing can take its place.

    Attributes:
        buffer: adapters, ``[P]``, contiguous: A ``[r, in]`` and B ``[out, r]`` of each row, somewhere in it.
        a_starts: first element of each row's A, ``[N]``, int64.
        b_starts: first element of each row's B, ``[N]``, int64.
        ranks: rank of each row's adapter, ``[N]``, int32; a row of rank 0 has none.
        scales: factor s of each row, ``[N]``, float32.
        widest: the largest of the ranks, known on the host.
    """

    buffer: Tensor
    a_starts: Tensor
    b_starts: Tensor
    ranks: Tensor
    scales: Tensor
    widest: int


def multi_adapter(y: Tensor, x: Tensor, adapters: RowAdapters) -> Tensor:
    """Add each row's low-rank map to the frozen map's output. For answering: no gradient goes through it.

    Args:
        y: outputs of the frozen map, ``[N, T, out]``; changed in place.
        x: its inputs, ``[N, T, in]``: T tokens of each of N rows, one where a batch is decoded.
        adapters: of the N rows.

    Returns:
        y.

    Raises:
        ValueError: a shape does not fit the others, or the buffer is not contiguous.
    """
    _check(y, x, adapters)
    if use_triton(x):
        # Triton is imported where it runs, and nowhere else.
        from kernels.triton_ops import multi_adapter as triton_multi_adapter

        return triton_multi_adapter.multi_adapter(y, x, adapters)
    inputs, outputs = x.shape[2], y.shape[2]
    starts = zip(adapters.a_starts.tolist(), adapters.b_starts.tolist(), strict=True)
    scales = adapters.scales.tolist()
    for row, ((a_start, b_start), rank) in enumerate(zip(starts, adapters.ranks.tolist(), strict=True)):
        a = adapters.buffer[a_start : a_start + rank * inputs].view(rank, inputs)
        b = adapters.buffer[b_start : b_start + outputs * rank].view(outputs, rank)
        y[row].add_((x[row] @ a.T.to(x.dtype)) @ b.T.to(x.dtype), alpha=scales[row])
    return y


def _check(y: Tensor, x: Tensor, adapters: RowAdapters) -> None:
    rows = x.shape[0]
    if y.shape[:2] != x.shape[:2]:
        raise ValueError(f"y: shape {list(y.shape)} does not have the rows and tokens of x, {list(x.shape)}")
    for name in ("a_starts", "b_starts", "ranks", "scales"):
        shape = getattr(adapters, name).shape
        if shape != (rows,):
            raise ValueError(f"{name}: shape {list(shape)} is not [{rows}], an entry for each row")
    if not adapters.buffer.is_contiguous():
        raise ValueError("buffer: is not contiguous")
    if is_differentiated(x, y, adapters.buffer):
        raise ValueError("x, y, buffer: require gradients, which this operation has none of")
