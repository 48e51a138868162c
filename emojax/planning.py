"""The steps of a job with shapes in place of arrays, to be compiled for accelerators that are not
there (`distributed.plan`).

They are the same jitted functions that probe, dissect, sweep and train call, for networks of a
config: no weights are read, and none are made. Shapes: I images, U units of all layers, K top-k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from emojax.data.clip_encoder import CLIP_MEAN, CLIP_STD
from emojax.data.image_set import ImageSet
from emojax.dissection import scores, wpmi
from emojax.dissection.options import Consensus, SoftWpmi, Wpmi
from emojax.distributed.plan import PlannedStep, one_device
from emojax.editing import sweep
from emojax.errors import InputError
from emojax.models.classifier import Classifier, last_hidden
from emojax.models.clip import Clip
from emojax.models.preprocess import Preprocess
from emojax.models.siglip import Siglip
from emojax.ops.augment import Augment
from emojax.ops.pooling import Pool
from emojax.probing import step as probing
from emojax.probing.network import as_network, pooled_taps, resolve_layers
from emojax.probing.precision import Precision as ProbePrecision
from emojax.probing.precision import in_bfloat16
from emojax.probing.probe import probe_tile, whole_tiles
from emojax.training import step as training
from emojax.training.classifiers import Precision, classification_task
from emojax.training.recipe import Recipe


@dataclass(frozen=True)
class ImageShape:
    """The images of a job: how many, and what each is."""

    count: int
    height: int
    width: int
    channels: int

    @property
    def one(self) -> tuple[int, int, int]:
        """Shape of an image; it has as many bytes as the product."""
        return self.height, self.width, self.channels


@dataclass(frozen=True)
class Encoder:
    """CLIP or SigLIP as shapes, and its preprocessing."""

    model: Clip | Siglip
    preprocess: Preprocess

    @classmethod
    def of(
        cls, build: Callable[[], Clip | Siglip], preprocess: Preprocess | None = None
    ) -> "Encoder":
        """From a function that builds the network; CLIP's own preprocessing when None is given."""
        model = nnx.eval_shape(build)
        side = model.config.image_size
        return cls(model, preprocess or Preprocess(side, (side, side), CLIP_MEAN, CLIP_STD))


def as_shapes(build: Callable[[], Classifier]) -> Classifier:
    """A network in eval mode with shapes in place of its parameters."""

    def network() -> Classifier:
        model = build()
        model.eval()
        return model

    return nnx.eval_shape(network)


class ProbePlan(NamedTuple):
    """A probe's step, with what the plan says of it beside the compiler.

    Attributes:
      planned: the step.
      tile: images computed together.
      batch: images of a step.
      state: lists and sums of all units, as shapes.
      row_bytes: of what is kept of an image.
    """

    planned: PlannedStep
    tile: int
    batch: int
    state: probing.State
    row_bytes: int


def probe_step(
    model: Classifier,
    encoder: Encoder,
    images: ImageShape,
    mesh: Mesh,
    *,
    layers: Sequence[str] = (),
    pool: Pool = "avg",
    taps: str = "raw",
    top_k: int = 100,
    batch: int = 256,
    tile: int | None = None,
    keep_activations: bool = False,
    precision: ProbePrecision = "exact",
) -> ProbePlan:
    """The step of `probe` for these shapes; the batch is rounded up as there.

    Raises:
      InputError: no such layer.
    """
    network = as_network(model, taps=taps)
    shapes = network.tap_shapes(images.one)
    names = resolve_layers(layers or model.config.probed(), list(shapes))
    units = sum(shapes[name][-1] for name in names)
    tower = encoder.model
    if precision == "bfloat16":
        network, tower = network.in_bfloat16(), in_bfloat16(tower)
    graph, params = nnx.split(tower)
    forward = probing.Forward(pooled_taps(network, names, pool), graph, encoder.preprocess)
    tile = tile or probe_tile(mesh, encoder.model.config)
    size = whole_tiles(batch, tile, mesh)
    step = probing.make_step(forward, tile, keep_activations, mesh, precision)
    embedding = encoder.model.config.embedding
    empty = jax.eval_shape(lambda: probing.empty_state(units, top_k, embedding))
    arguments = probing.shapes(mesh, (network.params, params), empty, size, images.one)
    loops = probing.sum_loops(size, tile, mesh)
    planned = PlannedStep(step, arguments, size, probing.PARTS, loops)
    row_bytes = 4 * (embedding + (units if keep_activations else 0))
    return ProbePlan(planned, tile, size, empty, row_bytes)


