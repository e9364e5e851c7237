"""A decoder layer with merged adapters, forward and backward, against the formula under autograd, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels.decoder_layer import LAYER_MAPS, DecoderLayer, LayerState
from kernels.merged_projections import Adapter, FrozenProjections, MergedProjections
from kernels.sequences import Rotation, Sequences
from kernels.workspace import Workspace

HIDDEN, INNER, HEADS, KEY_VALUE_HEADS, HEAD, RANK = 12, 20, 4, 2, 6, 3
# Of sequences that lie one behind another.
LENGTHS = (5, 5, 3, 1)
SCALE, EPSILON = 0.7, 1e-2

SHAPES = {
    "q": (HEADS * HEAD, HIDDEN),
    "k": (KEY_VALUE_HEADS * HEAD, HIDDEN),
    "v": (KEY_VALUE_HEADS * HEAD, HIDDEN),
    "o": (HIDDEN, HEADS * HEAD),
    "gate": (INNER, HIDDEN),
    "up": (INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}


@dataclass
class Problem:
    """A layer of random weights, and adapters of some of its maps."""

    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    adapters: dict[str, tuple[Tensor, Tensor]]
    norms: tuple[Tensor, Tensor]
    angles: Tensor
    states: Tensor

    @classmethod
    def random(cls, adapted: tuple[str, ...], *, biased: bool) -> Problem:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        return cls(
            weights={name: 0.5 * draw(*shape) for name, shape in SHAPES.items()},
            biases={name: draw(SHAPES[name][0]) for name in ("q", "k", "v") if biased},
            adapters={name: (draw(RANK, SHAPES[name][1]), 0.3 * draw(SHAPES[name][0], RANK)) for name in adapted},
            norms=(1 + 0.1 * draw(HIDDEN), 1 + 0.1 * draw(HIDDEN)),
            angles=draw(max(LENGTHS), HEAD // 2),
            states=draw(sum(LENGTHS), HIDDEN),
        )

    @property
    def learned(self) -> list[Tensor]:
        return [tensor for adapter in self.adapters.values() for tensor in adapter]

    @property
    def sequences(self) -> list[Sequences]:
        rotation = Rotation(self.angles.cos()[:, None], self.angles.sin()[:, None])
        return [Sequences(0, 2, rotation), Sequences(10, 1, rotation.first(3)), Sequences(13, 1, rotation.first(1))]

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another type, rounded to it."""
        return Problem(
            weights={name: weight.to(dtype) for name, weight in self.weights.items()},
            biases={name: bias.to(dtype) for name, bias in self.biases.items()},
            adapters={name: (a.to(dtype), b.to(dtype)) for name, (a, b) in self.adapters.items()},
            norms=(self.norms[0].to(dtype), self.norms[1].to(dtype)),
            angles=self.angles.to(dtype),
            states=self.states.to(dtype),
        )

    def projections(self) -> Iterator[FrozenProjections]:
        for names in LAYER_MAPS:
            yield FrozenProjections([self.weights[n] for n in names], [self.biases.get(n) for n in names])

    def layer(self, *, merged: bool, products: torch.dtype | None = None) -> DecoderLayer:
        projections: list[FrozenProjections | MergedProjections] = []
        for names, frozen in zip(LAYER_MAPS, self.projections(), strict=True):
            if merged:
                projections.append(MergedProjections(frozen, SCALE, products or frozen.dtype))
                projections[-1].merge([self.adapters.get(name) for name in names], Workspace())
            else:
                projections.append(frozen)
        return DecoderLayer(tuple(projections), self.norms, EPSILON, HEADS, KEY_VALUE_HEADS, HEAD)

    def formula(self) -> Tensor:
        def project(name: str, x: Tensor) -> Tensor:
            y = x @ self.weights[name].T
            if name in self.biases:
                y = y + self.biases[name]
            if name in self.adapters:
                a, b = self.adapters[name]
                y = y + SCALE * (x @ a.T) @ b.T
            return y

        def normal(x: Tensor, which: int) -> Tensor:
            return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * self.norms[which]

        def rotate(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            cos, sin = self.angles[: x.shape[1]].cos(), self.angles[: x.shape[1]].sin()
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        def attend(x: Tensor) -> Tensor:
            q, k, v = (project(name, x).view(len(x), -1, HEAD).transpose(0, 1) for name in "qkv")
            k, v = (tensor.repeat_interleave(HEADS // KEY_VALUE_HEADS, 0) for tensor in (k, v))
            scores = rotate(q) @ rotate(k).mT / HEAD**0.5
            scores = scores + scores.new_full((len(x), len(x)), -torch.inf).triu(1)
            return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

        attended = torch.cat([attend(x) for x in normal(self.states, 0).split(LENGTHS)])
        middle = self.states + project("o", attended)
        y = normal(middle, 1)
        return middle + project("down", functional.silu(project("gate", y)) * project("up", y))


def _buffers(problem: Problem) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[tuple[Adapter, ...], ...]]:
    """Buffers for gradients, full of ones: they are added to."""
    named = {name: (torch.ones_like(a), torch.ones_like(b)) for name, (a, b) in problem.adapters.items()}
    return named, tuple(tuple(named.get(name) for name in names) for names in LAYER_MAPS)


def _fill(space: Workspace) -> None:
    space.reset()
    space.take(1 << 16, dtype=torch.float64).fill_(torch.nan)
    space.reset()


def _space() -> Workspace:
    """Memory full of NaN: what is not written in full shows it."""
    space = Workspace()
    _fill(space)
    return space


def _forward(problem: Problem, layer: DecoderLayer, *, keep: bool) -> tuple[Tensor, LayerState | None]:
    output = torch.empty_like(problem.states)
    scratch = _space()
    state = layer.forward(problem.states, problem.sequences, output, scratch, _space() if keep else None)
    # What is kept must not lie there.
    _fill(scratch)
    return output, state


def _run(problem: Problem, layer: DecoderLayer, slope: Tensor) -> list[Tensor]:
    """What `_differentiated` says, by the layer."""
    output, state = _forward(problem, layer, keep=True)
    named, buffers = _buffers(problem)
    assert state is not None
    to_states = layer.backward(slope.clone(), state, problem.sequences, buffers, _space(), last=None)
    assert to_states is not None
    return [output, to_states, *(buffer - 1 for pair in named.values() for buffer in pair)]


def _differentiated(problem: Problem, slope: Tensor) -> list[Tensor]:
    """Output of the formula, and its gradients along the states and all that is learned."""
    leaves = [problem.states, *problem.learned]
    for tensor in leaves:
        tensor.requires_grad_()
    output = problem.formula()
    return [output.detach(), *torch.autograd.grad(output, leaves, slope.to(output.dtype))]


def _slope(problem: Problem) -> Tensor:
    return torch.randn(problem.states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("adapted", [tuple(SHAPES), ("q", "v"), ("up",), ("o", "down")])
def test_output_and_gradients_are_those_of_the_formula(adapted: tuple[str, ...], biased: bool) -> None:
    problem = Problem.random(adapted, biased=biased)
    untouched = problem.states.clone()
    slope = _slope(problem)
    found = _run(problem, problem.layer(merged=True), slope)

    assert problem.states.equal(untouched)
    for one, other in zip(found, _differentiated(problem, slope), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("adapted", "last"), [(("q",), 0), (("o", "gate"), 1), (("gate", "down"), 2), (("down",), 3)])
def test_the_gradient_may_end_at_the_first_adapter(adapted: tuple[str, ...], last: int) -> None:
    problem = Problem.random(adapted, biased=False)
    layer = problem.layer(merged=True)
    gradients = []
    for end in (last, None):
        output, state = _forward(problem, layer, keep=True)
        named, buffers = _buffers(problem)
        assert state is not None
        to_states = layer.backward(torch.ones_like(output), state, problem.sequences, buffers, _space(), last=end)
        assert (to_states is None) == (end is not None)
        gradients.append([buffer for pair in named.values() for buffer in pair])
    for one, other in zip(*gradients, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("products", [torch.float64, torch.float32])
def test_rows_that_are_no_tokens_change_nothing(products: torch.dtype) -> None:
    problem = Problem.random(tuple(SHAPES), biased=True)
    layer, slope, tokens = problem.layer(merged=True, products=products), _slope(problem), len(problem.states)
    expected = _run(problem, layer, slope)
    problem.states, slope = (functional.pad(tensor, (0, 0, 0, 3)) for tensor in (problem.states, slope))
    output, to_states, *gradients = _run(problem, layer, slope)

    assert (to_states[tokens:] == 0).all()
    assert output.isfinite().all()
    for one, other in zip([output[:tokens], to_states[:tokens], *gradients], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_without_adapters_it_is_the_frozen_layer() -> None:
    problem = Problem.random((), biased=True)
    output, state = _forward(problem, problem.layer(merged=False), keep=False)
    assert state is None
    torch.testing.assert_close(output, problem.formula())
    torch.testing.assert_close(_forward(problem, problem.layer(merged=True), keep=False)[0], output)


@pytest.mark.parametrize("biased", [False, True])
def test_narrow_products_are_nearer_to_the_formula_than_a_narrow_layer(biased: bool) -> None:
    exact = Problem.random(tuple(SHAPES), biased=biased)
    problem = exact.to(torch.float32)
    slope = _slope(exact)
    found = _run(problem, problem.layer(merged=True, products=torch.bfloat16), slope.float())

    expected, narrow = (
        [tensor.double() for tensor in _differentiated(p, slope)] for p in (exact, exact.to(torch.bfloat16))
    )
    assert all(tensor.dtype == torch.float32 for tensor in found)
    ours, theirs = (sum(map(_relative_error, tensors, expected)) for tensors in (found, narrow))
    assert ours < theirs


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_narrow_products_without_adapters_are_near_the_frozen_layer() -> None:
    problem = Problem.random((), biased=True).to(torch.float32)
    output, _ = _forward(problem, problem.layer(merged=True, products=torch.bfloat16), keep=False)
    assert _relative_error(output, problem.formula()) < 1e-2
