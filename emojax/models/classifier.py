"""The networks that commands take: all have a config with classes, their names, layers and units.

A config's `units()` are all taps, its `probed()` those that are dissected when none are named.
"""

from emojax.models.deep_emotion import DeepEmotion
from emojax.models.tapped import TappedNetwork
from emojax.models.vgg import VggNet

Classifier = VggNet | DeepEmotion | TappedNetwork
Editable = VggNet | TappedNetwork
