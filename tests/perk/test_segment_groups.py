"""Groups of segments take turns: each moves the adapter by its own gradient, and the document is read once a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perk import PerkModel
from perk.segment import Segment
from perk.segment_groups import group_segments
from perk.settings import GroupSettings, RepeatSettings
from tests.perk.encoding_setup import (
    STEPS,
    Setup,
    assert_same,
    assert_same_alone,
    assert_same_however_cut,
    defined_loss,
    finish,
    progress_of,
)

# Of the documents of 5, 1 and 3 segments, the first has several groups.
TOKENS = 24
GROUPS = GroupSettings(step=2, tokens=TOKENS)
TWICE = RepeatSettings(step=2, most=1, loss=1e-9)
LONGER: dict[str, Any] = {"candidates": 8, "rivals": (2, 3), "groups": GROUPS, "repeat": TWICE}


@st.composite
def _segments(draw: st.DrawFn) -> list[Segment]:
    lengths = draw(st.lists(st.integers(1, 40), max_size=20))
    # Some are alike.
    return [Segment(ids=(draw(st.integers(1, 2)),) * length, prefix_tokens=0) for length in lengths]


def _ids(groups: Sequence[Sequence[Segment]]) -> list[list[tuple[int, ...]]]:
    return [sorted(segment.ids for segment in group) for group in groups]


@given(segments=_segments(), tokens=st.integers(1, 100), seed=st.randoms(use_true_random=False))
def test_each_segment_is_in_one_of_groups_of_a_size(segments: list[Segment], tokens: int, seed: Any) -> None:
    groups = group_segments(segments, tokens)
    assert sorted(ids for group in _ids(groups) for ids in group) == sorted(segment.ids for segment in segments)
    sizes = [sum(len(segment.ids) for segment in group) for group in groups]
    assert len(groups) == max(1, min(-(-sum(sizes) // tokens), len(segments)))
    assert max(sizes, default=0) - min(sizes, default=0) <= max((len(s.ids) for s in segments), default=0)
    shuffled = seed.sample(segments, len(segments))
    assert _ids(group_segments(shuffled, tokens)) == _ids(groups), "whatever their order"


def test_the_adapter_is_what_one_group_after_another_makes_of_it(setup: Setup, documents: list[list[Segment]]) -> None:
    (encoded,) = setup.encode(documents[:1], groups=GROUPS, epsilon=1e-12)
    theta = setup.initial.clone()
    dealt = group_segments(documents[0], TOKENS)
    assert len(dealt) > 1
    for step in range(STEPS):
        for group in dealt if step + 1 >= GROUPS.step else [documents[0]]:
            theta.requires_grad_()
            loss = defined_loss(setup, theta, group, torch.arange(512), weighted=True)
            (gradient,) = torch.autograd.grad(loss, theta)
            sizes = setup.adapted.layout.sizes
            moves = [part / part.square().mean().sqrt() for part in gradient.split(sizes)]
            rates = setup.log_step_sizes[step].exp()
            theta = theta.detach() - torch.cat([rate * move for rate, move in zip(rates, moves, strict=True)])
    torch.testing.assert_close(encoded.adapter, theta.float(), rtol=0, atol=1e-6)
    assert encoded.steps == STEPS


@pytest.mark.parametrize("limits", [{"tokens": 1_000}, {"tokens": TOKENS, "above": 80}])
def test_a_document_that_is_short_enough_is_read_whole(
    limits: dict[str, int], setup: Setup, documents: list[list[Segment]]
) -> None:
    assert max(sum(len(segment.ids) for segment in segments) for segments in documents) <= 80
    whole = {"step": 1, "stride": 4, **limits}
    grouped, ungrouped = setup.encode(documents, repeat=TWICE, groups=whole), setup.encode(documents, repeat=TWICE)
    for one, other in zip(grouped, ungrouped, strict=True):
        assert one.adapter.equal(other.adapter)


def test_a_document_of_numbered_entries_is_one_group(setup: Setup, documents: list[list[Segment]]) -> None:
    weighed = [replace(segment, weights=(5.0,) * segment.loss_tokens) for segment in documents[0]]
    (grouped,), (ungrouped,) = setup.encode([weighed], **LONGER), setup.encode([weighed], **LONGER | {"groups": None})
    assert grouped.adapter.equal(ungrouped.adapter)
    assert grouped.steps == STEPS


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_documents_together_have_the_adapters_they_have_one_by_one(
    rule: Literal["rms", "adamw"], stride: int, setup: Setup, documents: list[list[Segment]]
) -> None:
    options = LONGER | {"rule": rule, "groups": GROUPS.model_copy(update={"stride": stride})}
    more = Setup(setup.adapted, setup.weighting, setup.initial, setup.log_step_sizes[[0, 1, 1, 2]])
    assert_same_alone(more, documents, steps=4, **options)


def test_the_adapter_is_the_same_for_any_micro_batching(setup: Setup, documents: list[list[Segment]]) -> None:
    assert_same_however_cut(setup, documents, **LONGER)


def test_the_adapter_does_not_depend_on_the_order_of_the_segments(setup: Setup, documents: list[list[Segment]]) -> None:
    assert_same(setup.encode([documents[0][::-1]], **LONGER), setup.encode(documents[:1], **LONGER))


@pytest.mark.parametrize(("stride", "behind"), [(1, 6), (2, 3), (3, 2), (100, None)])
def test_of_the_steps_behind_the_repeated_one_a_document_of_groups_takes_as_many_fewer(
    stride: int, behind: int | None, setup: Setup, documents: list[list[Segment]]
) -> None:
    groups = len(group_segments(documents[0], TOKENS))
    behind = behind or -(-6 // groups)
    more = Setup(setup.adapted, setup.weighting, setup.initial, setup.log_step_sizes[[0, 1, *[2] * 6]])
    encoding = more.start(
        documents[:2], steps=8, repeat=TWICE, groups={"step": 2, "tokens": TOKENS, "stride": stride}, token_limit=30
    )
    progress = progress_of(encoding)
    assert progress == sorted(progress)
    assert [encoded.steps for encoded in encoding.results()] == [3 + behind, 3 + 6]
    assert encoding.step == encoding.steps == 9


def test_packed_into_merged_layers_the_adapter_is_that_of_the_modules(
    make_model: Callable[..., PerkModel], register: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only merged layers multiply in bfloat16, where this machine has it.
    monkeypatch.setenv("PERK_PRODUCTS", "float32")
    inner = {"rule": "rms", "steps": 3, "step_size": 2e-2, "groups": {"step": 1, "tokens": 64}}
    model = make_model(inner=inner)
    assert len(group_segments(model.split(register), 64)) > 1
    merged = model.encode(register)
    # Of two documents together none is merged.
    for encoded in finish(model.start_encoding([register, register])):
        torch.testing.assert_close(encoded.adapter, merged.adapter, rtol=1e-3, atol=1e-4)
