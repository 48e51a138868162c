"""The networks that commands take: all have a config with classes, their names, layers and units.

A config's `units()` are all taps, its `probed()` those that are dissected when none are named.
"""

from emojax.models.compact import CompactNet
from emojax.models.deep_emotion import DeepEmotion
from emojax.models.tapped import TappedNetwork
from emojax.models.vgg import VggNet

Cuttable = VggNet | CompactNet  # run up to a layer and on from there; are tested by ten crops
Editable = Cuttable | TappedNetwork
Classifier = Editable | DeepEmotion
