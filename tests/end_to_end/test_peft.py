"""An exported adapter is PEFT's own: loaded there, it answers as the service does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from perk.settings import TemplateSettings

_QUESTIONS = ("Where is Mary?", "Where is John?", "Who travelled back to the office, and who went to the kitchen?")


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, question: str) -> str:
    prompt = tokenizer(TemplateSettings().prompt.format(question=question), return_tensors="pt")
    ids = model.generate(
        input_ids=prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=16, do_sample=False
    )
    text: str = tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


def test_peft_answers_from_the_exported_adapter_as_the_service_does(
    service: Any, perk: Callable[..., Any], story: str, tiny_llama: Path, tmp_path: Path
) -> None:
    document = service.encode(story)
    folder = tmp_path / "adapter"
    assert perk("export", document["id"], folder).returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    alone = [_generate(base, tokenizer, question) for question in _QUESTIONS]

    model = PeftModel.from_pretrained(base, str(folder))

    answers = [service.ask(document, question) for question in _QUESTIONS]
    assert [_generate(model, tokenizer, question) for question in _QUESTIONS] == answers
    assert answers != alone, "the adapter makes a difference"
