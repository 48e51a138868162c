"""A network of the user's own code that takes gains, as one that commands can edit.

`logits, taps = function(params, images, gains={layer: [U]})` scales the layers' units itself, so an
edit is a scale on their outputs and the whole network runs for every setting of a sweep.
Shapes: B batch, H height, W width, U units of a layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from emojax.models.tapped import NetworkConfig, TappedNetwork
from emojax.models.taps import Slices, Tap


@dataclass(frozen=True, kw_only=True)
class OwnConfig(NetworkConfig):
    """Layers with their units, and what tells versions of the code apart."""

    preprocess: Any = field(repr=False)  # the user's, of which the key speaks
    layers: tuple[tuple[str, int], ...]
    key: str

    def units(self) -> dict[str, int]:
        """Units of every tap."""
        return dict(self.layers)

    def probed(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.units())


class OwnNetwork(TappedNetwork):
    """A function and its parameters."""

    def __init__(self, function: Callable[..., Any], params: PyTree, config: OwnConfig):
        """`function` is called as (params, images, gains)."""
        self.config = config
        self.function = function
        leaves, self.structure = jax.tree.flatten(params)
        self.leaves = nnx.List([nnx.Param(jnp.asarray(leaf)) for leaf in leaves])

    def run(self, images: Float[Array, "B H W C"], tap: Tap) -> Float[Array, "B classes"]:
        """Logits."""
        leaves = [leaf[...] for leaf in self.leaves]
        params = jax.tree.unflatten(self.structure, leaves)
        logits, taps = self.function(params, images, dict(tap.gains))
        tap.outputs.update(taps)
        return logits

    def outgoing(self, layer: str) -> tuple[Slices, ...]:
        """None: nobody knows which parameters do it."""
        return ()

    def starts_at(self, layer: str) -> None:
        """Only the images."""
        return

    def state_dict(self) -> dict[str, np.ndarray]:
        """Refused.

        Raises:
          ValueError: always; the network has no file.
        """
        raise ValueError("a network of your own code has no file to be written to")
