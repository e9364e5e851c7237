"""An adapter as a folder that PEFT loads, and whatever reads PEFT's folders."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from perk.lora import AdaptedModel

__all__ = ["export_peft"]


def export_peft(adapted: AdaptedModel, adapter: Tensor, directory: Path, *, base_name: str) -> None:
    """Write an adapter ``[P]`` as a PEFT folder that `peft.PeftModel.from_pretrained` and vLLM load."""
    # peft takes seconds to import, and only an export needs it.
    from peft import LoraConfig, TaskType

    settings, layout = adapted.settings, adapted.layout
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in zip(layout.modules, layout.views(adapter[None]), strict=True):
        tensors[f"base_model.model.{module}.lora_A.weight"] = a[0].contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b[0].contiguous()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_name,
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        use_rslora=settings.rank_stabilised,
        lora_dropout=0.0,
        target_modules=sorted({module.rsplit(".", 1)[-1] for module in layout.modules}),
        layers_to_transform=list(range(settings.first_layer, adapted.layer_count)),
        layers_pattern=adapted.layers_name,
        fan_in_fan_out=hasattr(adapted.base.backbone, "wpe"),
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    # PEFT writes sets in no fixed order; the same adapter should give the same bytes.
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + "\n")
