"""Whether an encoder sees what tells the probe's images apart: their classes, by name alone.

A label is only as good as the encoder that made it, and an encoder that knows nothing of the images
gives labels all the same. The check needs a record of labelled images and the encoder's text tower.
Shapes: I images, C classes, D embedding.
"""

from typing import Any, NamedTuple

import numpy as np

from emojax.data.clip_encoder import ClipEncoder
from emojax.probing.record import ProbeRecord

_FEW = 50  # images from which on something can be said
AT_HOME = 0.5  # agreement beyond chance from which on an encoder knows the images
_WEAK = 0.1  # agreement beyond chance from which on an encoder is not said to be blind


class ZeroShot(NamedTuple):
    """Images put into classes by the nearest class name, against their labels.

    Attributes:
      images: how many.
      accuracy: share in the right class.
      chance: share that would be right if the same guesses were dealt out at random.
    """

    images: int
    accuracy: float
    chance: float

    @property
    def kappa(self) -> float:
        """Agreement beyond chance, 0 for guesses at random and 1 for all right (Cohen 1960)."""
        return (self.accuracy - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0

    @property
    def weak(self) -> bool:
        """Whether the encoder hardly tells the classes apart, which takes some images to say."""
        return self.kappa < _WEAK and self.images >= _FEW


def zero_shot(record: ProbeRecord, clip: ClipEncoder) -> ZeroShot | None:
    """The check on all images of a record.

    Class names are embedded as they are, like concepts. None for images without labels, of a single
    class, or of classes whose names are longer than the encoder's context.

    Args:
      record: of the images, made with this encoder.
      clip: the encoder.
    """
    labels, classes = record.labels, record.classes
    if labels is None or len(np.unique(labels)) < 2:
        return None
    if max(map(len, clip.tokenizer(list(classes)))) > clip.model.config.context:
        return None
    guesses = (record.embeddings @ clip.embed_texts(classes).T).argmax(axis=1)
    shares = [np.bincount(rows, minlength=len(classes)) / len(labels) for rows in (guesses, labels)]
    return ZeroShot(len(labels), float((guesses == labels).mean()), float(shares[0] @ shares[1]))


def doubts(clip: ClipEncoder, check: ZeroShot | None) -> list[str]:
    """What is to be known of an encoder before its labels are believed; none of one that is fit.

    An encoder that knows one kind of images and tells the probe's classes apart is at home there.
    """
    lines = []
    if clip.trained_on is not None and (check is None or check.kappa < AT_HOME):
        lines.append(
            f"{clip.name} was trained on {clip.trained_on} alone: of other images its labels mean "
            "little, however many are above chance; use a CLIP that knows them"
        )
    if check is not None and check.weak:
        lines.append(
            f"{clip.name} puts {check.accuracy:.1%} of {check.images} images into the right class "
            f"by the class names alone (chance {check.chance:.1%}): it hardly sees what tells them "
            "apart, so labels may be of anything; use a CLIP that knows such images"
        )
    return lines


def summary(clip: ClipEncoder, check: ZeroShot | None) -> dict[str, Any]:
    """What is known of an encoder, ready for JSON."""
    known = {"name": clip.name, "trained_on": clip.trained_on}
    if check is None:
        return known
    return known | {"zero_shot": {**check._asdict(), "kappa": check.kappa, "weak": check.weak}}
