"""Encoding a document on a CUDA device: seconds and memory, ours against `peft` + autograd + AdamW.

    python -m benchmarks.gpu_encode [--tokens 8192] [--rank 16] [--model Qwen2.5-0.5B] [--repeats 3] [--csv FILE]

The paper's inner loop: adapters on all layers, segments of 256 tokens, AdamW, 4 steps, the whole vocabulary, bfloat16.
Weights are random, of the model's shapes: time and memory do not depend on them. Both sides take the same micro-batches
and start from an adapter that changes nothing, so that their losses say whether they do the same.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.peft_fine_tuning import PeftFineTuning
from benchmarks.result import write_rows
from kernels.model_shapes import MODEL_SHAPES, ModelShape
from perk.base_model import BaseModel
from perk.batches import make_micro_batches
from perk.checkpoint import new_checkpoint
from perk.gradient_graphs import GradientGraphs
from perk.inner_loop import Encoding
from perk.liger import use_liger
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import InnerSettings, LoraSettings, PerkSettings

__all__ = ["Case", "Row", "main", "measure"]

_SEGMENT = 256
_HEAD = 64
_ALPHA = 16.0
_STEP_SIZE = 5e-5

# Encodes once; returns the mean NLL a token entering the first step and the last.
_Run = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Case:
    """What is encoded: a document of so many tokens, micro-batches of so many, adapters of a rank, some inner steps."""

    tokens: int
    micro_batch: int
    rank: int
    steps: int


@dataclass(frozen=True)
class Row:
    """A line of the CSV: median seconds of an encoding, most memory that torch held of the device during it in 10^9
    bytes, and the mean NLL a token entering its first and last step."""

    device: str
    contender: str
    tokens: int
    micro_batch: int
    rank: int
    steps: int
    seconds: float
    gigabytes: float
    loss_before: float
    loss_after: float


def measure(
    shape: ModelShape,
    case: Case,
    device: str,
    *,
    contenders: Sequence[str] = ("ours", "peft"),
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 3,
) -> list[Row]:
    """A row for each contender.

    Its seconds are the median of so many runs; one goes before, in which kernels are compiled and torch's allocator
    sees the largest sizes.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, shape.vocabulary, (case.tokens // _SEGMENT, _SEGMENT), generator=generator)
    segments = [Segment(tuple(row), prefix_tokens=1) for row in ids.tolist()]
    rows = []
    for name in contenders:
        run = _CONTENDERS[name](_random_base(shape, device, dtype), segments, case)
        before, after = run()
        _reset_memory(device)
        seconds = statistics.median(_seconds(run, device) for _ in range(repeats))
        peak = torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else float("nan")
        label = torch.cuda.get_device_name() if device == "cuda" else device
        rows.append(
            Row(label, name, **asdict(case), seconds=seconds, gigabytes=peak, loss_before=before, loss_after=after)
        )
        del run
    return rows


def _random_base(shape: ModelShape, device: str, dtype: torch.dtype) -> BaseModel:
    """A Qwen2 model of a shape with random weights."""
    heads = shape.hidden // _HEAD
    config = Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(shape.key_value // _HEAD, 1),
        vocab_size=shape.vocabulary,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    words = Tokenizer(WordLevel({"<end>": 0}, unk_token="<end>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    return BaseModel(shape.name, model, tokenizer, fingerprint="random", max_positions=_SEGMENT)


def _inner(case: Case) -> InnerSettings:
    return InnerSettings(rule="adamw", steps=case.steps, step_size=_STEP_SIZE, token_weighting=False)


def _ours(base: BaseModel, segments: Sequence[Segment], case: Case) -> _Run:
    use_liger(base)
    inner = _inner(case)
    settings = PerkSettings(lora=LoraSettings(rank=case.rank, alpha=_ALPHA), inner=inner)
    adapted = AdaptedModel(base, settings.lora)
    checkpoint = new_checkpoint(adapted, settings, seed=0)
    tensors = {name: tensor.to(base.device) for name, tensor in checkpoint.tensors.items()}
    graphs = GradientGraphs() if base.device.type == "cuda" else None

    def run() -> tuple[float, float]:
        encoding = Encoding(
            adapted,
            None,
            inner,
            tensors["initial"],
            tensors["log_step_sizes"],
            [segments],
            token_limit=case.micro_batch,
            state_limit=1 << 30,
            graphs=graphs,
        )
        while not encoding.done:
            encoding.advance()
        (result,) = encoding.results()
        return result.loss_before, result.loss_after

    return run


def _peft(base: BaseModel, segments: Sequence[Segment], case: Case) -> _Run:
    config = LoraConfig(r=case.rank, lora_alpha=int(_ALPHA), use_rslora=True, target_modules="all-linear")
    batches = make_micro_batches([segments], token_limit=case.micro_batch, pad_id=0)
    fine_tuning = PeftFineTuning(get_peft_model(base.model, config), _inner(case), batches)

    def run() -> tuple[float, float]:
        losses = fine_tuning.run()
        return losses[0], losses[-1]

    return run


_CONTENDERS = {"ours": _ours, "peft": _peft}


def _seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _reset_memory(device: str) -> None:
    if device == "cuda":
        # The model and the graphs of the row before refer to themselves.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_encode", description="Encode on a CUDA device.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192], help="tokens of the document")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[2048, 8192], help="tokens of a micro-batch")
    parser.add_argument("--rank", type=int, nargs="+", default=[16, 256], help="of the adapters")
    parser.add_argument("--steps", type=int, default=4, help="inner steps")
    parser.add_argument("--model", choices=sorted(MODEL_SHAPES), default="Qwen2.5-0.5B", help="whose shapes")
    parser.add_argument("--contenders", nargs="+", choices=sorted(_CONTENDERS), default=list(_CONTENDERS), help="who")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each, after one that compiles")
    parser.add_argument("--csv", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu_encode: needs a CUDA device, and torch finds none", file=sys.stderr)
        return 2
    rows: list[Row] = []
    shape, chosen = MODEL_SHAPES[arguments.model], {"contenders": arguments.contenders, "repeats": arguments.repeats}
    for tokens in arguments.tokens:
        for rank in arguments.rank:
            for micro_batch in arguments.micro_batch:
                case = Case(tokens, min(micro_batch, tokens), rank, arguments.steps)
                for row in measure(shape, case, "cuda", **chosen):
                    rows.append(row)
                    print("  ".join(str(value) for value in asdict(row).values()), flush=True)
    if arguments.csv is not None:
        write_rows(arguments.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
