"""What a probe leaves behind: enough to score any concept set later, without the images. Also on disk, by content key.

Shapes: I images, U units of all layers in a row, K top-k, D embedding.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from emojax.data.loader import ImageSet
from emojax.data.weights import ClipEncoder
from emojax.engine.network import Network
from emojax.errors import InputError
from emojax.ops import topk
from emojax.ops.moments import Moments
from emojax.ops.pooling import Pool
from emojax.ops.topk import TopK
from emojax.store import atomic_folder, content_key, write_json

_FORMAT = 1  # of a record on disk; part of its key


@dataclass
class ProbeRecord:
    """What a probe keeps; any concept set can be scored with it later, without the images.

    Attributes:
      layers: units of each layer, in order; U is their sum.
      top: lists of even and odd images, values and image indices [2, U, K].
      moments: sums over images: total [U], square [U], cross [U, D], gram [D, D]; float64.
      embeddings: unit image embeddings [I, D] float32.
      labels: class of each image [I] int32, or None; `classes` their names.
      ids: name of each image.
      key: content key of all that made the record, or None for a plain function.
      activations: pooled activations [I, U] float32 when they were kept.
      clip: the encoder that made the embeddings, when in the same process.
    """

    layers: dict[str, int]
    top: TopK
    moments: Moments
    embeddings: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    ids: Sequence[str]
    key: str | None
    activations: np.ndarray | None = None
    clip: ClipEncoder | None = field(default=None, repr=False)

    @cached_property
    def segment_ids(self) -> np.ndarray:
        """Layer index of each unit [U] int32."""
        return np.repeat(np.arange(len(self.layers), dtype=np.int32), list(self.layers.values()))

    @cached_property
    def merged(self) -> TopK:
        """Lists over all images [U, K]."""
        size = self.top.values.shape[2]
        merged = jax.jit(topk.merge, static_argnums=1)(TopK(*map(jnp.asarray, self.top)), size)
        return TopK(*map(np.asarray, merged))

    @property
    def images(self) -> int:
        """Number of probe images."""
        return self.embeddings.shape[0]

    def top_k(self, k: int) -> TopK:
        """The k most activating images of every unit [U, k], ties to the lower index.

        Raises:
          InputError: the record holds fewer than k.
        """
        have = min(self.top.values.shape[2], self.images)
        if k > have:
            cure = f"--probe.top-k {k}" if k <= self.images else f"a probe set of at least {k} images"
            raise InputError(f"the top {k} images of each unit are needed, the record holds {have}; use {cure}")
        return TopK(self.merged.values[:, :k], self.merged.indices[:, :k])


def record_key(
    network: Network,
    images: ImageSet,
    clip: ClipEncoder,
    layers: Sequence[str],
    pool: Pool,
    top_k: int,
    tile: int,
    keep_activations: bool,
) -> str | None:
    """Content key of a record, from all that its numbers depend on; None for a network without a key."""
    if network.key is None:
        return None
    settings = [list(layers), pool, top_k, tile, keep_activations, jax.default_backend()]
    return content_key([_FORMAT, network.key, images.key, clip.key, settings])


def save(record: ProbeRecord, folder: Path) -> None:
    """Writes a record as a folder: `record.json`, `statistics.safetensors`, `embeddings.npy`, `activations.npy`."""
    from safetensors.numpy import save_file

    with atomic_folder(folder) as building:
        arrays = {"top_values": record.top.values, "top_indices": record.top.indices, **record.moments._asdict()}
        if record.labels is not None:
            arrays["labels"] = record.labels
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, building / "statistics.safetensors")
        np.save(building / "embeddings.npy", record.embeddings)
        if record.activations is not None:
            np.save(building / "activations.npy", record.activations)
        about = {"format": _FORMAT, "key": record.key, "classes": record.classes, "ids": list(record.ids)}
        write_json(building / "record.json", about | {"layers": [[k, v] for k, v in record.layers.items()]})


def load(folder: Path) -> ProbeRecord:
    """Reads what `save` wrote; embeddings and activations are memory-mapped.

    Raises:
      InputError: the folder is no record, is damaged, or is of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        about = json.loads((folder / "record.json").read_text("utf-8"))
        if about["format"] != _FORMAT:
            raise InputError(f"{folder} is a probe record of format {about['format']}, not {_FORMAT}; probe again")
        arrays = load_file(folder / "statistics.safetensors")
        kept = folder / "activations.npy"
        return ProbeRecord(
            layers=dict(about["layers"]),
            top=TopK(arrays["top_values"], arrays["top_indices"]),
            moments=Moments(*(arrays[name] for name in Moments._fields)),
            embeddings=np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False),
            labels=arrays.get("labels"),
            classes=tuple(about["classes"]),
            ids=about["ids"],
            key=about["key"],
            activations=np.load(kept, mmap_mode="r", allow_pickle=False) if kept.exists() else None,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: not a readable probe record ({error}); delete it and probe again") from None
