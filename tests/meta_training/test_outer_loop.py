"""The meta-gradient is the true one: finite differences for full unrolling, the definition for truncated unrolling.

In float64 on the tiny GPT-2, whose layer norm keeps that precision (Llama's computes in float32). `make test-cuda` runs
the finite differences on a GPU, where first-order passes are replayed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from meta_training.outer_loop import MetaParameters, OuterLoop
from perk.base_model import BaseModel, load_base_model
from perk.checkpoint import new_checkpoint
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import InnerSettings, LoraSettings, PerkSettings

DEVICE = os.environ.get("PERK_TEST_DEVICE", "cpu")
STEPS = 3
KEPT, REBUILT = 1_000_000, 0
# Less than two rows of each of two documents: the inner loop has several micro-batches.
TOKEN_LIMIT = 40


@dataclass(frozen=True)
class Problem:
    """Two documents of different lengths with questions, and random meta-parameters for them."""

    adapted: AdaptedModel
    plain: BaseModel
    inner: InnerSettings
    meta: MetaParameters
    documents: Sequence[Sequence[Segment]]
    questions: Sequence[Sequence[Segment]]

    def loop(self, unrolled: int, graph_tokens: int = KEPT) -> OuterLoop:
        return OuterLoop(
            self.adapted, self.inner, unrolled=unrolled, token_limit=TOKEN_LIMIT, graph_tokens=graph_tokens
        )

    @property
    def parameters(self) -> dict[str, list[Tensor]]:
        """What is learned, by kind."""
        kinds = {"initial": [self.meta.initial], "step sizes": [self.meta.log_step_sizes]}
        return kinds | ({"weighting": list(self.meta.weighting_parameters())} if self.meta.weighting else {})

    def gradients(self, unrolled: int, graph_tokens: int = KEPT) -> dict[str, Tensor]:
        """The meta-gradient by kind, each flattened."""
        for parameter in chain(*self.parameters.values()):
            parameter.grad = None
        self.loop(unrolled, graph_tokens).backward(self.meta, self.documents, self.questions)
        return {kind: _flat([p.grad for p in parameters]) for kind, parameters in self.parameters.items()}

    def answer_loss(self) -> float:
        """Answer loss after the inner loop, which does not depend on how much of it is unrolled."""
        return self.loop(unrolled=0).backward(self.meta, self.documents, self.questions).answer_loss


@pytest.fixture
def make_problem(tiny_gpt2: Path) -> Callable[..., Problem]:
    def make(**inner: Any) -> Problem:
        generator = torch.Generator().manual_seed(0)
        # AdamW turns small gradients around zero into a step of either sign; a large epsilon keeps it smooth.
        settings = InnerSettings(
            **{"steps": STEPS, "step_size": 0.02, "epsilon": 1e-2, "weight_decay": 0.1, "weighting_hidden": 8, **inner}
        )
        lora = LoraSettings(rank=2, alpha=2, first_layer=1)
        base, plain = (load_base_model(str(tiny_gpt2), device=DEVICE, dtype=torch.float64) for _ in range(2))
        adapted = AdaptedModel(base, lora)
        checkpoint = new_checkpoint(adapted, PerkSettings(lora=lora, inner=settings), seed=0)
        checkpoint.tensors["initial"] = 0.2 * torch.randn(adapted.layout.size, generator=generator)
        meta = MetaParameters(checkpoint, base.head.shape[1]).to(torch.device(DEVICE), torch.float64)
        with torch.no_grad():
            for parameter in [meta.log_step_sizes, *meta.weighting_parameters()]:
                parameter.add_(0.3 * _random(parameter, generator))

        def segment(length: int, prefix: int) -> Segment:
            return Segment(tuple(torch.randint(2, 512, (length,), generator=generator).tolist()), prefix)

        # Each has a power of two of loss tokens, so that one over their number is exact in float32 too.
        documents = [[segment(11, 2), segment(9, 2)], [segment(9, 1)]]
        questions = [[segment(7, 3)], [segment(5, 3), segment(8, 2)]]
        return Problem(adapted, plain, settings, meta, documents, questions)

    return make


@pytest.mark.parametrize("graph_tokens", [KEPT, REBUILT], ids=["kept", "rebuilt"])
@pytest.mark.parametrize("candidates", [None, 5])
@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_with_full_unrolling_it_equals_finite_differences(
    rule: str, candidates: int | None, graph_tokens: int, make_problem: Callable[..., Problem]
) -> None:
    problem = make_problem(rule=rule, candidates=candidates)
    gradients = problem.gradients(STEPS, graph_tokens)
    generator = torch.Generator().manual_seed(1)
    for kind, parameters in problem.parameters.items():
        for _ in range(2):
            directions = [_random(parameter, generator) for parameter in parameters]
            norm = _flat(directions).norm()
            directions = [direction / norm for direction in directions]
            slope = float(gradients[kind] @ _flat(directions))
            assert slope == pytest.approx(_central_difference(problem, parameters, directions), rel=1e-6, abs=1e-9), (
                kind
            )


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _central_difference(problem: Problem, parameters: list[Tensor], directions: list[Tensor]) -> float:
    """Slope of the answer loss, to fourth order."""
    losses = {}
    for distance in (-2e-3, -1e-3, 1e-3, 2e-3):
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data.add_(direction, alpha=distance)
        losses[distance] = problem.answer_loss()
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data.sub_(direction, alpha=distance)
    return (8 * (losses[1e-3] - losses[-1e-3]) - (losses[2e-3] - losses[-2e-3])) / 12e-3


@pytest.mark.parametrize("graph_tokens", [KEPT, REBUILT], ids=["kept", "rebuilt"])
@pytest.mark.parametrize("unrolled", range(STEPS))
@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_with_truncated_unrolling_it_equals_its_definition(
    rule: str, unrolled: int, graph_tokens: int, make_problem: Callable[..., Problem]
) -> None:
    problem = make_problem(rule=rule)
    expected = _defined_gradients(problem, unrolled)
    for kind, gradient in problem.gradients(unrolled, graph_tokens).items():
        torch.testing.assert_close(gradient, expected[kind], rtol=1e-8, atol=1e-12)


def test_without_token_weighting_it_equals_its_definition(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(rule="rms", token_weighting=False)
    expected = _defined_gradients(problem, unrolled=2)
    gradients = problem.gradients(unrolled=2)
    assert gradients.keys() == {"initial", "step sizes"}
    for kind, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[kind], rtol=1e-8, atol=1e-12)


def test_each_unrolled_step_changes_it(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(rule="rms")
    initial = [problem.gradients(unrolled)["initial"] for unrolled in range(STEPS + 1)]
    for fewer, more in pairwise(initial):
        assert (more - fewer).norm() > 1e-3 * fewer.norm()


def test_unrolling_more_steps_than_there_are_is_unrolling_all(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(rule="rms")
    torch.testing.assert_close(problem.gradients(STEPS + 5), problem.gradients(STEPS), rtol=0, atol=0)


def test_it_adds_to_the_gradient_that_is_there(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(rule="rms")
    once = problem.gradients(unrolled=1)
    problem.loop(unrolled=1).backward(problem.meta, problem.documents, problem.questions)
    for kind, parameters in problem.parameters.items():
        torch.testing.assert_close(_flat([p.grad for p in parameters]), 2 * once[kind])


def test_the_measured_losses_are_those_of_the_definition(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(rule="adamw")
    measured = problem.loop(unrolled=1).backward(problem.meta, problem.documents, problem.questions)
    answer_losses, inner_losses = _defined_losses(problem, unrolled=1)
    assert measured.answer_loss == pytest.approx(answer_losses.mean().item(), rel=1e-9)
    assert measured.loss_before == pytest.approx(inner_losses[0].mean().item(), rel=1e-9)
    assert measured.loss_after == pytest.approx(inner_losses[-1].mean().item(), rel=1e-9)


def test_a_question_is_exact_if_all_its_tokens_are_the_likeliest(make_problem: Callable[..., Problem]) -> None:
    # Steps too small to change anything: the base itself answers.
    problem = make_problem(rule="rms", step_size=1e-9)
    problem.meta.initial.data.zero_()
    prompts = [(5, 6, 7), (8, 9, 10, 11), (12, 13), (14, 15)]
    right = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(3):
            ids.append(int(problem.plain.model(torch.tensor([ids])).logits[0, -1].argmax()))
        right.append(tuple(ids))
    one_wrong = (*right[3][:-1], (right[3][-1] + 1) % 512)
    segments = [Segment(ids, len(p)) for ids, p in zip([*right[:3], one_wrong], prompts, strict=True)]
    questions = [segments[:1], segments[1:]]
    assert problem.loop(unrolled=0).backward(problem.meta, problem.documents, questions).exact == 3 / 4


def _defined_gradients(problem: Problem, unrolled: int) -> dict[str, Tensor]:
    with sdpa_kernel([SDPBackend.MATH]):  # attention that can be differentiated twice
        loss = _defined_losses(problem, unrolled)[0].mean()
        gradients = torch.autograd.grad(loss, list(chain(*problem.parameters.values())), materialize_grads=True)
    parts = iter(gradients)
    return {kind: _flat([next(parts) for _ in parameters]) for kind, parameters in problem.parameters.items()}


def _defined_losses(problem: Problem, unrolled: int) -> tuple[Tensor, list[Tensor]]:
    """The method as the paper writes it, one document after the other, in plain autograd.

    A step that is cut moves θ by a constant but for its own step sizes: its Jacobian in θ is the identity.

    Returns:
        Answer loss of each document ``[D]``, and inner loss entering each step, ``[D]`` each.
    """
    settings, meta = problem.inner, problem.meta
    sizes = torch.tensor(problem.adapted.layout.sizes)
    answers: list[Tensor] = []
    inner: list[list[Tensor]] = [[] for _ in range(STEPS)]
    for document, questions in zip(problem.documents, problem.questions, strict=True):
        theta: Tensor = meta.initial
        first = second = torch.zeros_like(theta)
        for step in range(STEPS):
            weights = [_token_weights(problem, segment) for segment in document]
            cut = step < STEPS - unrolled
            start = theta.detach().requires_grad_() if cut else theta
            loss = _mean_nll(problem, start, document, weights)
            (gradient,) = torch.autograd.grad(loss, start, create_graph=not cut)
            rates = meta.log_step_sizes[step].exp().repeat_interleave(sizes)
            if settings.rule == "rms":
                direction = torch.cat(
                    [g / (g.square().mean() + settings.epsilon**2).sqrt() for g in gradient.split(sizes.tolist())]
                )
            else:
                beta1, beta2 = settings.betas
                first = beta1 * first + (1 - beta1) * gradient
                second = beta2 * second + (1 - beta2) * gradient**2
                mean = first / (1 - beta1 ** (step + 1))
                spread = (second / (1 - beta2 ** (step + 1)) + settings.epsilon**2).sqrt()
                direction = mean / spread + settings.weight_decay * start
            theta = theta - rates * (direction.detach() if cut else direction)
            inner[step].append(loss.detach())
        unweighted = [torch.ones(len(q.ids) - q.prefix_tokens, dtype=theta.dtype) for q in questions]
        answers.append(_mean_nll(problem, theta, questions, unweighted))
    return torch.stack(answers), [torch.stack(losses) for losses in inner]


def _token_weights(problem: Problem, segment: Segment) -> Tensor:
    count = len(segment.ids) - segment.prefix_tokens
    if problem.meta.weighting is None:
        return torch.ones(count, dtype=torch.float64)
    states = problem.plain.backbone(torch.tensor([segment.ids])).last_hidden_state[0, segment.prefix_tokens :]
    weights: Tensor = problem.meta.weighting(states)
    return weights


def _mean_nll(problem: Problem, theta: Tensor, segments: Sequence[Segment], weights: Sequence[Tensor]) -> Tensor:
    """Weighted NLL per token under the base with merged weights W + s B A."""
    layout, scale = problem.adapted.layout, problem.adapted.settings.scale
    merged = {}
    for module, (a, b) in zip(layout.modules, layout.views(theta[None]), strict=True):
        frozen = problem.plain.model.get_parameter(f"{module}.weight")
        merged[f"{module}.weight"] = frozen + scale * (b[0] @ a[0]).T  # GPT-2 stores its weights transposed
    total = theta.new_zeros(())
    for segment, weight in zip(segments, weights, strict=True):
        ids = torch.tensor([segment.ids])
        logits = functional_call(problem.plain.model, merged, (ids,)).logits[0, segment.prefix_tokens - 1 : -1]
        nll = functional.cross_entropy(logits, ids[0, segment.prefix_tokens :], reduction="none")
        total = total + (weight * nll).sum()
    return total / sum(len(weight) for weight in weights)


def _flat(tensors: Sequence[Tensor | None]) -> Tensor:
    present = [tensor for tensor in tensors if tensor is not None]
    assert len(present) == len(tensors), "a parameter has no gradient"
    return torch.cat([tensor.detach().flatten() for tensor in present])


@pytest.mark.parametrize("graph_tokens", [KEPT, REBUILT], ids=["kept", "rebuilt"])
def test_losses_after_several_steps_add_their_gradients(
    graph_tokens: int, make_problem: Callable[..., Problem]
) -> None:
    problem = make_problem(rule="adamw")
    weights = {2: 0.25, 3: 0.75}
    together = OuterLoop(
        problem.adapted,
        problem.inner,
        unrolled=STEPS,
        token_limit=TOKEN_LIMIT,
        graph_tokens=graph_tokens,
        step_losses=(1.0, 3.0),
    )
    expected: dict[str, Tensor] = {}
    for steps, weight in weights.items():
        fewer = problem.inner.model_copy(update={"steps": steps})
        alone = OuterLoop(problem.adapted, fewer, unrolled=steps, token_limit=TOKEN_LIMIT, graph_tokens=KEPT)
        for kind, gradient in _gradients_of(problem, alone).items():
            expected[kind] = expected.get(kind, 0) + weight * gradient
    torch.testing.assert_close(_gradients_of(problem, together), expected, rtol=1e-8, atol=1e-12)


def test_first_order_leaves_out_the_derivative_of_the_inner_gradients(make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(rule="rms")
    loop = OuterLoop(
        problem.adapted,
        problem.inner,
        unrolled=STEPS,
        token_limit=TOKEN_LIMIT,
        graph_tokens=KEPT,
        first_order=True,
    )
    # The RMS rule subtracts a step from the parameters: without second derivatives the adjoint passes it unchanged.
    first_order, cut = _gradients_of(problem, loop), problem.gradients(0)
    for kind in ("initial", "step sizes"):
        torch.testing.assert_close(first_order[kind], cut[kind])
    assert not first_order["weighting"].any()


def _gradients_of(problem: Problem, loop: OuterLoop) -> dict[str, Tensor]:
    for parameter in chain(*problem.parameters.values()):
        parameter.grad = None
    loop.backward(problem.meta, problem.documents, problem.questions)
    return {kind: _flat([p.grad for p in parameters]) for kind, parameters in problem.parameters.items()}
