"""Encoding a document against `peft` + autograd + AdamW on the CPU: the same adapter, steps and tokens, in one run.

Both sides take the same segments and as many steps, each over the whole document (whatever `inner.repeat` and
`inner.groups` say), in turn, and the medians are compared. Four things differ:

- Micro-batches: ours lie without padding where the adapter is merged; theirs are filled up to one length, and hold
  segments of about one length, at most as many tokens as ours.
- Update rule: ours is the checkpoint's, with a learned step size for each tensor and step; theirs `torch.optim.AdamW`.
- Token weighting: where the checkpoint has one, ours also pays a pass of the base model for the weights.
- Vocabulary: the checkpoint's inner loss may let only `inner.candidates` frequent ids and the document's own compete;
  theirs takes the whole vocabulary. ``full_vocabulary_seconds`` is ours with the whole vocabulary too. Rivals that
  join them (`inner.rivals`) take time, and are not among the operations that are counted.

By default the adapter and the number of inner steps are the checkpoint's. With another rank, or on all layers, the
adapter is one before meta-training, and all else stays as the checkpoint has it. Both sides take time in proportion to
the steps but for what comes before the first one, so a few of them say about a long document what all would.

Theirs computes in float32, and where our large products are in bfloat16 (`kernels.product_dtype`) once more with a base
in bfloat16: its adapters and their optimiser stay in float32, as PEFT loads them.

Ours includes cutting the text into segments and planning; theirs gets the micro-batches ready-made.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.document import generate_document
from benchmarks.flops import count_encoding_flops, measure_product_rate
from benchmarks.peak_memory import PeakMemory
from benchmarks.peft_fine_tuning import PeftFineTuning
from benchmarks.result import print_result
from perk.base_model import load_base_model
from perk.batches import MicroBatch
from perk.checkpoint import Checkpoint, new_checkpoint
from perk.errors import InvalidInput
from perk.inner_loop import Encoding
from perk.inner_loss import InnerLoss
from perk.lora import AdaptedModel
from perk.perk_model import PerkModel
from perk.segment import Segment
from perk.settings import InnerSettings, LoraSettings

# Steps of each side before the timed ones: ours have multiplied in both types then (`perk.inner_loop`).
_UNTIMED_STEPS = 2

__all__ = ["count_candidates", "main", "plan_batches", "run", "start_encoding"]


def run(
    tokens: int = 1024,
    checkpoint: str = "default",
    repeats: int = 3,
    *,
    all_layers: bool = False,
    rank: int | None = None,
    steps: int | None = None,
    memory_budget: int | None = None,
) -> dict[str, float]:
    """Measure.

    Args:
        tokens: length of the document, prefixes of segments not counted.
        checkpoint: folder, or the name of a shipped one.
        repeats: timed runs of each side; two steps of each go before, untimed.
        all_layers: put adapters on all layers, wherever the checkpoint begins.
        rank: of the adapters, if not the checkpoint's.
        steps: the first so many of the checkpoint's inner steps; None: all.
        memory_budget: as in `PerkModel.start_encoding`; it bounds the micro-batches of both sides.

    Returns:
        - ``tokens``;
        - ``encode_seconds``, ``peft_seconds``, ``full_vocabulary_seconds``: medians;
        - ``ratio``: ``peft_seconds / encode_seconds``, above 1 where ours is faster;
        - ``peft_bfloat16_seconds``: median, with a base in bfloat16; only where our products are in bfloat16;
        - ``gflops``: 10^9 operations a second of our encoding (`benchmarks.flops` says which count: those that run);
        - ``gemm_fraction``: those over the operations a second of a large matrix product in the type of ours;
        - ``peak_mb``: largest resident memory during our encoding, the base model included, in 10^6 bytes; measured
          before the other side is loaded.

    Raises:
        InvalidInput: `tokens` or `repeats` is not positive, or the checkpoint has fewer `steps`.
        PerkError: the checkpoint or its base cannot be loaded.
    """
    if repeats < 1:
        raise InvalidInput("repeats", str(repeats), "at least 1")
    model = _load(checkpoint, all_layers=all_layers, rank=rank, steps=steps)
    inner = model.settings.inner.model_copy(update={"repeat": None, "groups": None})
    full_vocabulary = inner.model_copy(update={"candidates": None})
    text = generate_document(model, tokens)
    segments = model.split(text)
    merges = start_encoding(model, segments, inner, memory_budget).merges
    products = model.adapted.product_dtype if merges else model.base.dtype
    first_steps = inner.model_copy(update={"steps": min(inner.steps, _UNTIMED_STEPS)})
    with PeakMemory() as peak:
        _encode(model, text, first_steps, memory_budget)
    batches = plan_batches(model, segments, memory_budget, packed=False)
    sides = {"peft_seconds": PeftFineTuning.of(model, batches)}
    if products == torch.bfloat16:
        sides["peft_bfloat16_seconds"] = PeftFineTuning.of(model, batches, products)
    for side in sides.values():
        side.run(_UNTIMED_STEPS)
    work: dict[str, Callable[[], object]] = {
        "encode_seconds": lambda: _encode(model, text, inner, memory_budget),
        "full_vocabulary_seconds": lambda: _encode(model, text, full_vocabulary, memory_budget),
        **{name: side.run for name, side in sides.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    product_rates = []
    for _ in range(repeats):
        for name, task in work.items():
            seconds[name].append(_seconds(task))
        product_rates.append(measure_product_rate(products))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    flops = count_encoding_flops(
        model.adapted,
        model.weighting,
        plan_batches(model, segments, memory_budget, packed=merges),
        steps=inner.steps,
        candidates=count_candidates(model, segments),
        merged=merges,
    )
    rate = flops.total / medians["encode_seconds"]
    return {
        "tokens": tokens,
        **medians,
        "ratio": medians["peft_seconds"] / medians["encode_seconds"],
        "gflops": rate / 1e9,
        "gemm_fraction": rate / max(product_rates),
        "peak_mb": peak.megabytes,
    }


def main(
    tokens: int,
    checkpoint: str,
    as_json: bool,
    *,
    repeats: int = 3,
    all_layers: bool = False,
    rank: int | None = None,
    steps: int | None = None,
    memory_budget: int | None = None,
) -> None:
    """Encode a document, and fine-tune on it with peft, autograd and AdamW in the same run."""
    result = run(
        tokens, checkpoint, repeats, all_layers=all_layers, rank=rank, steps=steps, memory_budget=memory_budget
    )
    print_result(result, as_json=as_json)


def start_encoding(
    model: PerkModel, segments: Sequence[Segment], inner: InnerSettings, memory_budget: int | None = None
) -> Encoding:
    """Plan an encoding under other settings of the inner loop than the checkpoint's own."""
    tensors = model.checkpoint.tensors
    token_limit, state_limit = model.encoding_limits(1, memory_budget)
    return Encoding(
        model.adapted,
        model.weighting,
        inner,
        tensors["initial"],
        tensors["log_step_sizes"],
        [segments],
        token_limit=token_limit,
        state_limit=state_limit,
    )


