"""RMSNorm, RoPE and SwiGLU of Liger-Kernel, for bases on a CUDA device where the package is installed."""

from __future__ import annotations

import importlib.util

from perk.base_model import BaseModel

__all__ = ["use_liger"]


def use_liger(base: BaseModel) -> bool:
    """Replace these operations of a Llama or Qwen2 base on CUDA; other bases stay as they are.

    Liger's functions have one derivative and do not say so when asked for a second: this is for encoding and answering,
    never for meta-training. Liger replaces the classes of transformers for the whole process.

    Returns:
        Whether it did.
    """
    family = base.model.config.model_type
    if (
        base.device.type != "cuda"
        or family not in {"llama", "qwen2"}
        or importlib.util.find_spec("liger_kernel") is None
    ):
        return False
    from liger_kernel.transformers import apply_liger_kernel_to_llama, apply_liger_kernel_to_qwen2

    apply = apply_liger_kernel_to_llama if family == "llama" else apply_liger_kernel_to_qwen2
    # The loss is ours: `kernels.weighted_cross_entropy`.
    apply(
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=base.model
    )
    return True
