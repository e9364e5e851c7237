"""Meta-training works: a tiny random model learns to write a document's pairs into an adapter and to answer from it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from meta_training.outer_loop import MetaParameters, OuterLoop
from perk.base_model import load_base_model
from perk.checkpoint import new_checkpoint
from perk.inner_loop import Encoding
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import InnerSettings, LoraSettings, PerkSettings

PAIRS = 4
KEYS = range(100, 140)
VALUES = range(200, 208)
PREFIX = 50
STEPS = 80


def draw_pairs(rng: random.Random) -> list[tuple[int, int]]:
    """Keys that differ, each with a value: a document that no one can guess."""
    return [(key, rng.choice(VALUES)) for key in rng.sample(KEYS, PAIRS)]


def as_segments(pairs: Sequence[tuple[int, int]]) -> list[Segment]:
    """One segment a pair. Its key belongs to the prefix: only the value can be learned."""
    return [Segment(ids=(PREFIX, key, value), prefix_tokens=2) for key, value in pairs]


def recall(adapted: AdaptedModel, settings: PerkSettings, meta: MetaParameters, rng: random.Random) -> float:
    """Share of values answered right, greedily, from the adapters of 20 documents never seen before."""
    documents = [draw_pairs(rng) for _ in range(20)]
    encoding = Encoding(
        adapted,
        None,
        settings.inner,
        meta.initial.detach(),
        meta.log_step_sizes.detach(),
        [as_segments(pairs) for pairs in documents],
        token_limit=1024,
        state_limit=1 << 20,
    )
    while not encoding.done:
        encoding.advance()
    theta = torch.stack([encoded.adapter for encoded in encoding.results()])
    prompts = torch.tensor([[PREFIX, key] for pairs in documents for key, _ in pairs])
    expected = torch.tensor([value for pairs in documents for _, value in pairs])
    with torch.no_grad(), adapted.bind(theta):
        last = adapted.upper_states(adapted.lower_states(prompts))[:, -1]
    answers = (last @ adapted.base.head.T).argmax(-1)
    return float((answers == expected).float().mean())


def test_after_meta_training_encoding_answers_what_could_not_be_answered_before(tiny_gpt2: Path) -> None:
    base = load_base_model(str(tiny_gpt2), device="cpu")
    settings = PerkSettings(
        lora=LoraSettings(rank=8, alpha=8, rank_stabilised=False),
        inner=InnerSettings(rule="rms", steps=2, step_size=2e-3, token_weighting=False),
    )
    adapted = AdaptedModel(base, settings.lora)
    meta = MetaParameters(new_checkpoint(adapted, settings, seed=0), base.head.shape[1])
    outer_loop = OuterLoop(adapted, settings.inner, unrolled=2, token_limit=1024, graph_tokens=1 << 20)
    optimiser = torch.optim.Adam(
        [{"params": [meta.initial], "lr": 1e-2}, {"params": [meta.log_step_sizes], "lr": 1e-2}]
    )

    before = recall(adapted, settings, meta, random.Random(1))
    rng = random.Random(0)
    for _ in range(STEPS):
        documents = [as_segments(draw_pairs(rng)) for _ in range(8)]
        outer_loop.backward(meta, documents, documents)
        torch.nn.utils.clip_grad_norm_([meta.initial, meta.log_step_sizes], 1.0)
        optimiser.step()
        optimiser.zero_grad()
    after = recall(adapted, settings, meta, random.Random(1))

    assert before <= 0.3  # one in eight is chance
    assert after >= 0.8
