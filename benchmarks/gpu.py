"""Our operations on a CUDA device, against torch with PEFT's sequence, Liger and, where importable, Unsloth.

    python -m benchmarks.gpu [--tokens 4096] [--out FOLDER]

Every implementation is first compared with the formula in float64 (float32 for the head); a wrong one ends the run.
Then come medians of `triton.testing.do_bench`, and those of the same work replayed as a CUDA graph, which leaves out
what the CPU takes to launch it. Leaves ``gpu.csv`` and, with matplotlib, ``gpu.png`` in the folder. The
shapes are those of Qwen2.5-0.5B in bfloat16; it is meant to take less than five minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.result import write_rows
from kernels import adamw_update, lora_linear, weighted_cross_entropy
from kernels.model_shapes import MODEL_SHAPES, ModelShape

__all__ = ["Contest", "Row", "check", "contests"]

_TOLERANCE = 2e-2
# It reads a number back from the device on the way.
_NOT_CAPTURED = frozenset({"Liger"})

Work = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Contest:
    """One operation, its results in the formula's words, and who computes it.

    Attributes:
        operation: name and shape.
        expected: results of the formula in a wider dtype.
        contenders: each makes the same results; some leave out the last ones.
    """

    operation: str
    expected: Work
    contenders: dict[str, Work]


@dataclass(frozen=True)
class Row:
    """A line of the CSV; both times are medians, `graph_milliseconds` NaN for a contender that cannot be captured."""

    device: str
    operation: str
    contender: str
    error: float
    milliseconds: float
    graph_milliseconds: float


def check(contest: Contest) -> dict[str, float]:
    """Largest relative error of each contender.

    Raises:
        RuntimeError: one is wrong.
    """
    expected = contest.expected()
    errors = {}
    for name, work in contest.contenders.items():
        results = work()
        errors[name] = max(_error(one, other) for one, other in zip(results, expected, strict=True))
        if not errors[name] <= _TOLERANCE:
            raise RuntimeError(f"{contest.operation}: {name} is off by {errors[name]:.1e}, more than {_TOLERANCE}")
    return errors


def contests(shape: ModelShape, tokens: int, device: str) -> Iterator[Contest]:
    """The operations of the inner loop, forward and backward."""
    for rank in (16, 256):
        for inputs, outputs in shape.linears:
            yield _linear(tokens, inputs, outputs, rank, device)
    yield _head(tokens, shape.hidden, shape.vocabulary, device)
    yield _update(shape, 16, device)


def _linear(tokens: int, inputs: int, outputs: int, rank: int, device: str) -> Contest:
    draw = partial(_draw, device=device)
    x, a, b = draw(1, tokens, inputs), draw(1, rank, inputs, scale=inputs**-0.5), draw(1, outputs, rank, scale=0.1)
    weight, dy = draw(outputs, inputs, scale=inputs**-0.5), draw(1, tokens, outputs)
    scale = 16 / rank**0.5

    def run(forward: Callable[[Tensor, Tensor, Tensor], Tensor], wide: bool = False) -> list[Tensor]:
        leaves = [(tensor.double() if wide else tensor).detach().requires_grad_() for tensor in (x, a, b)]
        y = forward(*leaves)
        return [y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))]

    def formula(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = x @ weight.to(x.dtype).T + scale * (x @ a.mT) @ b.mT
        return y

    def peft(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        low = functional.linear(x, a[0])
        y: Tensor = functional.linear(x, weight) + functional.linear(low, b[0]) * scale
        return y

    contenders: dict[str, Work] = {
        "ours": partial(run, lambda x, a, b: lora_linear(x, weight, None, a, b, scale)),
        "torch + PEFT": partial(run, peft),
    }
    unsloth = _unsloth_linear()
    if unsloth is not None:
        contenders["Unsloth"] = partial(run, lambda x, a, b: unsloth.apply(x, weight, None, a[0], b[0], scale))
    return Contest(f"lora_linear {inputs}x{outputs} rank {rank}", partial(run, formula, wide=True), contenders)


def _head(tokens: int, width: int, vocabulary: int, device: str) -> Contest:
    hidden, head = _draw(1, tokens, width, device=device), _draw(vocabulary, width, scale=width**-0.5, device=device)
    targets = torch.randint(vocabulary, (1, tokens), device=device)
    weights = torch.ones(1, tokens, dtype=torch.bfloat16, device=device)

    def run(loss: Callable[[Tensor], Tensor], wide: bool = False) -> list[Tensor]:
        leaf = (hidden.float() if wide else hidden).detach().requires_grad_()
        value = loss(leaf)
        return [value.reshape(()), *torch.autograd.grad(value.sum(), leaf)]

    def plain(leaf: Tensor) -> Tensor:
        logits = leaf.flatten(0, 1) @ head.to(leaf.dtype).T
        return functional.cross_entropy(logits.float(), targets.flatten(), reduction="sum")

    contenders: dict[str, Work] = {
        "ours": partial(run, lambda leaf: weighted_cross_entropy(leaf, head, targets, weights)),
        "torch": partial(run, plain),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        contenders["Liger"] = partial(run, lambda leaf: liger(head, leaf.flatten(0, 1), targets.flatten()))
    return Contest(f"weighted_cross_entropy {width}x{vocabulary}", partial(run, plain, wide=True), contenders)


def _update(shape: ModelShape, rank: int, device: str) -> Contest:
    sizes = [rank * width for pair in shape.linears for width in pair] * shape.layers
    theta, gradient = (_draw(1, sum(sizes), device=device).float() for _ in range(2))
    moments = torch.zeros_like(theta), torch.zeros_like(theta)
    rates = torch.full((len(sizes),), 1e-3, device=device)
    options = {"betas": (0.9, 0.95), "weight_decay": 0.01}
    # Made once: torch's optimiser keeps its state between steps, and each of them moves as much memory.
    parts = [torch.nn.Parameter(part.clone()) for part in theta[0].split(sizes)]
    on_gpu = device == "cuda"
    optimizer = torch.optim.AdamW(parts, lr=1e-3, eps=1e-8, fused=on_gpu, capturable=on_gpu, **options)  # type: ignore[arg-type]
    for part, slope in zip(parts, gradient[0].split(sizes), strict=True):
        part.grad = slope.clone()

    def formula() -> list[Tensor]:
        g = gradient.double()
        # At the first step both corrected moments are the gradient's.
        return [theta - 1e-3 * (g / (g.square() + 1e-16).sqrt() + 0.01 * theta)]

    def ours() -> list[Tensor]:
        return [adamw_update(theta, gradient, moments, rates, sizes, 1, epsilon=1e-8, **options)[0]]  # type: ignore[arg-type]

    def fused() -> list[Tensor]:
        optimizer.step()
        return [torch.cat([part.detach() for part in parts])[None]]

    # The result is gathered for the comparison only: a copy more than the step itself.
    return Contest(f"adamw_update rank {rank}", formula, {"ours": ours, "torch, fused": fused})


def _unsloth_linear() -> type[torch.autograd.Function] | None:
    """Unsloth's LoRA linear with frozen weight, if the package and the function are there."""
    if importlib.util.find_spec("unsloth") is None:
        return None
    from unsloth.kernels.fast_lora import LoRA_W

    class Linear:
        @staticmethod
        def apply(x: Tensor, weight: Tensor, state: None, a: Tensor, b: Tensor, scale: float) -> Tensor:
            y: Tensor = LoRA_W.apply(x, weight, state, a, b, scale)
            return y

    return Linear  # type: ignore[return-value]


