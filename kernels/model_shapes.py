"""Shapes of the models that kernels are compiled and counted for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODEL_SHAPES", "ModelShape"]


@dataclass(frozen=True)
class ModelShape:
    """Widths of a decoder with gated MLPs.

    Attributes:
        name: of the model.
        hidden: width H of the hidden states.
        key_value: width of all key heads together.
        intermediate: width of the MLP.
        vocabulary: number V of token ids.
        layers: number of decoder layers.
    """

    name: str
    hidden: int
    key_value: int
    intermediate: int
    vocabulary: int
    layers: int

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Distinct ``(in, out)`` of a layer's maps: queries and output, keys and values, up and gate, down."""
        return (
            (self.hidden, self.hidden),
            (self.hidden, self.key_value),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        )


MODEL_SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("SmolLM2-135M", hidden=576, key_value=192, intermediate=1536, vocabulary=49152, layers=30),
        ModelShape("Qwen2.5-0.5B", hidden=896, key_value=128, intermediate=4864, vocabulary=151936, layers=24),
        ModelShape("Qwen2.5-7B", hidden=3584, key_value=512, intermediate=18944, vocabulary=152064, layers=28),
    )
}
