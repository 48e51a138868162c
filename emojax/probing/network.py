"""The network under study, whoever wrote it, as a pure function of parameters and images.

Probe, evaluation and ground truth all run a model through `Network`: its forward pass returns
`(logits, taps)`, where a tap is the output of one layer. Shapes: B batch, U units of the layers.
"""

import fnmatch
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree, UInt8

from emojax.errors import InputError, did_you_mean
from emojax.models.classifier import Cuttable
from emojax.models.own import OwnConfig, OwnNetwork
from emojax.models.preprocess import Preprocess as Preprocessing
from emojax.ops.image import to_unit
from emojax.ops.pooling import Pool, Tokens, pool
from emojax.probing.precision import in_bfloat16
from emojax.store import content_key

Taps = Mapping[str, jax.Array]
Apply = Callable[[PyTree, jax.Array], tuple[jax.Array, Taps]]
Preprocess = Callable[[jax.Array], jax.Array]
Scaled = Callable[[PyTree, jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, Taps]]
Part = tuple[float, float, float, float]  # top, left, height, width, as shares of an image
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)


@runtime_checkable
class ReturnsTaps(Protocol):
    """`logits, taps = model(images)`: taps maps layer names to outputs.

    An output is [B, U] (dense), [B, tokens, U] (transformer) or [B, H, W, U] (convolution).
    """

    def __call__(self, images: jax.Array, /) -> tuple[jax.Array, Taps]:
        """Preprocessed images [B, …] → logits [B, classes] and taps."""
        ...


