"""Meta-training: take outer steps, log, save, resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from meta_training.curriculum import Curriculum, Draw
from meta_training.document_tokens import DocumentTokens
from meta_training.evaluate import score_documents
from meta_training.in_context import InContextLoop
from meta_training.outer_loop import MetaParameters, OuterLoop, OuterResult
from meta_training.processes import Processes, join_processes
from meta_training.rate_schedule import rate_share
from meta_training.run_state import RunState, has_state
from meta_training.running_mean import RunningMean
from meta_training.settings import OuterSettings, TrainSettings, read_settings
from meta_training.stop_signals import stop_signals
from meta_training.tasks import Document
from meta_training.training_log import TrainingLog
from perk import PerkModel
from perk.base_model import BaseModel, load_base_model
from perk.checkpoint import Checkpoint, new_checkpoint
from perk.errors import InvalidInput, PerkError
from perk.lora import AdaptedModel
from perk.readers import READERS
from perk.settings import BaseSettings, PerkSettings

__all__ = ["DivergenceError", "Trainer", "run_training"]

# Beside the newest checkpoint: the one that scored best on development data.
_BEST = "best"


class DivergenceError(PerkError):
    """The loss or its gradient is no longer finite; the step's data is saved beside the log."""


class Trainer:
    """One run. All randomness of a step comes from (seed, step), so that a resumed run goes on as if never stopped."""

    def __init__(self, settings: TrainSettings, base: BaseModel, processes: Processes | None = None) -> None:
        """Set up.

        Args:
            settings: of the run.
            base: loaded for this run alone, as adapters are attached to it.
            processes: among which the documents of a step are split; None: this one takes them all.

        Raises:
            InvalidInput: a task, layer or module that is not there.
        """
        self.settings = settings
        self.best_score = -1.0
        self._processes = processes or Processes()
        self._log = TrainingLog(settings.output, tensorboard=settings.tensorboard)
        self.base = base
        self.step = 0
        self._seconds = 0.0
        self._in_context = settings.method == "ft-icr"
        # Nothing weighs the tokens of a prompt.
        inner = settings.inner.model_copy(update={"token_weighting": False}) if self._in_context else settings.inner
        self._perk_settings = PerkSettings(
            in_context=self._in_context,
            base=BaseSettings(source=settings.base, fingerprint=base.fingerprint),
            lora=settings.lora,
            inner=inner,
            segments=settings.segments,
            templates=settings.templates,
        )
        self._adapted = AdaptedModel(base, settings.lora)
        fresh = new_checkpoint(self._adapted, self._perk_settings, seed=settings.seed)
        self.meta = MetaParameters(fresh, base.head.shape[1]).to(base.device)
        self._outer_loop = self._loop(settings.outer)
        self._parameters = [self.meta.initial]
        if not self._in_context:
            self._parameters += [self.meta.log_step_sizes, *self.meta.weighting_parameters()]
        self._optimiser = _optimiser(self.meta, settings.outer, in_context=self._in_context)
        self._kept: dict[str, Tensor] = {}
        outer = settings.outer
        self._mean = RunningMean(self.meta.tensors(), outer.mean_steps) if outer.mean_steps else None
        self.curriculum = Curriculum(
            settings,
            count_tokens=self._count_tokens,
            documents=outer.documents * outer.accumulation * self._processes.count,
        )
        self._dev_documents = self.curriculum.draw_dev(settings.evaluate_documents) if settings.evaluate_every else []

    def run(self) -> None:
        """Train to the last step, or to a SIGTERM or SIGINT, after which the state is saved.

        Raises:
            DivergenceError: a loss or gradient is not finite.
        """
        total = self.settings.total_steps
        self.settings.output.mkdir(parents=True, exist_ok=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with stop_signals() as stop, Progress(*columns) as progress:
            bar = progress.add_task("meta-training", total=total, completed=self.step)
            while self.step < total and not self._processes.any(bool(stop)):
                result = self.train_step()
                progress.update(bar, advance=1, description=f"answer loss {result.answer_loss:.3f}")
                if self._processes.main and _due(self.step, self.settings.evaluate_every):
                    self.evaluate()
                if self._processes.main and _due(self.step, self.settings.save_every):
                    self.save()
        if self._processes.main:
            self.save()
        self._log.close()

    def train_step(self) -> OuterResult:
        """One outer step: draw, differentiate, update, log. All processes take the same."""
        started = time.perf_counter()
        drawn = self.curriculum.draw(self.step)
        batches = self._batches(drawn.documents)
        own = batches[self._processes.index :: self._processes.count]
        sums = torch.zeros(6, dtype=torch.float64, device=self.base.device)
        gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        for batch in own:
            sums += torch.tensor(self._differentiate(batch), dtype=torch.float64, device=sums.device)
            self._take_gradients(gradients)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = self._processes.total(gradient) / len(batches)
        *means, tokens, questions = self._processes.total(sums).tolist()
        result = OuterResult(*(value / len(batches) for value in means))
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.outer.clip)
        if not (math.isfinite(result.answer_loss) and bool(norm.isfinite())):
            raise DivergenceError(self._save_failed_step(drawn, result, float(norm)))
        outer = self.settings.outer
        share = rate_share(self.step, self.settings.total_steps, warmup=outer.warmup, least=outer.decay)
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * share
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.step += 1
        if self._mean is not None:
            self._mean.add(self.meta.tensors(), self.step)
        self._seconds += time.perf_counter() - started
        if self._processes.main:
            self._log_step(drawn, int(tokens), int(questions), result, float(norm))
        return result

    def evaluate(self) -> float:
        """Exact match on the development documents; the best checkpoint so far is kept in the folder ``best``."""
        model = PerkModel(self.base, self.checkpoint(), adapted=self._adapted)
        answered = score_documents(model, self._dev_documents, method=self.settings.method)
        scores = answered.summary(self.settings.output.name, self.settings.method)
        exact = float(scores["exact_match"])
        if exact > self.best_score:
            self.best_score = exact
            self.checkpoint().save(self.settings.output / _BEST)
        self._log.dev(
            {
                "step": str(self.step),
                "questions": str(scores["questions"]),
                "exact_match": f"{exact:.4f}",
                "f1": f"{scores['f1']:.4f}",
            }
        )
        return exact

    def checkpoint(self) -> Checkpoint:
        """The present parameters, or their mean over the last steps, as a checkpoint."""
        present = self.meta.tensors() if self._mean is None else self._mean.tensors
        tensors = {name: tensor.cpu() for name, tensor in (present | self._kept).items()}
        return Checkpoint(self.settings.output.name, self._perk_settings, tensors)

    def save(self) -> None:
        """Write the checkpoint and the state to resume from."""
        folder = self.settings.output
        self.checkpoint().save(folder)
        state = RunState.of(
            self._parameters,
            self._optimiser,
            mean={} if self._mean is None else self._mean.tensors,
            metadata={"step": str(self.step), "seconds": repr(self._seconds), "best": repr(self.best_score)},
        )
        state.tensors.update(self._kept)
        state.write(folder)

    def resume(self) -> None:
        """Continue from the saved state.

        Raises:
            InvalidInput: there is none, or it belongs to other settings.
        """
        state = RunState.read(self.settings.output)
        self._take(state)
        state.restore_optimiser(self._parameters, self._optimiser)
        self.step = int(state.metadata["step"])
        self._seconds = float(state.metadata["seconds"])
        # States of runs without development scores name none.
        self.best_score = float(state.metadata.get("best", "-1"))
        if self._processes.main:
            self._log.cut(self.step)

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Begin with another checkpoint's parameters instead of fresh ones.

        Raises:
            BaseMismatch, CheckpointError: it does not fit.
        """
        checkpoint.require_base(self.base)
        checkpoint.require_layout(self._adapted.layout)
        named = MetaParameters(checkpoint, self.base.head.shape[1])
        values = [named.initial, named.log_step_sizes, *named.weighting_parameters()]
        parameters = {f"parameter.{i}": value.detach() for i, value in enumerate(values)}
        self._take(RunState(checkpoint.tensors | parameters, {}))

    def _take(self, state: RunState) -> None:
        """Take over parameters and their means, and keep what the run does not learn."""
        state.restore_parameters(self._parameters)
        if self._mean is not None:
            # A checkpoint to begin with has none.
            state.restore_mean(self._mean.tensors, self.meta.tensors())
        # Prompts with the document in them leave nothing to recall.
        kept = () if self._in_context else READERS
        self._kept = {name: state.tensors[name] for name in kept if name in state.tensors}

    def _loop(self, outer: OuterSettings) -> OuterLoop | InContextLoop:
        if self._in_context:
            return InContextLoop(self._adapted, token_limit=outer.token_limit)
        return OuterLoop(
            self._adapted,
            self.settings.inner,
            unrolled=outer.unrolled,
            token_limit=outer.token_limit,
            graph_tokens=outer.graph_tokens,
            first_order=outer.first_order,
            step_losses=outer.step_losses,
        )

    def _batches(self, documents: Sequence[Document]) -> list[list[DocumentTokens]]:
        """Documents of a step that are differentiated together: alike ones, as all are padded to the largest."""
        size = self.settings.outer.documents
        tokens = [DocumentTokens.of(document, self.base, self.settings) for document in documents]
        ordered = sorted(tokens, key=self._extent)
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def _extent(self, document: DocumentTokens) -> tuple[int, int]:
        """What documents are alike by: the segments that the inner loop reads, then tokens of the longest question."""
        return 0 if self._in_context else len(document.segments), document.longest_question

    def _take_gradients(self, into: Sequence[Tensor]) -> None:
        """Add one batch's gradient to `into`, no larger than a batch's may be, and leave none behind."""
        if self.settings.outer.batch_clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.outer.batch_clip)
        for gradient, parameter in zip(into, self._parameters, strict=True):
            assert parameter.grad is not None
            gradient += parameter.grad
            parameter.grad = None

    def _differentiate(self, documents: Sequence[DocumentTokens]) -> list[float]:
        """Add the gradient of one batch; returns what it measured, its tokens and its questions."""
        segments = [document.segments for document in documents]
        questions = [document.questions for document in documents]
        result = self._outer_loop.backward(self.meta, segments, questions)
        tokens = sum(len(s.ids) for document in segments for s in document)
        return [*astuple(result), tokens, sum(map(len, questions))]

    def _count_tokens(self, text: str) -> int:
        return len(self.base.encode(text))

    def _log_step(self, drawn: Draw, tokens: int, questions: int, result: OuterResult, norm: float) -> None:
        self._log.step(
            {
                "step": str(self.step),
                "seconds": f"{self._seconds:.1f}",
                "stage": str(drawn.stage),
                "task": "+".join(sorted(set(drawn.tasks))),
                "tokens": str(tokens),
                "questions": str(questions),
                "answer_loss": f"{result.answer_loss:.4f}",
                "exact": f"{result.exact:.3f}",
                "inner_loss_before": f"{result.loss_before:.4f}",
                "inner_loss_after": f"{result.loss_after:.4f}",
                "gradient_norm": f"{norm:.4f}",
                "mean_step_size": f"{float(self.meta.log_step_sizes.detach().exp().mean()):.2e}",
            }
        )

    def _save_failed_step(self, drawn: Draw, result: OuterResult, norm: float) -> str:
        self.settings.output.mkdir(parents=True, exist_ok=True)
        path = self.settings.output / f"diverged-{self.step}.json"
        contexts = [{"context": d.context, "questions": [q.question for q in d.questions]} for d in drawn.documents]
        if self._processes.main:
            path.write_text(json.dumps({"tasks": drawn.tasks, "documents": contexts}))
        return f"step {self.step}: answer loss {result.answer_loss}, gradient norm {norm}; its data is in {path.name}"


def run_training(
    config: Path, overrides: Sequence[str] = (), *, resume: bool = False, start: Checkpoint | None = None
) -> int:
    """Meta-train as a configuration file says, see `read_settings`; returns the outer steps done when it ended.

    Args:
        config: the YAML file.
        overrides: ``key=value`` settings on top of it.
        resume: continue from the saved state in the output folder.
        start: begin with this checkpoint's parameters.

    Raises:
        PerkError: bad settings, an unknown base, a foreign state, or divergence.
    """
    settings = read_settings(config, overrides)
    if has_state(settings.output) and not resume:
        raise InvalidInput("output", str(settings.output), "a folder without a saved state, or --resume")
    processes = join_processes()
    if torch.cuda.is_available():
        # Float32 products in TF32: the losses of the inner loop are the same to three digits.
        torch.set_float32_matmul_precision("high")
    base = load_base_model(
        settings.base,
        device=processes.device,
        dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
        report=print if processes.main else None,
    )
    trainer = Trainer(settings, base, processes)
    if resume:
        trainer.resume()
    elif start is not None:
        trainer.start_from(start)
    trainer.run()
    return trainer.step


def _optimiser(meta: MetaParameters, outer: OuterSettings, *, in_context: bool) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = [{"params": [meta.initial], "peak": outer.rate}]
    if not in_context:
        groups.append({"params": [meta.log_step_sizes], "peak": outer.step_size_rate, "weight_decay": 0.0})
        groups.append({"params": meta.weighting_parameters(), "peak": outer.weighting_rate})
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=outer.rate, betas=outer.betas, weight_decay=outer.weight_decay)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
