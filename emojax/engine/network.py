"""The network under study, whoever wrote it: a pure function of parameters and images that returns `(logits, taps)`.

Shapes: B batch, T tile.
"""

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from emojax.data.loader import ImageSet, batches
from emojax.errors import InputError, did_you_mean
from emojax.mesh import AXIS, make_mesh, my_rows, put_batch, put_copy, readable
from emojax.models.compact import Editable
from emojax.ops.image import to_unit
from emojax.store import content_key


class ReturnsTaps(Protocol):
    """`logits, taps = model(images)`: taps maps layer names to outputs [B, U], [B, L, U] or [B, H, W, U]."""

    def __call__(self, images: jax.Array, /) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """Preprocessed images [B, …] → logits [B, classes] and taps."""


@dataclass(frozen=True)
class Network:
    """A network ready to run.

    Attributes:
      apply: (params, preprocessed images) → (logits [B, classes], taps).
      params: pytree of arrays.
      preprocess: uint8 images [B, H, W, C] → the network's input, on the device.
      key: content key of parameters and settings, or None where it cannot be known (a plain function, or
        a module with somebody's `preprocess`).
    """

    apply: Callable[[Any, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
    params: Any
    preprocess: Callable[[jax.Array], jax.Array]
    key: str | None

    def tap_shapes(self, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Shape of every tap for one image of this uint8 shape [H, W, C], in the network's order; nothing is computed."""
        order = []

        def taps(params: Any, image: jax.Array) -> Mapping[str, jax.Array]:
            found = self.apply(params, self.preprocess(image))[1]
            order.extend(found)  # the network's own order: jax would sort the names
            return found

        shapes = jax.eval_shape(taps, self.params, jax.ShapeDtypeStruct((1, *image_shape), np.uint8))
        return {name: shapes[name].shape for name in order}


def as_network(
    model: ReturnsTaps | nnx.Module,
    *,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    taps: str = "raw",
) -> Network:
    """Wraps a flax.nnx module or any function that returns `(logits, taps)`.

    `preprocess` turns uint8 images into the model's input; None takes the model's own `preprocess`, or division by 255.
    `taps="relu"` asks a VGGNet or a CompactNet for outputs after BatchNorm and ReLU.
    """
    chosen = preprocess or getattr(model, "preprocess", to_unit)
    if not isinstance(model, nnx.Module):
        return Network(lambda params, images: model(images), {}, chosen, None)
    graphdef, state = nnx.split(model)
    options = {"taps": taps} if isinstance(model, Editable) else {}
    key = None
    if preprocess is None:  # what somebody's function does to the images cannot be known
        key = content_key([type(model).__name__, repr(getattr(model, "config", "")), taps, parameters(state)])
    return Network(lambda params, images: nnx.merge(graphdef, params)(images, **options), state, chosen, key)


def parameters(state: nnx.State) -> dict[str, jax.Array]:
    """The arrays of a state under `a/b/c` names."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def resolve_layers(patterns: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """Layers that match the names or patterns (`conv*`), in the network's order.

    Raises:
      InputError: a pattern matches nothing; the message names the closest layers.
    """
    chosen = set()
    for pattern in patterns:
        matched = fnmatch.filter(available, pattern)
        if not matched:
            raise InputError(f"no layer {pattern!r}{did_you_mean(pattern, available)}")
        chosen.update(matched)
    return tuple(name for name in available if name in chosen)


def in_tiles(function: Callable[..., Any], tile: int, *arrays: jax.Array) -> Any:
    """Applies a function to `tile` rows at a time and joins the results along the first axis.

    A matrix product rounds differently for different numbers of rows. Work done in tiles of one size gives the same
    bits for an image whatever batch it comes in, on however many devices, so rankings and labels do not depend on them.
    The first axis must divide by the tile.
    """
    tiles = [array.reshape(-1, tile, *array.shape[1:]) for array in arrays]
    results = jax.lax.map(lambda rows: function(*rows), tuple(tiles))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def default_tile() -> int:
    """Rows that keep the device busy: few for a CPU's caches, many for a GPU's or TPU's matrix units."""
    return 16 if jax.default_backend() == "cpu" else 256


def map_images(
    function: Callable[[Any, jax.Array], Any],
    params: Any,
    images: ImageSet,
    *,
    batch: int,
    tile: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: bool = False,
) -> Any:
    """Applies `function(params, uint8 images [T, H, W, C])` to a whole set, in tiles, on all devices.

    Returns the function's pytree as numpy arrays with the images along the first axis, in every process. `batch` is how
    many images travel at once; it is rounded up to whole tiles on every device and does not change the results.
    `keep` holds on to the compiled program for the next call with this function object, which must hold no parameters.
    """
    mesh, tile, total = make_mesh(), tile or default_tile(), len(images)
    grain = mesh.size * tile
    batch = -(-min(batch, total) // grain) * grain
    step = (_kept_on_devices if keep else _on_devices)(function, mesh, tile)
    params = put_copy(mesh, params)
    results = []
    for start, chunk in zip(range(0, total, batch), batches(images.images, batch, rows=my_rows(mesh, batch)), strict=True):
        results.append(jax.tree.map(np.asarray, step(params, *put_batch(mesh, chunk.images))))
        if progress is not None:
            progress(min(start + batch, total), total)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *results)


def _on_devices(function: Callable[[Any, jax.Array], Any], mesh: Mesh, tile: int) -> Callable[[Any, jax.Array], Any]:
    """The function in tiles, its images split over the mesh."""

    def local(params: Any, chunk: jax.Array) -> Any:
        with jax.default_matmul_precision("highest"):
            return in_tiles(functools.partial(function, params), tile, chunk)

    parts = PartitionSpec(AXIS)
    # check_vma off: the carry types that lax.map would need are not known inside flax modules
    specs = {"in_specs": (PartitionSpec(), parts), "out_specs": parts, "check_vma": False}
    return jax.jit(jax.shard_map(local, mesh=mesh, **specs), out_shardings=readable(mesh))


_kept_on_devices = functools.lru_cache(maxsize=8)(_on_devices)