def score_step(
    model: Classifier,
    encoder: Encoder,
    images: int,
    concepts: int,
    mesh: Mesh,
    options: SoftWpmi | Wpmi,
    *,
    layers: Sequence[str] = (),
    null_sets: int = 1000,
) -> PlannedStep:
    """The scoring of a record of so many images by `wpmi`, `soft_wpmi` or consensus.

    Consensus is soft_wpmi on all devices; correlation and the mean of both follow on one, of all
    images and of either half.
    """
    units = model.config.units()
    sizes = tuple(
        units[name] for name in resolve_layers(layers or model.config.probed(), list(units))
    )
    blocks = 3 if images // 2 >= options.top_k else 1
    program = wpmi.program_of(mesh, options, sizes, blocks, concepts)
    lists = blocks * sum(sizes) + null_sets
    if options.prior != "images":  # the embeddings of listed images alone are needed
        images = min(images, lists * options.top_k)
    embedding = encoder.model.config.embedding
    arguments = wpmi.shapes(mesh, (lists, options.top_k), images, concepts, embedding)
    then = ()
    if isinstance(options, Consensus):
        programs = scores.programs_of_consensus(one_device(mesh), sum(sizes), concepts, embedding)
        then = tuple(
            PlannedStep(step, shapes, images, {name: name.partition("_")[0]}, runs=blocks)
            for name, (step, shapes) in programs.items()
        )
    return PlannedStep(program, arguments, images, wpmi.PARTS, then=then)


def sweep_step(model: Classifier, images: int, mesh: Mesh) -> PlannedStep:
    """A chunk of masks of the last hidden layer over a batch of test images.

    Raises:
      InputError: the network has no layer that feeds its logits.
    """
    units = model.config.units()
    layer = last_hidden(model)
    if layer is None or not model.config.classes:
        raise InputError(
            f"a {type(model).__name__} has no layer before logits whose masks could be swept; "
            "leave sweep out of --plan.steps"
        )
    masks = sweep.mask_step(mesh, units[layer], model.config.classes, images)
    return PlannedStep(masks.program, masks.arguments, masks.images, sweep.PARTS)


def train_step(
    build: Callable[[ImageSet], Any],
    images: ImageShape,
    mesh: Mesh,
    recipe: Recipe,
    *,
    classes: int = 7,
    batch: int,
    augment: Augment = "flip",
    precision: Precision = "float32",
    label_smoothing: float = 0.0,
    shard: bool = False,
) -> PlannedStep:
    """A step of training the network that `build` makes for a labelled set.

    The images are streamed where they are many. The batch is rounded up to the devices.

    Raises:
      InputError: the images do not fill a batch.
    """
    batch = -(-batch // mesh.size) * mesh.size
    names = tuple(f"class {number}" for number in range(classes))
    pixels = np.broadcast_to(np.uint8(0), (images.count, *images.one))  # takes no memory
    labels = np.zeros(images.count, np.int32)
    held = ImageSet(pixels, labels, names, ("",) * images.count, "", "the images to plan for")
    task = classification_task(
        nnx.eval_shape(lambda: build(held)),
        held,
        batch=batch,
        label_smoothing=label_smoothing,
        augment=augment,
        precision=precision,
    )
    state, shardings = training.shapes(mesh, *task.start(0), recipe, shard=shard)
    step = training.make_step(task.loss, recipe, mesh, shardings)
    rows: Any = jax.ShapeDtypeStruct((batch,), np.int32)
    if task.data is None:
        rows = jax.ShapeDtypeStruct((batch, *images.one), np.uint8), rows
    arguments = training.step_shapes(mesh, state, task.data, rows)
    return PlannedStep(step, arguments, batch, training.PARTS)
