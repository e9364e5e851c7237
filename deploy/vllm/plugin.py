"""The plugin as vLLM finds it: the entry point ``vllm.general_plugins`` of this project names `register`."""

from __future__ import annotations

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from deploy.vllm.adapter_folders import AdapterFolders
from deploy.vllm.settings import is_wanted, load_vllm_settings
from service.settings import load_settings

__all__ = ["PerkResolver", "register"]

_NAME = "perk"
# vLLM counts from 1, in 32 bits.
_MOST_ADAPTERS = 2**31 - 1


class PerkResolver(LoRAResolver):
    """Finds the adapter of the document that a request names as its model."""

    def __init__(self, folders: AdapterFolders) -> None:
        self._folders = folders

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter of a document; None where `lora_name` is no document's id, or there is no such document.

        Raises:
            Refused: vLLM cannot answer from it; a ValueError, of which vLLM makes a 400 with its message.
            StoreError: the store cannot be read.
        """
        folder = await self._folders.provide(base_model_name, lora_name)
        if folder is None:
            return None
        # An id is a hash, and stands for one adapter for ever: vLLM may keep what it has loaded under it.
        number = int(lora_name.removeprefix("doc_"), 16) % _MOST_ADAPTERS + 1
        return LoRARequest(
            lora_name=lora_name, lora_int_id=number, lora_path=str(folder), base_model_name=base_model_name
        )


def register() -> None:
    """Let vLLM ask our store; without effect where the environment names none. May be called again.

    Raises:
        SettingsError: a setting is bad.
    """
    if is_wanted():
        folders = AdapterFolders(load_settings(), load_vllm_settings())
        LoRAResolverRegistry.register_resolver(_NAME, PerkResolver(folders))
