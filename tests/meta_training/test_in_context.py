"""FT-ICR: the same adapter trained to answer with the document in its prompt, and asked as it was trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from meta_training.__main__ import main
from meta_training.document import Document, Question
from meta_training.evaluate import evaluate, score_documents
from meta_training.exchange import write_documents
from meta_training.in_context import MAX_ANSWER_TOKENS, in_context_question
from meta_training.question_segment import question_segment
from meta_training.settings import TrainSettings
from meta_training.trainer import Trainer
from perk import AnswerRequest, CheckpointError, PerkModel
from perk.base_model import load_base_model
from perk.segments import join_passages
from perk.settings import TemplateSettings

CONFIG: dict[str, Any] = {
    "seed": 3,
    "method": "ft-icr",
    "lora": {"rank": 2, "first_layer": 2},
    "templates": {"prompt": "{question}\nSupport:", "support": " {support}\nAnswer:", "max_support_tokens": 40},
    "outer": {"documents": 2, "questions": 1, "warmup": 1, "rate": 0.02},
    "stages": [{"steps": 4, "tasks": [{"task": "key-value", "tokens": [40, 60], "options": {"questions": 3}}]}],
}
STORY = ("Mary went to the kitchen.", "John moved to the garden.")


@pytest.fixture
def make_trainer(tiny_llama: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Makes trainers that write into a folder of that name; other arguments are settings over `CONFIG`."""

    def make(name: str = "run", **settings: Any) -> Trainer:
        chosen = {**CONFIG, "base": str(tiny_llama), "output": tmp_path / name, **settings}
        return Trainer(TrainSettings.model_validate(chosen), load_base_model(str(tiny_llama), device="cpu"))

    return make


def test_what_is_learned_is_the_adapter_alone(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    before = {name: tensor.clone() for name, tensor in trainer.meta.tensors().items()}
    base = {name: tensor.clone() for name, tensor in trainer.base.model.state_dict().items()}
    trainer.train_step()
    after = trainer.meta.tensors()
    assert set(after) == {"initial", "log_step_sizes"}, "no weighting of tokens"
    assert not torch.equal(after["initial"], before["initial"])
    assert torch.equal(after["log_step_sizes"], before["log_step_sizes"])
    torch.testing.assert_close(dict(trainer.base.model.state_dict()), base, rtol=0, atol=0)


def test_training_on_a_document_makes_its_answers_likelier(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    drawn = trainer.curriculum.draw(0)
    trainer.curriculum.draw = lambda _step: drawn  # type: ignore[method-assign]
    losses = [trainer.train_step().answer_loss for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


def test_the_gradient_is_the_mean_over_documents(make_trainer: Callable[..., Trainer]) -> None:
    together, apart = make_trainer("a"), make_trainer("b", outer={**CONFIG["outer"], "documents": 1, "accumulation": 2})
    assert together.curriculum.draw(0) == apart.curriculum.draw(0)
    together.train_step()
    apart.train_step()
    torch.testing.assert_close(together.meta.initial, apart.meta.initial, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_continues_bit_for_bit(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer("straight").run()
    first = make_trainer("resumed")
    first.train_step()
    first.save()
    second = make_trainer("resumed")
    second.resume()
    second.run()
    straight, resumed = (load_file(tmp_path / name / "state.safetensors") for name in ("straight", "resumed"))
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


def test_a_step_asks_no_more_questions_than_it_may(make_trainer: Callable[..., Trainer]) -> None:
    tasks = [{"task": "student-recall", "options": {"records": 2, "questions": 3}}]
    runs = {
        most: make_trainer(outer={"questions": most}, stages=[{"steps": 1, "tasks": tasks}]) for most in (1, 2, None)
    }
    numbers = {
        most: {len(document.questions) for document in run.curriculum.draw(0).documents} for most, run in runs.items()
    }
    assert numbers == {1: {1}, 2: {2}, None: {3}}


@pytest.mark.parametrize("support", [None, " {support}\nAnswer:"])
def test_it_is_asked_the_tokens_that_it_was_trained_on(tiny_llama: Path, tiny_checkpoint: Path, support: str) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    templates = TemplateSettings(support=support)
    question = Question(in_context_question("Where is Mary?", Document(STORY, ()), base, templates), "kitchen")
    assert question.question == f"{join_passages(STORY)}\n\nWhere is Mary?"
    segment = question_segment(question, base, templates)

    model = PerkModel.load(tiny_checkpoint, device="cpu")
    asked = model.start_answer([AnswerRequest(question.question, adapter=model.initial)])
    assert asked.prompt_tokens == [segment.prefix_tokens]


def test_a_long_document_loses_its_beginning_and_leaves_room_to_recall_and_answer(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    templates = TemplateSettings(support=" {support}\nAnswer:", max_support_tokens=100)
    text = "\n".join(f"Mary went to the kitchen {number}." for number in range(1000))
    asked = in_context_question("Where is Mary?", text, base, templates)
    tokens = len(base.tokenizer.encode(templates.prompt.format(question=asked)))
    assert asked.endswith("kitchen 999.\n\nWhere is Mary?")
    assert base.max_positions - 100 - MAX_ANSWER_TOKENS - 40 < tokens < base.max_positions - 100 - MAX_ANSWER_TOKENS


def test_a_run_scores_itself_and_leaves_what_evaluate_scores(
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = make_trainer(evaluate_every=4, evaluate_documents=2)
    trainer.run()
    assert (tmp_path / "run" / "dev.csv").exists()

    model = PerkModel.load(tmp_path / "run", device="cpu", in_context=True)
    context, asked = join_passages(STORY), "Where is Mary?"
    said = model.answer(model.initial, f"{context}\n\n{asked}", max_tokens=MAX_ANSWER_TOKENS, stop=("\n",))
    document = Document(context, (Question(asked, said.text or "-"),))
    scores = score_documents(model, [document], method="ft-icr")
    assert scores.exact == {"": [bool(said.text.strip())]}
    assert not scores.encode_seconds

    data = tmp_path / "data.jsonl"
    write_documents(data, [document])
    arguments = ["--checkpoint", str(tmp_path / "run"), "--data", str(data), "--json", "--method", "ft-icr"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["meta_training", "evaluate", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    printed = json.loads(capsys.readouterr().out)
    assert (printed["method"], printed["questions"], printed["encode_seconds"]["mean"]) == ("ft-icr", 1, 0.0)


def test_neither_kind_of_checkpoint_is_taken_for_the_other(
    make_trainer: Callable[..., Trainer], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    make_trainer().save()
    data = tmp_path / "data.jsonl"
    write_documents(data, [Document("Mary is here.", (Question("Where is Mary?", "here"),))])
    with pytest.raises(CheckpointError, match="'run' answers with the document in its prompt"):
        evaluate(str(tmp_path / "run"), data, method="perk")
    with pytest.raises(CheckpointError, match=r"encodes documents \(perk\); expected one that answers"):
        evaluate(str(tiny_checkpoint), data, method="ft-icr")
