"""What is not learned yet takes a step again, and what tokens are mistaken for is learned to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from perk import PerkModel
from perk.inner_loss import InnerLoss
from perk.segment import Segment
from perk.settings import RepeatSettings
from tests.perk.encoding_setup import (
    EVERYTHING,
    STEPS,
    Setup,
    assert_same,
    assert_same_alone,
    assert_same_however_cut,
    defined_loss,
    progress_of,
)

# Documents enter the second step with losses of 14 to 24: one has been learned by then, and the others need more steps.
UNTIL_LEARNED = RepeatSettings(step=2, most=9, loss=18.5)
LONGER: dict[str, Any] = {"candidates": 8, "rivals": (2, 3), "repeat": UNTIL_LEARNED}


def test_a_step_taken_again_is_one_of_a_longer_schedule(setup: Setup, documents: list[list[Segment]]) -> None:
    (repeated,) = setup.encode(documents[:1], repeat=RepeatSettings(step=2, most=2, loss=1e-9))
    longer = Setup(setup.adapted, setup.weighting, setup.initial, setup.log_step_sizes[[0, 1, 1, 1, 2]])
    assert_same([repeated], longer.encode(documents[:1], steps=5))
    assert repeated.steps == 5


def test_it_is_taken_until_the_document_is_learned(setup: Setup, documents: list[list[Segment]]) -> None:
    encoding = setup.start(documents[:1], **LONGER)
    losses = []
    while not encoding.done:
        encoding.advance()
        losses += [encoding.loss[0]] if len(losses) < encoding.step else []
    second = losses[1:-1]
    assert len(second) > 2
    assert min(second[:-1]) >= UNTIL_LEARNED.loss > second[-1]
    assert [encoded.steps for encoded in encoding.results()] == [len(losses)]


def test_a_document_of_numbered_entries_takes_every_step_once(setup: Setup, documents: list[list[Segment]]) -> None:
    first, other = documents[:2]
    weighed = [replace(segment, weights=(5.0,) * segment.loss_tokens) for segment in first[:1]]
    encoded = setup.encode([[*weighed, *first[1:]], other], repeat=RepeatSettings(step=2, most=4, loss=1e-9))
    assert [document.steps for document in encoded] == [STEPS, STEPS + 4]


@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_documents_together_have_the_adapters_they_have_one_by_one(
    rule: Literal["rms", "adamw"], setup: Setup, documents: list[list[Segment]]
) -> None:
    steps = assert_same_alone(setup, documents, rule=rule, **LONGER)
    assert len(set(steps)) == 3, "documents that wait for no other show nothing"


def test_the_adapter_is_the_same_for_any_micro_batching(setup: Setup, documents: list[list[Segment]]) -> None:
    assert_same_however_cut(setup, documents, **LONGER)


def test_progress_stands_still_and_does_not_go_back(setup: Setup, documents: list[list[Segment]]) -> None:
    encoding = setup.start(documents, token_limit=30, **LONGER)
    batches = len(InnerLoss(setup.adapted, documents, token_limit=30).batches)
    progress = progress_of(encoding)
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0.0, 1.0)
    assert encoding.steps == encoding.step == max(encoded.steps for encoded in encoding.results()) > STEPS
    # States once, rivals twice, and a pass for each step.
    assert len(progress) - 1 == batches * (3 + encoding.steps)


def test_a_rival_is_the_likeliest_wrong_token_of_the_whole_vocabulary(
    setup: Setup, documents: list[list[Segment]]
) -> None:
    inner = InnerLoss(setup.adapted, documents, candidates=8, token_limit=30)
    prepared = [inner.prepare(batch) for batch in inner.batches]
    theta = setup.initial.expand(len(documents), -1)
    rivals = [inner.rivals(theta, ready) for ready in prepared]

    expected: list[set[int]] = []
    for segments in documents:
        expected.append(set())
        for segment in segments:
            ids = torch.tensor([segment.ids])
            with setup.adapted.bind(setup.initial[None]):
                logits = setup.adapted.base.model(ids).logits[0, :-1]
            logits[torch.arange(len(logits)), ids[0, 1:]] = -torch.inf
            expected[-1].update(logits.argmax(-1)[segment.prefix_tokens - 1 :].tolist())
    found: list[set[int]] = [set() for _ in documents]
    for ready, of_batch in zip(prepared, rivals, strict=True):
        for document, ids in zip(ready.batch.members.tolist(), of_batch, strict=True):
            found[document].update(ids.tolist())
    assert found == expected

    losses = torch.zeros(len(documents), dtype=theta.dtype)
    for ready in inner.admit(rivals, prepared):
        losses += inner.add_gradient(theta, ready, inner.weights(ready), torch.zeros_like(theta))
    for loss, segments, admitted in zip(losses, documents, expected, strict=True):
        own = {token for segment in segments for token in segment.ids}
        assert admitted - own - set(range(8)), "some are new"
        competing = torch.tensor(sorted({*range(8), *own, *admitted}))
        wanted = defined_loss(setup, setup.initial, segments, competing, weighted=False)
        assert float(loss) == pytest.approx(float(wanted), rel=1e-6)


def test_without_candidates_there_are_no_rivals(setup: Setup, documents: list[list[Segment]]) -> None:
    assert_same(setup.encode(documents, rivals=(2,)), setup.encode(documents))


def test_packed_into_merged_layers_rivals_are_those_of_the_modules(
    make_model: Callable[..., PerkModel], register: str
) -> None:
    model = make_model(inner={"steps": 2, "candidates": 16})
    segments = [model.split(register)]
    theta = model.start_encoding([register])._theta
    merged = model.adapted.start_merging(torch.float32)
    merged.merge(theta)
    packed, padded = (
        InnerLoss(model.adapted, segments, candidates=16, token_limit=EVERYTHING, packed=p) for p in (True, False)
    )
    (found,) = packed.rivals(theta, packed.prepare(packed.batches[0]), merged=merged)
    (expected,) = padded.rivals(theta, padded.prepare(padded.batches[0]))
    assert found.tolist() == expected.tolist()


def test_a_longer_document_takes_more_steps_through_the_model(
    make_model: Callable[..., PerkModel], register: str
) -> None:
    inner = {"rule": "rms", "steps": 3, "step_size": 2e-2, "candidates": 16, "rivals": (2,)}
    once = make_model(inner=inner).encode(register)
    repeat = RepeatSettings(step=2, most=20, loss=0.8 * once.loss_after)
    encoded = make_model(inner=inner | {"repeat": repeat}).encode(register)
    assert 3 < encoded.steps < 23
    assert encoded.loss_after < once.loss_after
