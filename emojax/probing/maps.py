"""Where in an image a unit is active: its layer's output before it is pooled, in a few cells.

The probe pools every layer on the device and keeps one number per image and unit, so the network
runs once more over the few images that are shown. Shapes: M units that have maps, S images of each,
B batch, h and w rows and columns of a layer's maps.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from emojax.brief import brief
from emojax.data.image_set import ImageSet
from emojax.errors import InputError
from emojax.ops.pooling import Pool, Tokens, cells, map_shape, pool
from emojax.probing.network import Apply, Network, Part, Preprocess
from emojax.probing.record import ProbeRecord

SIDE = 10  # most rows and columns
UNITS = 400  # units that have maps, of those in order of trust
IMAGES = 6  # of each
_BATCH = 16
_FAR = 0.05  # of a layer's largest activation: what another precision does not come to


@brief
@dataclass(frozen=True)
class Maps:
    """Activation maps of some units' top images.

    Attributes:
      sides: rows and columns of the maps of each layer [L, 2]; zeros without maps.
      units: which of all units they are of [M].
      images: how many of each unit's top images have one.
      values: the maps of one unit after another, each image's row by row; 0 is the least and 255
        the largest value of the unit's maps.
      part: what of an image a map lies over: top, left, height and width, as shares of the image.
    """

    sides: Int[np.ndarray, "L 2"]
    units: Int[np.ndarray, " M"]
    images: int
    values: UInt8[np.ndarray, " values"]
    part: Part


@dataclass(frozen=True)
class _Program:
    """Maps and pooled activations of some layers; equal for networks of one architecture."""

    apply: Apply
    preprocess: Preprocess
    layers: tuple[str, ...]
    pool: Pool
    tokens: Tokens

    def __call__(
        self, params: PyTree, images: UInt8[Array, "B H W channels"]
    ) -> list[tuple[Float[Array, "B h w U"], Float[Array, "B U"]]]:
        """Of every layer, float32."""
        with jax.default_matmul_precision("highest"):
            taps = self.apply(params, self.preprocess(images))[1]
        outputs = [taps[name].astype(jnp.float32) for name in self.layers]
        how = self.pool, self.tokens
        return [(cells(out, SIDE), jnp.asarray(pool(out, *how))) for out in outputs]


def _compiled(program: _Program) -> Callable:
    return jax.jit(program)


_cached = functools.lru_cache(maxsize=4)(_compiled)


def activation_maps(
    network: Network,
    images: ImageSet,
    record: ProbeRecord,
    order: Int[np.ndarray, " U"],
    *,
    units: int = UNITS,
    progress: Callable[[int, int], None] | None = None,
) -> Maps | None:
    """Maps of the first units in an order whose layers have places, on their top images.

    Args:
      network: the network that was probed.
      images: the images that were probed.
      record: of the probe.
      order: all units, those first that shall have maps.
      units: most units that have maps.
      progress: called with (images done, images in all) after every batch.

    Returns:
      The maps; None where no probed layer has places.

    Raises:
      InputError: the network does not give the record's activations.
    """
    shapes = network.tap_shapes(images.images.shape[1:])
    if any(shapes.get(name, (0,))[-1] != size for name, size in record.layers.items()):
        raise _other(network)
    shape_of = {name: map_shape(shapes[name], SIDE) or (0, 0) for name in record.layers}
    sides = np.array(list(shape_of.values()))
    segments = record.segment_ids
    mapped = np.sort(order[sides[segments[order]].any(axis=1)][:units])  # layer after layer
    if not len(mapped):
        return None
    shown = min(IMAGES, record.images, record.top.values.shape[2])
    top = record.top_k(shown)
    rows = np.asarray(top.indices)
    layers = []
    for number, name in enumerate(record.layers):
        own = mapped[segments[mapped] == number]
        if len(own):
            first = int(np.argmax(segments == number))
            layers.append(_Layer(name, own, first, rows[own], shape_of[name]))
    names = tuple(layer.name for layer in layers)
    how = record.pool or "avg", record.tokens or "cls"
    program = _Program(network.apply, network.preprocess, names, *how)
    compiled = (_cached if network.reusable else _compiled)(program)
    for numbers, pixels in _batches(images, np.unique(rows[mapped]), progress):
        for layer, outputs in zip(layers, compiled(network.params, pixels), strict=True):
            layer.take(numbers, *map(np.asarray, outputs))
    for layer in layers:
        expected = top.values[layer.units]
        if np.median(np.abs(layer.pooled - expected)) > _FAR * np.abs(expected).max():
            raise _other(network)
    values = np.concatenate([_coded(layer.maps).ravel() for layer in layers])
    return Maps(sides, mapped, shown, values, network.part(*images.images.shape[1:3]))


class _Layer:
    """What is gathered of one layer: maps [m, S, h, w] and pooled activations [m, S]."""

    def __init__(
        self, name: str, units: np.ndarray, first: int, rows: np.ndarray, side: tuple[int, int]
    ):
        """Of `units` of all, where the layer's own begin at `first`, on images `rows` [m, S]."""
        self.name = name
        self.units = units
        self._own = units - first
        self._rows = rows
        self.maps = np.zeros((*rows.shape, *side), np.float32)
        self.pooled = np.zeros(rows.shape, np.float32)

    def take(self, numbers: np.ndarray, maps: np.ndarray, pooled: np.ndarray) -> None:
        """What units of interest have on a batch of images, whose numbers are in order."""
        unit, image = np.nonzero(np.isin(self._rows, numbers))
        row = np.searchsorted(numbers, self._rows[unit, image])
        self.maps[unit, image] = maps[row, ..., self._own[unit]]
        self.pooled[unit, image] = pooled[row, self._own[unit]]


def _batches(
    images: ImageSet, rows: np.ndarray, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of images, and these in batches of one size, the last one filled up."""
    for start in range(0, len(rows), _BATCH):
        numbers = rows[start : start + _BATCH]
        read = [np.asarray(images.images[int(row) : int(row) + 1]) for row in numbers]
        yield numbers, np.concatenate([*read, *[read[0]] * (_BATCH - len(read))])
        if progress is not None:
            progress(start + len(numbers), len(rows))


def _coded(maps: np.ndarray) -> np.ndarray:
    """Maps [m, S, h, w] in 256 steps between the least and the largest value of each unit."""
    low = maps.min(axis=(1, 2, 3), keepdims=True)
    spread = maps.max(axis=(1, 2, 3), keepdims=True) - low
    return np.rint((maps - low) / np.where(spread > 0, spread, 1) * 255).astype(np.uint8)


def _other(network: Network) -> InputError:
    return InputError(
        f"{network.name or 'the network'} does not give the record's activations; pass the network "
        "that was probed, with the same taps and preprocessing"
    )
