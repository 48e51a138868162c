"""What image networks read from other libraries' files share: config, forward pass, edits.

A network gives `logits, taps = model(images)` and takes gains on the taps. A gain on a unit scales
its outgoing effect: where parameters carry it (`outgoing`), `with_gains` makes new ones that
compute the same. Shapes: B batch, H height, W width, U units of a layer.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, UInt8

from emojax.models.preprocess import Preprocess
from emojax.models.taps import Slices, Tap
from emojax.ops.arrays import AnyArray

POOLED = "pooled"  # the tap of what the classifier reads


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the config of any of these networks has.

    Attributes:
      classes: number of outputs.
      preprocess: uint8 images to the network's input.
      class_names: of the outputs in order, None where they are not known. They change no output, so
        they are no part of the repr, from which content keys are made.
    """

    classes: int
    preprocess: Preprocess
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    channels: ClassVar[int] = 3

    def units(self) -> dict[str, int]:
        """Units of every tap, in the order of the forward pass."""
        raise NotImplementedError

    def probed(self) -> tuple[str, ...]:
        """Layers that are dissected when none are named."""
        raise NotImplementedError


class TappedNetwork(nnx.Module):
    """Base of image networks: subclasses say how they run and where a layer's effect goes out."""

    config: Any  # a NetworkConfig; nnx gives modules no type parameters

    @abstractmethod
    def run(self, images: Float[Array, "B H W 3"], tap: Tap) -> Float[Array, "B classes"]:
        """Logits; every layer's output goes to the tap, and what it returns is computed on with."""

    @abstractmethod
    def outgoing(self, layer: str) -> tuple[Slices, ...]:
        """Parameters that scale with the layer's units; none where no parameters do it alone."""

    @abstractmethod
    def state_dict(self) -> dict[str, np.ndarray]:
        """The parameters under the names and in the layouts of the file that they came from."""

    def last_hidden(self) -> str | None:
        """The layer that the logits are a product of alone; None where there is none."""
        return POOLED if hasattr(self, "classifier") else None

    def last_layer(self) -> tuple[Array, Array]:
        """Kernel [U, classes] and bias of what makes logits of the last hidden layer."""
        classifier: Any = getattr(self, "classifier")  # noqa: B009 - subclasses have it
        return classifier.kernel[...], classifier.bias[...]

    def preprocess(self, images: UInt8[AnyArray, "B H W C"]) -> Float32[Array, "B h w 3"]:
        """uint8 images → the network's input, as its files say."""
        return self.config.preprocess(images)

    def __call__(
        self,
        images: Float[AnyArray, "B H W 3"],
        *,
        gains: Mapping[str, Float[Array, " U"]] | None = None,
        given: Mapping[str, Array] | None = None,
    ) -> tuple[Float[Array, "B classes"], dict[str, Array]]:
        """Preprocessed images → logits and every layer's output.

        `gains` [U] by layer multiply units' outputs. `given` outputs stand in for computed ones,
        and what only they depended on is not computed under jit.
        """
        tap = Tap(gains, given)
        logits = self.run(jnp.asarray(images), tap)
        return logits, tap.outputs

    def starts_at(self, layer: str) -> str | None:
        """The last tap that the layer follows from by itself: itself, or that before its block.

        None where only the images are known to lie before the layer.
        """
        trunk = ""
        for name in self.config.units():
            # Inside a block the states before it go on beside the layer.
            is_inside = "." in name and not name.rpartition(".")[2].startswith("block")
            if not is_inside:
                trunk = name
            if name == layer:
                return trunk
        raise ValueError(f"no layer {layer!r}")


class Scaled(TappedNetwork):
    """A network with gains on taps: an edit of layers whose effect no parameters carry alone."""

    def __init__(self, network: TappedNetwork, gains: Mapping[str, Float[AnyArray, " U"]]):
        self.config = network.config
        self.network = network
        self.scales = nnx.Dict({name: nnx.Param(jnp.asarray(gain)) for name, gain in gains.items()})

    def run(self, images: Float[Array, "B H W 3"], tap: Tap) -> Float[Array, "B classes"]:
        """Logits."""
        return self.network.run(images, tap.with_gains(self._gains()))

    def outgoing(self, layer: str) -> tuple[Slices, ...]:
        """None: the parameters are the network's."""
        return ()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Refused.

        Raises:
          ValueError: always; the network's own file has no place for gains.
        """
        layers = ", ".join(self.scales)
        raise ValueError(
            f"gains on {layers} are no parameters of a file; edit hidden units instead"
        )

    def _gains(self) -> dict[str, Array]:
        return {name: gain[...] for name, gain in self.scales.items()}


def edited(model: TappedNetwork, gains: Mapping[str, Float[AnyArray, " U"]]) -> TappedNetwork:
    """A network under gains: by new parameters where these carry a layer, else by scaling the tap.

    Raises:
      ValueError: as `with_gains`, for the number of units.
    """
    carried = {layer: gain for layer, gain in gains.items() if model.outgoing(layer)}
    network = with_gains(model, carried)
    others = {layer: gain for layer, gain in gains.items() if layer not in carried}
    return Scaled(network, others) if others else network


Network = TypeVar("Network", bound=TappedNetwork)


def with_gains(model: Network, gains: Mapping[str, Float[AnyArray, " U"]]) -> Network:
    """A network whose parameters carry the gains; the model itself is left alone.

    Its outputs are those of `model(images, gains=gains)`.

    Raises:
      ValueError: there is no such layer, it has another number of units, or no parameters carry
        its effect alone.
    """
    graphdef, state = nnx.split(model)
    leaves: dict[Any, Any] = dict(nnx.to_flat_state(state))
    units = model.config.units()
    for layer, gain in gains.items():
        if layer not in units:
            raise ValueError(f"no layer {layer!r}; layers: {', '.join(units)}")
        if np.shape(gain) != (units[layer],):
            raise ValueError(f"layer {layer} has {units[layer]} units, not {np.shape(gain)}")
        slices = model.outgoing(layer)
        if not slices:
            editable = [name for name in units if model.outgoing(name)]
            raise ValueError(
                f"the effect of layer {layer} goes out on several ways, so no parameters scale it "
                f"alone; layers with such parameters: {', '.join(editable)}"
            )
        for path, axis in slices:
            leaf = leaves[path]
            repeats = leaf.shape[axis] // units[layer]
            shape = [1] * len(leaf.shape)
            shape[axis] = -1
            factors = jnp.repeat(jnp.asarray(gain, leaf.dtype), repeats).reshape(shape)
            leaves[path] = leaf.replace(leaf[...] * factors)
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))
