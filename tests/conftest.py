"""Tiny base models of each supported family, random but fixed, with a small tokenizer trained here from nothing."""

from __future__ import annotations

import os
from pathlib import Path

# Triton decides at its import whether kernels are interpreted, and peft imports it. Nothing else heeds this.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from perk.base_model import load_base_model
from perk.checkpoint import new_checkpoint
from perk.lora import AdaptedModel
from perk.settings import BaseSettings, InnerSettings, LoraSettings, PerkSettings

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis_settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any-machine")

_VOCABULARY = 512
_POSITIONS = 1024
_HIDDEN = 32
# At this width, weights of this size keep activations near unit scale; the families' own 0.02 would make the model
# so close to constant that a wrong gradient could pass for a right one.
_INITIALIZER_RANGE = 0.15

_CORPUS = (
    "Mary went to the kitchen. John moved to the garden. Sandra travelled back to the office.",
    "Where is Mary? Mary is in the kitchen. Where is the apple? The apple is in the garden.",
    "Student <3109998>, Name: Ada Young, Year: Senior, School: School of Engineering, Major: Physics, Grade: 72",
    "Student <4210671>, Name: Tom Reed, Year: Junior, School: School of Science, Major: Biology, Grade: 85",
    "What is the grade of the student with ID 3109998? What is the major of the student with ID 4210671?",
    "Does student 3109998 have a higher grade than student 4210671? Answer: Yes. Answer: No.",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune must want a wife.",
    "You have memorized 6 documents. The document says that the train to the north leaves at seven in the morning.",
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 512 tokens: any text has an encoding, and decoding gives the text back."""
    end, padding = "<|endoftext|>", "<|padding|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[end, padding],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=padding)


def _save(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Save a randomly initialised model of `config`, the same one in every run, with its tokenizer."""
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama of 4 layers, hidden 32, 4 heads on 2 key-value heads, tied embeddings as in SmolLM2."""
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        intermediate_size=2 * _HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_POSITIONS,
        initializer_range=_INITIALIZER_RANGE,
        tie_word_embeddings=True,
    )
    return _save(config, tiny_tokenizer, tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a GPT-2 of 4 layers, hidden 32, 4 heads, without dropout: transposed Conv1D weights with biases."""
    config = GPT2Config(
        vocab_size=_VOCABULARY,
        n_embd=_HIDDEN,
        n_layer=4,
        n_head=4,
        n_positions=_POSITIONS,
        initializer_range=_INITIALIZER_RANGE,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return _save(config, tiny_tokenizer, tmp_path_factory.mktemp("bases") / "tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_qwen2(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2 of 4 layers, hidden 32, 4 heads on 2 key-value heads: biases on queries, keys and values."""
    config = Qwen2Config(
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        intermediate_size=2 * _HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_POSITIONS,
        initializer_range=_INITIALIZER_RANGE,
        tie_word_embeddings=False,
    )
    return _save(config, tiny_tokenizer, tmp_path_factory.mktemp("bases") / "tiny-qwen2")


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a checkpoint on `tiny_llama` as it is before meta-training: rank 4, two inner steps."""
    settings = PerkSettings(
        base=BaseSettings(source=str(tiny_llama)), lora=LoraSettings(rank=4), inner=InnerSettings(rule="rms", steps=2)
    )
    adapted = AdaptedModel(load_base_model(str(tiny_llama), device="cpu"), settings.lora)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    new_checkpoint(adapted, settings, seed=0, name="tiny").save(folder)
    return folder
