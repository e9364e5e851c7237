"""Which tensors of an adapter belong to which linear maps of a base's decoder layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from kernels.decoder_layer import LAYER_MAPS, LayerGradients
from perk.adapter_layout import AdapterLayout

__all__ = ["LayerAdapters", "module_name"]

_PARENTS = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn"}


def module_name(map_name: str) -> str:
    """Path inside its layer of a map that `LAYER_MAPS` names."""
    return f"{_PARENTS.get(map_name, 'mlp')}.{map_name}_proj"


class LayerAdapters:
    """Sorts the tensors of an adapter by layer and by group of `LAYER_MAPS`.

    Attributes:
        first_group: of the first layer, the first group in which a map has an adapter; None: none has.
    """

    def __init__(self, layout: AdapterLayout, paths: Sequence[str]) -> None:
        """Take the paths of consecutive layers inside the model, such as ``model.layers.20``."""
        places = {module: index for index, module in enumerate(layout.modules)}
        self._places = [
            [[places.get(f"{path}.{module_name(name)}") for name in names] for names in LAYER_MAPS] for path in paths
        ]
        adapted = (index for index, group in enumerate(self._places[0]) if any(place is not None for place in group))
        self.first_group = next(adapted, None)

    def sort(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[LayerGradients]:
        """A and B of every module, in the layout's order, by layer and group; None for maps without an adapter."""
        for groups in self._places:
            yield tuple(tuple(None if place is None else pairs[place] for place in group) for group in groups)
