"""What the plugin uses of vLLM, as recorded from release 0.33.0, for machines without its CUDA wheels.

`vllm.lora.request.LoRARequest`, `vllm.lora.resolver.LoRAResolver` and `LoRAResolverRegistry`: names, parameters,
defaults and checks. How its server uses them (`vllm/entrypoints/openai/models/serving.py`): `resolve_lora` is awaited
with what ``--model`` says and the name in the request; None makes it a 404, a ValueError a 400 with the error's
message; the number is replaced by one of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest


@dataclass
class LoRARequest:
    """An adapter to load."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False
    is_3d_lora_weight: bool = False

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")
        assert self.lora_path, "lora_path cannot be empty"


class LoRAResolver(ABC):
    """Finds adapters."""

    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter of a name."""


@dataclass
class Registry:
    """Resolvers by name."""

    resolvers: dict[str, LoRAResolver] = field(default_factory=dict)

    def get_supported_resolvers(self) -> Set[str]:
        """Names of all."""
        return self.resolvers.keys()

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        """Add one, or replace that of the same name."""
        self.resolvers[resolver_name] = resolver

    def get_resolver(self, resolver_name: str) -> LoRAResolver:
        """The one of a name."""
        return self.resolvers[resolver_name]


@pytest.fixture
def vllm_resolvers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """vLLM's registry of resolvers, empty: its own where it is installed, else the recorded one."""
    if importlib.util.find_spec("vllm") is None:
        request, resolver = ModuleType("vllm.lora.request"), ModuleType("vllm.lora.resolver")
        vars(request).update(LoRARequest=LoRARequest)
        vars(resolver).update(LoRAResolver=LoRAResolver, LoRAResolverRegistry=Registry())
        for module in (ModuleType("vllm"), ModuleType("vllm.lora"), request, resolver):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    registry = importlib.import_module("vllm.lora.resolver").LoRAResolverRegistry
    monkeypatch.setattr(registry, "resolvers", {})
    # It was imported with another test's vLLM, or is to be with another's.
    monkeypatch.delitem(sys.modules, "deploy.vllm.plugin", raising=False)
    yield registry
    sys.modules.pop("deploy.vllm.plugin", None)
