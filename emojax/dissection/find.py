"""Units by what they answer to: a text of any kind against all units, and units against each other.

Correlations of a unit's activation with the images' cosines to a text are comparable between
layers, and need nothing but a record's sums. Shapes: U units of all layers side by side, T texts, D
embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from emojax.brief import brief
from emojax.data.clip_encoder import ClipEncoder
from emojax.data.concepts import ConceptSet
from emojax.dissection.dissect import concept_texts, dissect
from emojax.errors import InputError
from emojax.probing.record import ProbeRecord
from emojax.tables import Tabular


class Profiles(NamedTuple):
    """How every unit correlates with each of some texts.

    Attributes:
      texts: the texts, each once.
      correlation: of unit and text; 0 for a unit that does not vary.
    """

    texts: tuple[str, ...]
    correlation: Float[np.ndarray, "U T"]


@brief
@dataclass(frozen=True)
class FoundUnits(Tabular):
    """All units, those first that answer most to a text.

    Attributes:
      text: what was searched for.
      layer: of each unit; `unit` its number in the layer.
      correlation: of the unit's activation with the images' cosines to the text, falling.
    """

    text: str
    layer: np.ndarray
    unit: Int[np.ndarray, " U"]
    correlation: Float[np.ndarray, " U"]

    def columns(self) -> dict[str, np.ndarray]:
        """A row per unit."""
        return {"layer": self.layer, "unit": self.unit, "correlation": self.correlation}


def profiles(
    record: ProbeRecord, texts: Sequence[str], embeddings: Float[np.ndarray, "T D"]
) -> Profiles:
    """Profiles of all units, from the record alone; `embeddings` are those of the texts."""
    dissection = dissect(
        record, list(texts), similarity="correlation", text_embeddings=embeddings, trust=False
    )
    return Profiles(tuple(texts), dissection.scores)


def find_units(record: ProbeRecord, text: str, clip: ClipEncoder | None = None) -> FoundUnits:
    """All units by how much they answer to a text.

    Args:
      record: from `probe` or `collect`.
      text: any text that the encoder can read.
      clip: the encoder that made the record; not needed in the process that made it.

    Raises:
      InputError: no encoder, another one than the record's, or a text that is too long for it.
    """
    if not text.strip():
        raise InputError("an empty text finds no unit; say what the units should answer to")
    asked = ConceptSet((text,))
    dissection = dissect(
        record,
        asked,
        similarity="correlation",
        text_embeddings=concept_texts(record, asked, clip, None),
        trust=False,
    )
    order = np.argsort(-dissection.best, kind="stable")
    table = dissection.columns()
    return FoundUnits(text, table["layer"][order], table["unit"][order], dissection.best[order])


def places(correlation: Float[np.ndarray, "U T"]) -> Float[np.ndarray, "U 2"]:
    """Units on a map: their profiles' first two principal components, the largest coordinate 1.

    The directions are those of the eigenvectors whose largest entry is positive. Fewer than two
    texts leave coordinates at 0.
    """
    centred = np.float64(correlation) - correlation.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # values rise
    axes = vectors[:, ::-1][:, :2]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])
    on_map = np.zeros((len(centred), 2))
    on_map[:, : axes.shape[1]] = centred @ axes
    return (on_map / (np.abs(on_map).max() or 1.0)).astype(np.float32)