def plan_batches(
    model: PerkModel, segments: Sequence[Segment], memory_budget: int | None = None, *, packed: bool
) -> list[MicroBatch]:
    """The micro-batches of `start_encoding`, `packed` where it merges; else filled up, as modules take them."""
    token_limit, _ = model.encoding_limits(1, memory_budget)
    return InnerLoss(model.adapted, [segments], token_limit=token_limit, packed=packed).batches


def _load(checkpoint: str, *, all_layers: bool, rank: int | None, steps: int | None) -> PerkModel:
    model = PerkModel.load(checkpoint, device="cpu")
    adapter_changes = ({"first_layer": 0} if all_layers else {}) | ({} if rank is None else {"rank": rank})
    if not adapter_changes and steps is None:
        return model
    learned = model.settings.inner.steps
    if steps is not None and not 1 <= steps <= learned:
        raise InvalidInput("steps", str(steps), f"1 to {learned}, the inner steps of checkpoint {checkpoint}")
    lora = LoraSettings.model_validate(model.settings.lora.model_dump() | adapter_changes)
    inner = model.settings.inner.model_copy(update={"steps": steps or learned})
    settings = model.settings.model_copy(update={"lora": lora, "inner": inner})
    if not adapter_changes:
        tensors = model.checkpoint.tensors
        first = tensors | {"log_step_sizes": tensors["log_step_sizes"][: inner.steps]}
        return PerkModel(model.base, Checkpoint(model.checkpoint.name, settings, first), adapted=model.adapted)
    base = load_base_model(settings.base.source, device="cpu")
    adapted = AdaptedModel(base, lora)
    return PerkModel(base, new_checkpoint(adapted, settings, seed=0), adapted=adapted)


def _encode(model: PerkModel, text: str, inner: InnerSettings, memory_budget: int | None) -> None:
    encoding = start_encoding(model, model.split(text), inner, memory_budget)
    while not encoding.done:
        encoding.advance()
    encoding.results()


def count_candidates(model: PerkModel, segments: Sequence[Segment]) -> int:
    """Rows of the LM head that compete in our inner loss."""
    vocabulary: int = model.base.head.shape[0]
    candidates = model.settings.inner.candidates
    if candidates is None or candidates >= vocabulary:
        return vocabulary
    return len({token for segment in segments for token in segment.ids}.union(range(candidates)))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