@dataclass(frozen=True)
class Network:
    """A network ready to run.

    Attributes:
      apply: (params, preprocessed images) → (logits [B, classes], taps).
      params: pytree of arrays.
      preprocess: uint8 images [B, H, W, C] → the network's input, on the device.
      key: content key of parameters and settings, or None where it cannot be known (a plain
        function, or a module with somebody's `preprocess`).
      reusable: `apply` and `preprocess` hold no arrays and are equal where they compute the same,
        so that programs made of them may be kept for the next network of this architecture.
      antialias: whether `preprocess` resizes with antialiasing; None where the model has no such
        choice.
      name: of the class or function, for reports.
      scaled: `apply` under gains: (params, preprocessed images, {layer: [U]}); None for a network
        that does not take any.
    """

    apply: Apply
    params: PyTree
    preprocess: Preprocess
    key: str | None
    reusable: bool = False
    antialias: bool | None = None
    name: str | None = None
    scaled: Scaled | None = None

    def in_bfloat16(self) -> "Network":
        """The same network computing in bfloat16; its key stays that of the exact one.

        Raises:
          InputError: it is no flax module, and computes as its own code says.
        """
        if not isinstance(self.apply, _ModuleApply):
            raise InputError(
                "precision bfloat16 (--probe.precision) is for flax modules; a function computes "
                "in what it is written in"
            )
        rounded = in_bfloat16(nnx.merge(self.apply.graphdef, self.params))
        graphdef, params = nnx.split(rounded)
        return replace(self, apply=_ModuleApply(graphdef, self.apply.taps), params=params)

    def part(self, height: int, width: int) -> Part:
        """What of images of this size reaches the network, where its preprocessing crops.

        Somebody's own `preprocess` cannot be asked: all of the image is assumed.
        """
        own = self.preprocess
        return own.part(height, width) if isinstance(own, _ModulePreprocess) else WHOLE

    def classes(self, image_shape: Sequence[int]) -> int:
        """How many logits it gives for one image of uint8 [H, W, C]; nothing is computed."""

        def logits(params: PyTree, image: jax.Array) -> jax.Array:
            return self.apply(params, self.preprocess(image))[0]

        image = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
        return jax.eval_shape(logits, self.params, image).shape[-1]

    def tap_shapes(self, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Shape of every tap for one image of uint8 [H, W, C], in the network's order.

        Nothing is computed.
        """
        leaves, structure = jax.tree.flatten(self.params)
        find_shapes = _tap_shapes.__wrapped__
        if self.reusable:
            find_shapes = _tap_shapes
            leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        return dict(
            find_shapes(self.apply, self.preprocess, tuple(leaves), structure, tuple(image_shape))
        )


@functools.lru_cache(maxsize=32)
def _tap_shapes(
    apply: Apply,
    preprocess: Preprocess,
    leaves: tuple[jax.Array | jax.ShapeDtypeStruct, ...],
    structure: Hashable,  # a PyTreeDef, which is no type
    image_shape: tuple[int, ...],
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape) of every tap; parameters may be given by their shapes."""
    order = []

    def taps(params: PyTree, image: jax.Array) -> Taps:
        outputs = _taps_of(apply(params, preprocess(image)))
        order.extend(outputs)  # the network's own order: JAX would sort the names
        return outputs

    params = jax.tree.unflatten(cast(Any, structure), leaves)
    shapes = jax.eval_shape(taps, params, jax.ShapeDtypeStruct((1, *image_shape), np.uint8))
    return tuple((name, shapes[name].shape) for name in order)


def _taps_of(returned: Any) -> Taps:
    """The taps among what a network returns.

    Raises:
      InputError: there are none, or one of them is no layer's output.
    """
    wanted = "(logits, taps), taps a dict of layers' outputs by name (docs/tutorial.md)"
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    if not is_pair or not isinstance(returned[1], Mapping) or not returned[1]:
        what = "an array alone" if hasattr(returned, "shape") else f"a {type(returned).__name__}"
        if is_pair:
            what = "no taps" if isinstance(returned[1], Mapping) else "taps that are no dict"
        raise InputError(f"the network returns {what}; it must return {wanted}")
    for name, output in returned[1].items():
        if getattr(output, "ndim", 0) not in (2, 3, 4):
            shape = getattr(output, "shape", type(output).__name__)
            raise InputError(f"tap {name!r} is {shape}, not [B, U], [B, tokens, U] or [B, H, W, U]")
    return returned[1]


@dataclass(frozen=True)
class PooledTaps:
    """The pooled activations of some layers, as a pure function of parameters and uint8 images.

    Equal for networks that differ in nothing but their parameters, if these are `reusable`.
    """

    apply: Apply
    preprocess: Preprocess
    layers: tuple[str, ...]
    pool: Pool
    tokens: Tokens = "cls"

    def __call__(
        self, params: PyTree, images: UInt8[Array, "B H W channels"]
    ) -> Float[Array, "B U"]:
        """Pooled activations of all layers, side by side, float32."""
        taps = self.apply(params, self.preprocess(images))[1]
        pooled = [
            pool(taps[name].astype(jnp.float32), self.pool, self.tokens) for name in self.layers
        ]
        return jnp.concatenate(pooled, axis=1)


def pooled_taps(
    network: Network, layers: Sequence[str], pool: Pool, tokens: Tokens = "cls"
) -> PooledTaps:
    """The pooled activations of a network's layers, as a function of its parameters."""
    return PooledTaps(network.apply, network.preprocess, tuple(layers), pool, tokens)


def as_network(
    model: "ReturnsTaps | nnx.Module | Network",
    *,
    preprocess: Preprocess | None = None,
    taps: str = "raw",
    antialias: bool = False,
) -> Network:
    """Wraps a flax.nnx module or any function that returns `(logits, taps)`.

    Args:
      model: the module or function; a `Network` is returned as it is. A module of shapes
        (`nnx.eval_shape`) can be compiled, but not run, and has no key.
      preprocess: uint8 images → the model's input; None takes the model's own `preprocess`, which
        for a module may depend on its settings but not on its parameters, or division by 255.
      taps: `relu` asks a VGGNet or a CompactNet for outputs after BatchNorm and ReLU, `raw` for
        those before.
      antialias: whether the model's own `preprocess` resizes with antialiasing.

    Raises:
      InputError: `antialias` for a model whose preprocessing has no such choice, or what is no
        model for JAX.
    """
    if isinstance(model, Network):
        if antialias and not model.antialias:
            raise InputError(
                "antialias (--probe.antialias) is not a choice of a network that is wrapped "
                "already; leave it out"
            )
        return model
    _check_model(model)
    chooses = preprocess is None and isinstance(model, nnx.Module) and _can_antialias(model)
    if antialias and not chooses:
        raise InputError(
            f"antialias (--probe.antialias) is not a choice of {type(model).__name__}'s "
            "preprocessing; leave it out"
        )
    if not isinstance(model, nnx.Module):
        own = preprocess or getattr(model, "preprocess", to_unit)
        name = getattr(model, "__name__", type(model).__name__)
        return Network(lambda params, images: model(images), {}, own, None, name=name)
    graphdef, state = nnx.split(model)
    apply = _ModuleApply(graphdef, taps if isinstance(model, Cuttable) else None)
    if preprocess is not None:  # what somebody's function does to the images cannot be known
        return Network(apply, state, preprocess, None, name=type(model).__name__)
    own = to_unit
    if hasattr(model, "preprocess"):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
        own = _ModulePreprocess(graphdef, antialias, nnx.merge(graphdef, shapes))
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        return Network(apply, state, own, None, _is_hashable(graphdef), None)
    settings = [type(model).__name__, repr(getattr(model, "config", "")), taps]
    if antialias:  # left out without, so that keys of records made before it was a choice hold
        settings.append("antialias")
    return Network(
        apply,
        state,
        own,
        content_key([*settings, parameters(state)]),
        reusable=_is_hashable(graphdef),
        antialias=antialias if chooses else None,
        name=type(model).__name__,
    )


def as_editable(network: Network, image_shape: Sequence[int]) -> OwnNetwork | None:
    """A wrapped network that takes gains and has a key, as one that can be edited; else None.

    `image_shape` is that of a uint8 image [H, W, C], from which layers and classes are found.
    """
    if network.scaled is None or network.key is None:
        return None
    shapes = network.tap_shapes(image_shape)
    config = OwnConfig(
        classes=network.classes(image_shape),
        preprocess=network.preprocess,
        layers=tuple((name, shape[-1]) for name, shape in shapes.items()),
        key=network.key,
    )
    return OwnNetwork(network.scaled, network.params, config)


def _check_model(model: object) -> None:
    """Refuses models of other frameworks, and what is none, with the door that takes them.

    Raises:
      InputError: it is neither an nnx module nor a function.
    """
    name = type(model).__name__
    frameworks = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if "torch" in frameworks:
        raise InputError(
            f"{name} is a PyTorch module, which JAX cannot run; give its activations to "
            "emojax.collect, or its folder to emojax.load_network (docs/networks.md)"
        )
    if not isinstance(model, nnx.Module) and "flax" in frameworks:
        raise InputError(
            f"{name} is a flax.linen module, without its parameters; pass a function of images, "
            "lambda images: model.apply(params, images)"
        )
    if not callable(model):
        raise InputError(
            f"a {name} is no network; pass a function or flax.nnx module that returns (logits, "
            "taps), or what emojax.load_network reads"
        )


def _can_antialias(model: nnx.Module) -> bool:
    """Whether a module has a preprocessing that takes `antialias`."""
    own = getattr(model, "preprocess", None)
    return own is not None and "antialias" in inspect.signature(own).parameters


@dataclass(frozen=True)
class _ModuleApply:
    """A module's forward pass; equal for modules that differ in nothing but their parameters."""

    graphdef: nnx.GraphDef
    taps: str | None  # None for a module without this choice

    def __call__(self, params: PyTree, images: jax.Array) -> tuple[jax.Array, Taps]:
        choice = {} if self.taps is None else {"taps": self.taps}
        return nnx.merge(self.graphdef, params)(images, **choice)


@dataclass(frozen=True)
class _ModulePreprocess:
    """A module's own preprocessing; holds the module with shapes in place of its parameters."""

    graphdef: nnx.GraphDef
    antialias: bool
    module: nnx.Module = field(compare=False, repr=False)

    def __call__(self, images: jax.Array) -> jax.Array:
        own = getattr(self.module, "preprocess")  # noqa: B009 - no type knows of it
        return own(images, antialias=True) if self.antialias else own(images)

    def part(self, height: int, width: int) -> Part:
        """What of an image the module sees, as `Network.part`."""
        steps = getattr(getattr(self.module, "config", None), "preprocess", None)
        return steps.part(height, width) if isinstance(steps, Preprocessing) else WHOLE


def _is_hashable(graphdef: Hashable) -> bool:
    """Whether a module's settings can be a key of a cache; a dict among them cannot."""
    try:
        hash(graphdef)
    except TypeError:
        return False
    return True


def parameters(state: PyTree) -> dict[str, jax.Array]:
    """The arrays of an nnx state under `a/b/c` names."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def resolve_layers(patterns: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """Layers that match the names or patterns (`conv*`), in the network's order.

    Raises:
      InputError: a pattern matches nothing; the message names the closest layers.
    """
    chosen = set()
    for pattern in patterns:
        matches = fnmatch.filter(available, pattern)
        if not matches:
            raise InputError(f"no layer {pattern!r}{did_you_mean(pattern, available)}")
        chosen.update(matches)
    return tuple(name for name in available if name in chosen)
