"""The networks that commands take: all have a config with classes, their names, layers and units.

A config's `units()` are all taps, its `probed()` those that are dissected when none are named.
"""

from typing import Any

from jax import Array

from emojax.models.compact import CompactNet
from emojax.models.deep_emotion import DeepEmotion
from emojax.models.tapped import TappedNetwork
from emojax.models.vgg import VggNet

Cuttable = VggNet | CompactNet  # run up to a layer and on from there; are tested by ten crops
Editable = Cuttable | TappedNetwork
Classifier = Editable | DeepEmotion


def last_hidden(model: Classifier) -> str | None:
    """The layer that logits are a product of, with at most a ReLU in between; None without one."""
    if isinstance(model, TappedNetwork):
        return model.last_hidden()
    return list(model.config.units())[-2] if isinstance(model, Cuttable) else None


def feeds_logits(model: Classifier, layer: str) -> bool:
    """Whether the logits are cheap to finish from a layer: the last hidden one, or themselves."""
    own = isinstance(model, Cuttable) and layer == list(model.config.units())[-1]
    return own or layer == last_hidden(model)


def outgoing_weights(model: Classifier) -> Array | None:
    """Weights [U, classes] of the last hidden layer to the logits; None without such a layer."""
    layer = last_hidden(model)
    if layer is None:
        return None
    if isinstance(model, TappedNetwork):
        return model.last_layer()[0]
    last: Any = getattr(model, list(model.config.units())[-1])
    return last.kernel[...]
