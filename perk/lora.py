"""Where the adapter sits in the base model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kernels import RowAdapters, lora_linear, multi_adapter
from kernels.dispatch import is_differentiated, use_triton
from kernels.product_dtype import product_dtype
from perk.adapter_layout import AdapterLayout
from perk.adapter_places import AdapterPlaces
from perk.base_model import BaseModel
from perk.errors import BaseModelError, InvalidInput
from perk.merged_layers import FrozenLayers, MergedLayers, can_run
from perk.packed_linear import PackedLinear, can_pack
from perk.row_cache import RowCaches, row_attention
from perk.row_layers import RowLayers
from perk.settings import LoraSettings

__all__ = ["AdaptedModel", "LoraLinear"]

# Values of ``model_type`` in a base's configuration.
_FAMILIES = ("gpt2", "llama", "qwen2")

# Numbers that a token needs in a pass through the modules, in units of H · (adapted layers), measured and rounded up.
_ACTIVATIONS_PER_TOKEN = 40


class LoraLinear(nn.Module):
    """A frozen linear module that adds the bound documents' low-rank maps to its output.

    Unbound, it is the frozen module alone. Bound to A ``[D, r, in]`` and B ``[D, out, r]``, its input ``[D·S, T, in]``
    holds S sequences of each document, in document order.
    """

    def __init__(self, frozen: nn.Linear | Conv1D, scale: float) -> None:
        super().__init__()
        self.frozen = frozen
        self.scale = scale
        # GPT-2 stores its weights transposed; the view costs nothing.
        self.transposed = isinstance(frozen, Conv1D)
        self.adapter: tuple[Tensor, Tensor] | None = None
        # Where the gradients of A and B are added to; None: autograd hands them on.
        self.gradients: tuple[Tensor, Tensor] | None = None
        self.packed: PackedLinear | None = None
        # When decoding in Triton: where each row's adapter lies.
        self.rows: RowAdapters | None = None

    @property
    def weight(self) -> Tensor:
        """Frozen weight, ``[out, in]``."""
        weight: Tensor = self.frozen.weight
        return weight.T if self.transposed else weight

    def forward(self, x: Tensor) -> Tensor:
        """``[D·S, T, in]`` to ``[D·S, T, out]``."""
        if self.adapter is None:
            unchanged: Tensor = self.frozen(x) if self.packed is None else self.packed(x)
            return unchanged if self.rows is None else multi_adapter(unchanged, x, self.rows)
        a, b = self.adapter
        documents = a.shape[0]
        flat = x.reshape(documents, -1, x.shape[-1])
        if self.packed is not None:
            low = flat @ a.transpose(-1, -2)
            y = torch.baddbmm(self.packed(flat), low, b.transpose(-1, -2), alpha=self.scale)
        else:
            y = lora_linear(flat, self.weight, self.frozen.bias, a, b, self.scale, gradients=self.gradients)
        return y.view(*x.shape[:-1], y.shape[-1])


class AdaptedModel:
    """A base model whose upper layers carry adapters, cut where the first adapted layer begins.

    The cut (decision 3 of the design) lets everything below be computed once a document: `lower` maps token ids to the
    input of the first adapted layer, `upper` maps that to the last hidden state. Both share the base's own modules.

    Attributes:
        product_dtype: type that large products may be in, and are fastest in, where `start_merging` can be used.
        layers_name: of the base's list of decoder layers.
        layer_count: how many there are.
    """

    def __init__(self, base: BaseModel, settings: LoraSettings) -> None:
        self.base = base
        self.settings = settings
        _require_supported(base)
        self.layers_name, layers = _decoder_layers(base.backbone)
        self.layer_count = len(layers)
        if settings.first_layer >= len(layers):
            raise InvalidInput(
                "lora.first_layer", str(settings.first_layer), f"less than the base's {len(layers)} layers"
            )
        self._linears, self._all_linears = _attach(base, layers, self._paths(0), settings)
        self.layout = AdapterLayout(
            modules=tuple(self._linears),
            shapes=tuple(
                shape
                for linear in self._linears.values()
                for shape in (
                    (settings.rank, linear.weight.shape[1]),
                    (linear.weight.shape[0], settings.rank),
                )
            ),
        )
        self.lower = _cut(base.backbone, self.layers_name, layers[: settings.first_layer], upper=False)
        self.upper = _cut(base.backbone, self.layers_name, layers[settings.first_layer :], upper=True)
        # For decoding on a CPU, laid out when first used: the head, and either all layers or their linear modules.
        self._head: PackedLinear | None = None
        self._row_layers: RowLayers | None = None
        self._packed: list[PackedLinear] = []
        self._lower_layers: FrozenLayers | None = None
        self._upper_layers: FrozenLayers | None = None
        self.product_dtype = base.dtype
        if can_run(base):
            self.product_dtype = product_dtype()
            self._lower_layers = FrozenLayers(base, list(layers)[: settings.first_layer])
            self._upper_layers = FrozenLayers(base, list(layers)[settings.first_layer :])

    @contextmanager
    def bind(self, theta: Tensor | None, *, gradient: Tensor | None = None) -> Iterator[None]:
        """Use adapters ``[D, P]`` (or none) in every forward pass inside the block.

        With `gradient`, ``[D, P]``, the backward passes add theirs to it and hand none on to `theta`; it is then the
        only buffer of that size, and such a pass is differentiable once.
        """
        linears = list(self._linears.values())
        nothing: list[tuple[Tensor, Tensor] | None] = [None] * len(linears)
        adapters = nothing if theta is None else self.layout.views(theta)
        gradients = nothing if gradient is None else self.layout.views(gradient)
        for linear, adapter, into in zip(linears, adapters, gradients, strict=True):
            linear.adapter, linear.gradients = adapter, into
        try:
            yield
        finally:
            for linear in linears:
                linear.adapter = linear.gradients = None

    def start_decoding(self) -> AdapterPlaces:
        """Places for the adapters of a batch of rows."""
        return AdapterPlaces(self.layout.size, self.base.device, self.base.dtype)

    def decode(
        self, ids: Tensor, caches: RowCaches, adapters: Sequence[Tensor | None], places: AdapterPlaces, *, last: int
    ) -> Tensor:
        """Logits of what follows the last tokens of R rows, each under its own adapter; under `torch.inference_mode`.

        The first call on a CPU lays out all weights for few rows, where `can_pack` says that is possible: it takes a
        moment, and as much memory as they do.

        Args:
            ids: T tokens of each row, ``[R, T]``.
            caches: what the rows read before; these tokens are added.
            adapters: of each row, ``[P]``; None: it has none.
            places: of the batch, for passes through the modules.
            last: after how many of the T tokens.

        Returns:
            ``[R, last, V]``.
        """
        self._lay_out()
        positions = caches.next_positions(ids.shape[1], ids.device)
        if self._row_layers is not None and not use_triton(self.base.head):
            states = self._last_norm(self._row_layers.run(ids, caches, positions, adapters)[:, -last:])
        else:
            theta, adapted = places.put(adapters), [adapter is not None for adapter in adapters]
            with self._packed_modules(), self._bind_rows(theta, adapted), row_attention(self.base):
                run = self.base.backbone(input_ids=ids, position_ids=positions, past_key_values=caches, use_cache=True)
            states = run.last_hidden_state[:, -last:]
        caches.grow(ids.shape[1])
        return states @ self.base.head.T if self._head is None else self._head(states)

    def _lay_out(self) -> None:
        if self._head is not None or not can_pack(self.base.head):
            return
        self._head = PackedLinear(self.base.head, None)
        if self._lower_layers is None or self._upper_layers is None:
            self._packed = [PackedLinear(linear.weight, linear.frozen.bias) for linear in self._all_linears]
            return
        layers = [*self._lower_layers.layers, *self._upper_layers.layers]
        self._row_layers = RowLayers(self.base, layers, self._paths(0), self.layout, self.settings.scale)

    @contextmanager
    def _packed_modules(self) -> Iterator[None]:
        """Use what `_lay_out` made of the linear modules, if it did, in forward passes inside the block."""
        for linear, packed in zip(self._all_linears, self._packed, strict=False):
            linear.packed = packed
        try:
            yield
        finally:
            for linear in self._all_linears:
                linear.packed = None

    def _paths(self, first: int) -> list[str]:
        """Where the layers from that one on are in the model."""
        prefix = f"{self.base.model.base_model_prefix}.{self.layers_name}"
        return [f"{prefix}.{index}" for index in range(first, self.layer_count)]

    @contextmanager
    def _bind_rows(self, theta: Tensor | None, adapted: Sequence[bool]) -> Iterator[None]:
        """Use adapters ``[R, P]`` (or none), one a row, in forward passes of the modules that decode R rows.

        In Triton a row that is not `adapted` has rank 0 and costs nothing; else its adapter must be zeros.
        """
        if theta is None or not use_triton(theta):
            with self.bind(theta):
                yield
            return
        rows, size = theta.shape
        device, rank = theta.device, self.settings.rank
        ranks = torch.tensor([rank if has_one else 0 for has_one in adapted], dtype=torch.int32, device=device)
        scales = torch.full((rows,), self.settings.scale, device=device)
        offsets = torch.tensor([0, *accumulate(self.layout.sizes)][:-1], device=device)
        starts = offsets[:, None] + size * torch.arange(rows, device=device)
        buffer = theta.view(-1)
        for index, linear in enumerate(self._linears.values()):
            linear.rows = RowAdapters(buffer, starts[2 * index], starts[2 * index + 1], ranks, scales, rank)
        try:
            yield
        finally:
            for linear in self._linears.values():
                linear.rows = None

    @property
    def merged_bytes(self) -> int | None:
        """Bytes of the weights that `start_merging` reserves; None where it cannot be used."""
        return None if self._upper_layers is None else self._upper_layers.weight_bytes

    def merges(self, documents: int, limit: int) -> bool:
        """Whether encoding so many documents together merges the adapter, where `limit` bytes may be kept for it."""
        return documents == 1 and self.merged_bytes is not None and self.merged_bytes <= limit

    def activation_bytes(self, *, merged: bool) -> int:
        """Bytes that a step of encoding takes for each token of a micro-batch, rounded up."""
        if merged and self._upper_layers is not None:
            numbers = self._upper_layers.kept_numbers + self._upper_layers.passing_numbers
        else:
            layers = self.layer_count - self.settings.first_layer
            numbers = self.base.head.shape[1] * layers * _ACTIVATIONS_PER_TOKEN
        return numbers * self.base.dtype.itemsize

    def start_merging(self, dtype: torch.dtype) -> MergedLayers:
        """The upper layers for the first-order passes of one document, its adapter merged into a copy of the weights.

        Args:
            dtype: type of their products.

        Raises:
            RuntimeError: `merged_bytes` is None.
        """
        if self._upper_layers is None:
            raise RuntimeError(f"base {self.base.name!r}: adapters cannot be merged for passes")
        paths = self._paths(self.settings.first_layer)
        return MergedLayers(self._upper_layers, paths, self.layout, self.settings.scale, dtype)

    def merged_states(
        self,
        merged: MergedLayers,
        states: Tensor,
        theta: Tensor,
        gradient: Tensor,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """`upper_states` through merged layers; the backward pass adds to `gradient` ``[1, P]``."""
        return self._last_norm(merged.run(states, theta, gradient, lengths))

    def _last_norm(self, states: Tensor) -> Tensor:
        """What stands between the last layer and the head, for bases whose layers `perk.merged_layers` runs."""
        norm: nn.Module = self.base.backbone.get_submodule("norm")
        last: Tensor = norm(states)
        return last

    def lower_states(self, ids: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Input of the first adapted layer, ``[B, T, H]``, for token ids ``[B, T]``; independent of any adapter.

        Where `merged_bytes` is not None, a single row may be sequences of those `lengths`, one behind another.
        """
        if self._lower_layers is not None:
            embed: Any = self.base.model.get_input_embeddings()
            return self._lower_layers.run(embed(ids), lengths)
        _require_one_each(lengths)
        states: Tensor = self.lower(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def upper_states(self, states: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Last hidden states ``[B, T, H]`` from the input of the first adapted layer.

        Without an adapter, `lengths` may be as for `lower_states`.
        """
        bound = any(linear.adapter is not None for linear in self._linears.values())
        if self._upper_layers is not None and not bound and not is_differentiated(states):
            return self._last_norm(self._upper_layers.run(states, lengths))
        _require_one_each(lengths)
        last: Tensor = self.upper(inputs_embeds=states, use_cache=False).last_hidden_state
        return last


class _NoPositions(nn.Module):
    """Stands in for learned position embeddings where they have been added already."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


def _require_one_each(lengths: Sequence[int] | None) -> None:
    """The modules take every row for one sequence."""
    if lengths is not None:
        raise RuntimeError(f"{len(lengths)} sequences in one row: only merged and frozen layers keep them apart")


def _require_supported(base: BaseModel) -> None:
    """Other families may scale embeddings, name their norms otherwise or alternate layers: cut, they would be wrong.

    Raises:
        BaseModelError: the base belongs to another family, or its layers attend in different ways.
    """
    config = base.model.config
    if config.model_type not in _FAMILIES:
        raise BaseModelError(
            f"base {base.name!r}: model type {config.model_type!r} is not supported, expected one of "
            f"{', '.join(_FAMILIES)}"
        )
    attention = set(getattr(config, "layer_types", None) or ())
    if len(attention) > 1:
        raise BaseModelError(
            f"base {base.name!r}: layers of {' and '.join(sorted(attention))} mixed, expected the same in every layer"
        )


def _decoder_layers(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    name = "h" if hasattr(backbone, "h") else "layers"
    layers = getattr(backbone, name)
    assert isinstance(layers, nn.ModuleList)
    return name, layers


def _attach(
    base: BaseModel, layers: nn.ModuleList, paths: Sequence[str], settings: LoraSettings
) -> tuple[dict[str, LoraLinear], list[LoraLinear]]:
    """Wrap the linear modules of all layers; returns those that may carry an adapter, by their paths, and all."""
    if any(isinstance(module, LoraLinear) for module in layers.modules()):
        raise ValueError(f"base {base.name!r} carries an adapter already: load it again for another")
    attached: dict[str, LoraLinear] = {}
    every: list[LoraLinear] = []
    for index, (path, layer) in enumerate(zip(paths, layers, strict=True)):
        linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]
        for name, module in linears:
            lora = LoraLinear(module, settings.scale)
            parent, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(parent), leaf, lora)
            every.append(lora)
            targeted = settings.targets == "all-linear" or leaf in settings.targets
            if targeted and index >= settings.first_layer:
                attached[f"{path}.{name}"] = lora
    if not attached:
        raise InvalidInput("lora.targets", repr(settings.targets), "names of linear modules of the base's layers")
    return attached, every


def _cut(backbone: nn.Module, layers_name: str, layers: nn.ModuleList, *, upper: bool) -> nn.Module:
    """A copy of the backbone that shares all its modules but runs `layers` only."""
    part = copy.copy(backbone)
    part._modules = dict(backbone._modules)
    setattr(part, layers_name, layers)
    if upper and hasattr(part, "wpe"):
        part.wpe = _NoPositions()
    if not upper:
        setattr(part, "ln_f" if hasattr(part, "ln_f") else "norm", nn.Identity())
    return part