def _draw(*shape: int, scale: float = 1.0, device: str) -> Tensor:
    return (torch.randn(shape, device=device) * scale).to(torch.bfloat16)


def _error(actual: Tensor, expected: Tensor) -> float:
    wide, reference = actual.detach().double(), expected.detach().double()
    return float((wide - reference).norm() / reference.norm())


def _plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    operations = list(dict.fromkeys(row.operation for row in rows))
    contenders = list(dict.fromkeys(row.contender for row in rows))
    figure, axes = pyplot.subplots(figsize=(10, 0.5 + 0.4 * len(operations)))
    for index, contender in enumerate(contenders):
        own = [row for row in rows if row.contender == contender]
        places = [operations.index(row.operation) + (index - len(contenders) / 2) * 0.2 for row in own]
        times = [row.milliseconds if math.isnan(row.graph_milliseconds) else row.graph_milliseconds for row in own]
        axes.barh(places, times, height=0.18, label=contender)
    axes.set_yticks(range(len(operations)), operations)
    axes.set(
        xscale="log",
        xlabel="milliseconds, forward and backward, in a CUDA graph where it can be (median)",
        title=rows[0].device,
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure on a CUDA device.")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the document")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu.csv and gpu.png")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: needs a CUDA device, and torch finds none", file=sys.stderr)
        return 2
    from triton.testing import do_bench, do_bench_cudagraph

    torch.manual_seed(0)
    device = torch.cuda.get_device_name()
    rows = []
    for contest in contests(MODEL_SHAPES["Qwen2.5-0.5B"], arguments.tokens, "cuda"):
        errors = check(contest)
        for name, work in contest.contenders.items():
            milliseconds = float(do_bench(work, warmup=25, rep=200, return_mode="median"))
            graph = float("nan")
            if name not in _NOT_CAPTURED:
                graph = float(do_bench_cudagraph(work, rep=100, return_mode="median"))
            rows.append(Row(device, contest.operation, name, errors[name], milliseconds, graph))
            print("  ".join(str(value) for value in asdict(rows[-1]).values()), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_rows(arguments.out / "gpu.csv", rows)
    if importlib.util.find_spec("matplotlib"):
        _plot(rows, arguments.out / "gpu.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
