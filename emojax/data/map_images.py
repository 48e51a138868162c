"""Applies a function to every image of a set, on all devices, and gathers the results on the host.

Evaluation, activations before a layer and the demo's truth run their networks through it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from emojax.data.image_set import ImageSet
from emojax.data.loader import batches
from emojax.distributed.data_parallel import data_parallel, default_tile
from emojax.distributed.mesh import local_rows, make_mesh, put_batch, put_replicated


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
    """Applies `function(params, uint8 images [T, H, W, C])` to a set, in tiles, on all devices.

    Args:
      function: gives a pytree of arrays whose first axis is the images' [T].
      params: pytree of arrays, replicated to every device.
      images: the set.
      batch: images sent to the devices at once, rounded up to whole tiles on every device; results
        do not depend on it.
      tile: images computed together; None suits the device.
      progress: called with (images done, images in all) after every batch.
      keep: hold on to the compiled program for the next call with this function object, which must
        then hold no parameters of its own.

    Returns:
      The function's pytree as numpy arrays with the images along the first axis, in every process.
    """
    mesh = make_mesh()
    tile = tile or default_tile()
    total = len(images)
    grain = mesh.size * tile
    batch = -(-min(batch, total) // grain) * grain
    build = _cached_program if keep else _program
    step = build(function, mesh, tile)
    params = put_replicated(mesh, params)
    chunks = batches(images.images, batch, rows=local_rows(mesh, batch))
    results = []
    for start, chunk in zip(range(0, total, batch), chunks, strict=True):
        results.append(jax.tree.map(np.asarray, step(params, *put_batch(mesh, chunk.images))))
        if progress is not None:
            progress(min(start + batch, total), total)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:total], *results)


def _program(
    function: Callable[..., Any], mesh: jax.sharding.Mesh, tile: int
) -> Callable[..., Any]:
    return data_parallel(function, mesh, replicated=1, sharded=1, tile=tile)


_cached_program = functools.lru_cache(maxsize=8)(_program)
