"""A record of activations that another framework computes: `collect` takes them batch by batch.

What `probe` does for networks in JAX, this does for any: the user's own code runs the network and
hands over images and activations; CLIP's image tower and the running statistics are the same
programs, and so is the record. Shapes: I images, B images added at once, U units of a layer.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.image_set import ImageSet
from emojax.distributed.mesh import make_mesh, put_batch, put_replicated
from emojax.errors import InputError
from emojax.ops.pooling import Pool, Tokens, over_tokens
from emojax.ops.topk import EMPTY
from emojax.probing import step as steps
from emojax.probing.partial import Recorder
from emojax.probing.probe import finish_record, probe_tile, whole_tiles
from emojax.probing.record import ProbeRecord, activations_key, find
from emojax.section import user_path
from emojax.store import content_key

Channels = Literal["auto", "first", "last"]


def collect(
    layers: Mapping[str, int],
    clip: ClipEncoder,
    images: ImageSet | int,
    *,
    pool: Pool = "avg",
    tokens: Tokens = "cls",
    channels: Channels = "auto",
    top_k: int = 100,
    batch: int = 256,
    tile: int | None = None,
    keep_activations: bool = False,
    mesh: Mesh | None = None,
    key: str | None = None,
    cache: Path | str | None = None,
    save_every: float = 60.0,
) -> "Collection":
    """A context that takes images and activations batch by batch and ends with a `ProbeRecord`.

    ```python
    with emojax.collect({"layer4": 2048}, clip, len(images)) as collection:
        for batch in loader:
            collection.add(batch, {"layer4": run_and_catch(batch)})
    record = collection.record
    ```

    Args:
      layers: units of each layer, by name, in the record's order.
      clip: the encoder whose image tower runs beside the network.
      images: how many images there will be, or the set, whose labels and names the record takes.
      pool: how activations with places become one number per unit, `avg` or `max` over space.
      tokens: how tokens do: `cls` takes the first, or their `mean` or `max`.
      channels: where the units' axis of activations with places is, `first` (PyTorch) or `last`;
        `auto` finds it by its length.
      top_k: length of the lists.
      batch: images per step, whatever is added at once; does not change results.
      tile: images computed together, see `in_tiles`.
      keep_activations: also keep the pooled activations [I, U].
      mesh: devices to shard the batch over; all when None.
      key: what tells the network and its images apart from others. With it and `cache` a stopped
        collection resumes, and a finished one is read instead of made.
      cache: folder of records by content key.
      save_every: seconds between snapshots.

    Raises:
      InputError: no layers, no images, or a job of several processes.
    """
    return Collection(
        layers,
        clip,
        images,
        pool=pool,
        tokens=tokens,
        channels=channels,
        top_k=top_k,
        batch=batch,
        tile=tile,
        keep_activations=keep_activations,
        mesh=mesh,
        key=key,
        cache=cache,
        save_every=save_every,
    )


class Collection:
    """What `collect` returns; made by it alone.

    Attributes:
      done: images that are in: where to begin, and where the next batch begins. All of them when
        the record was in the cache already.
    """

    def __init__(
        self,
        layers: Mapping[str, int],
        clip: ClipEncoder,
        images: ImageSet | int,
        *,
        pool: Pool,
        tokens: Tokens,
        channels: Channels,
        top_k: int,
        batch: int,
        tile: int | None,
        keep_activations: bool,
        mesh: Mesh | None,
        key: str | None,
        cache: Path | str | None,
        save_every: float,
    ):
        """As `collect`."""
        if jax.process_count() > 1:
            raise InputError("collect works in one process; start it without a job of several")
        self._layers = {str(name): int(units) for name, units in layers.items()}
        if not self._layers or min(self._layers.values()) < 1:
            raise InputError(f"layers {dict(layers)} name no units; give {{name: units}}")
        self._total = images if isinstance(images, int) else len(images)
        if self._total < 1:
            raise InputError(f"{self._total} images are none to collect")
        self._pool: Pool = pool
        self._tokens: Tokens = tokens
        self._axes: set[int] = set()  # numbers of axes that the activations have had
        self._channels: Channels = channels
        self._top_k = top_k
        self._mesh = mesh or make_mesh()
        self._tile = tile or probe_tile(self._mesh, clip.model.config)
        self._keep = keep_activations
        self._clip = clip
        self._batch = whole_tiles(min(batch, self._total), self._tile, self._mesh)
        own = None
        if key is not None:
            images_key = None if isinstance(images, int) else images.key
            origin = content_key(["collect", key, self._total])
            settings = [list(self._layers.items()), pool, top_k, self._tile, keep_activations]
            settings += [] if tokens == "cls" else [tokens]
            own = activations_key(origin, images_key, clip, settings)
        self._entry = None
        if cache is not None and own is not None:
            self._entry = user_path(cache) / own
        is_set = isinstance(images, ImageSet)
        self._build_record = functools.partial(
            ProbeRecord,
            layers=self._layers,
            labels=images.labels if is_set else None,
            classes=images.classes if is_set else (),
            ids=images.ids if is_set else [f"images/{row}" for row in range(self._total)],
            key=own,
            clip_key=clip.key,
            clip=clip,
            clip_name=clip.name,
        )
        self._save_every = save_every
        self._record: ProbeRecord | None = None
        self._recorder: Recorder | None = None
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []  # images and activations, in order
        self.done = 0

    def __enter__(self) -> "Collection":
        if self._entry is not None:
            self._record = find(self._entry, self._entry.name)
        if self._record is not None:
            self.done = self._total
            return self
        clip_graph, clip_params = nnx.split(self._clip.model)
        units = sum(self._layers.values())
        embedding = self._clip.model.config.embedding
        widths = {"embeddings": embedding} | ({"activations": units} if self._keep else {})
        self._recorder = Recorder(
            self._entry,
            self._total,
            widths,
            units=units,
            batch=self._batch,
            mesh=self._mesh,
            save_every=self._save_every,
            progress=None,
        )
        forward = steps.EmbedOnly(clip_graph, self._clip.preprocess)
        self._step = steps.cached_step(forward, self._tile, self._keep, self._mesh)
        self._params = put_replicated(self._mesh, clip_params)
        snapshot = self._recorder.restore()
        empty = steps.empty_state(units, self._top_k, embedding)
        self._state = steps.place(snapshot, empty, self._mesh)
        self.done = self._taken = self._recorder.done
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        with recorder:
            if kind is not None:
                return
            if self.done < self._total:
                raise InputError(
                    f"{self.done} of {self._total} images were added; add all in the context"
                )
            if self._waiting:
                self._run(self._total - self._taken)
            recorder.flush()
            host = steps.to_host(self._mesh, self._state, sum(self._layers.values()))
            build = functools.partial(
                self._build_record,
                pool=self._pool if 4 in self._axes else None,
                tokens=self._tokens if 3 in self._axes else None,
            )
            self._record = finish_record(recorder, host, self._total, build)

    @property
    def record(self) -> ProbeRecord:
        """The record, once the context has ended.

        Raises:
          InputError: it has not.
        """
        if self._record is None:
            raise InputError("the record is made when the collection's context ends")
        return self._record

    def add(self, images: Any, activations: Mapping[str, Any], *, start: int | None = None) -> None:
        """Takes the next images and what the layers gave for them.

        Args:
          images: uint8 [B, H, W, C] or [B, H, W] of numpy, JAX or PyTorch, as `probe` takes them.
          activations: of every layer, float of any width: [B, U]; with places [B, H, W, U] or
            [B, U, H, W]; or tokens [B, tokens, U].
          start: index of the first of these images; images that are in already are passed over.
            None: they follow the last ones.

        Raises:
          InputError: shapes or types do not fit, a layer is missing, or images were left out.
        """
        pixels = _pixels(images)
        count = len(pixels)
        first = self.done if start is None else start
        if first > self.done:
            raise InputError(f"images {self.done}…{first - 1} were left out; add them in order")
        if first + count > self._total:
            raise InputError(f"image {first + count - 1} is more than the {self._total} announced")
        if set(activations) != set(self._layers):
            raise InputError(
                f"activations are of {', '.join(map(str, activations))}, "
                f"the layers are {', '.join(self._layers)}"
            )
        known = self.done - first
        if known >= count:
            return
        pooled = [
            self._pooled(name, activations[name], count, units)[known:]
            for name, units in self._layers.items()
        ]
        self._waiting.append((pixels[known:], np.concatenate(pooled, axis=1)))
        self.done = first + count
        while self.done - self._taken >= self._batch:
            self._run(self._batch)

    def _pooled(self, name: str, given: Any, count: int, units: int) -> np.ndarray:
        """Activations of a layer as float32 [B, U]."""
        values = _numpy(given)
        if not np.issubdtype(values.dtype, np.floating):
            raise InputError(f"layer {name}: activations are {values.dtype}, not floating-point")
        shape = values.shape
        if values.ndim not in (2, 3, 4) or shape[0] != count:
            raise InputError(
                f"layer {name}: activations of {count} images have shape {shape}, not [B, U], "
                "[B, tokens, U], [B, H, W, U] or [B, U, H, W]"
            )
        axis = self._unit_axis(name, shape, units)
        self._axes.add(values.ndim)
        if values.ndim == 3:
            return np.asarray(over_tokens(np.asarray(values, np.float32), self._tokens))
        if values.ndim == 2:
            return np.asarray(values, np.float32)
        places = tuple(number for number in (1, 2, 3) if number != axis)
        values = np.asarray(values, np.float32)
        return values.max(axis=places) if self._pool == "max" else values.mean(axis=places)

    def _unit_axis(self, name: str, shape: tuple[int, ...], units: int) -> int:
        """The axis of the units, which tokens and dense layers have last."""
        last = len(shape) - 1
        candidates = {"first": [1], "last": [last], "auto": [1, last]}[self._channels]
        if last < 3:
            candidates = [last]
        fitting = [axis for axis in dict.fromkeys(candidates) if shape[axis] == units]
        if not fitting:
            raise InputError(f"layer {name}: activations {shape} have no axis of {units} units")
        if len(fitting) > 1:
            raise InputError(
                f"layer {name}: activations {shape} have two axes of {units}; "
                'say channels="first" (PyTorch) or "last"'
            )
        return fitting[0]

    def _run(self, count: int) -> None:
        """One step over the first waiting images, padded to a whole batch."""
        recorder = self._recorder
        if recorder is None:
            raise ValueError("a step outside the context")
        pixels, rows = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        rest = pixels[count:], rows[count:]
        self._waiting = [rest] if len(rest[0]) else []
        padding = self._batch - count
        indices = np.full(self._batch, EMPTY, np.int32)
        indices[:count] = np.arange(self._taken, self._taken + count, dtype=np.int32)
        pixels = np.pad(pixels[:count], ((0, padding), (0, 0), (0, 0), (0, 0)))
        rows = np.pad(rows[:count], ((0, padding), (0, 0)))
        placed = put_batch(self._mesh, pixels, rows, indices)
        inputs = steps.Collected(placed[0], placed[1])
        self._state, outputs = self._step(self._params, self._state, inputs, placed[2])
        recorder.take(self._taken, outputs)
        recorder.snapshot_if_due(self._taken, self._state)
        self._taken += count


def _numpy(array: Any) -> np.ndarray:
    """An array of numpy, JAX or PyTorch, on whatever device, as a numpy array."""
    if hasattr(array, "detach"):  # PyTorch, which is not imported here
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        return array.numpy()
    values = np.asarray(array)
    is_bfloat16 = values.dtype.name == "bfloat16"  # no type of numpy's own
    return values.astype(np.float32) if is_bfloat16 else values


def _pixels(images: Any) -> np.ndarray:
    """Images as uint8 [B, H, W, C].

    Raises:
      InputError: they are something else.
    """
    pixels = _numpy(images)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise InputError(
            f"images are uint8 [B, H, W], [.., 1] or [.., 3] (before any preprocessing), "
            f"not {pixels.dtype} {pixels.shape}"
        )
    return pixels
