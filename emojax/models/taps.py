"""What a network gives away of its inside: the outputs of its layers, by name, and scales on them.

A network calls its `Tap` with each output and computes on with what that returns. So one place
collects the outputs, applies an edit's gains, and cuts a network in two: an output that is given
instead of computed makes all before it dead code, which the compiler drops.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from emojax.models.convert import Path


class Tap:
    """Collects outputs of layers; may scale or replace them. One is made for each forward pass.

    Attributes:
      outputs: what the layers gave, by name, in the order of the calls; scaled where they are.
      gains: [U] by layer, which multiply its units.
    """

    def __init__(
        self,
        gains: Mapping[str, Float[Array, " U"]] | None = None,
        given: Mapping[str, Array] | None = None,
    ):
        """`gains` [U] multiply a layer's units; `given` outputs take the place of computed ones."""
        self.outputs: dict[str, Array] = {}
        self.gains = gains or {}
        self._given = given or {}
        self._prefix = ""

    def within(self, name: str) -> "Tap":
        """The same for the parts of a layer: their names follow the layer's, behind a point."""
        inner = Tap(self.gains, self._given)
        inner.outputs = self.outputs
        inner._prefix = f"{self._prefix}{name}."
        return inner

    def with_gains(self, gains: Mapping[str, Float[Array, " U"]]) -> "Tap":
        """The same with more gains; a layer with two is scaled by both."""
        both = {name: gain * self.gains.get(name, 1.0) for name, gain in gains.items()}
        scaled = Tap({**self.gains, **both}, self._given)
        scaled.outputs = self.outputs
        return scaled

    def __call__(self, name: str, value: Float[Array, "B *inner U"]) -> Float[Array, "B *inner U"]:
        """Takes note of a layer's output; returns what the network goes on with."""
        name = self._prefix + name
        value = self._given.get(name, value)
        if name in self.gains:
            value = value * self.gains[name]
        self.outputs[name] = value
        return value


class Slices(NamedTuple):
    """A parameter whose slices along an axis belong to the units of a layer, in order.

    The axis may hold several slices for each unit, side by side.
    """

    path: Path
    axis: int
