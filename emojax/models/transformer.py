"""The pre-norm transformer that the image and text towers share: CLIP, SigLIP, ViT, DeiT, DINOv2.

Parameters are named as in Hugging Face's CLIP; a network whose files name them otherwise says so in
its table (`convert`). Blocks hand their outputs to a `Tap`: `block3` (the states after it),
`block3.attention` (what attention adds to them) and `block3.hidden` (the MLP's hidden units, after
the activation). Shapes: B batch, H height, W width, L tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from emojax.models.convert import Path
from emojax.models.taps import Slices, Tap
from emojax.ops.arrays import AnyArray

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


_MOST = 1 << 20  # of anything that a network has in a row: the largest vocabularies are a quarter


def check_sizes(**sizes: object) -> None:
    """Sizes come from a file and may be anything.

    Raises:
      ValueError: one is no whole number above zero, or larger than any network's.
    """
    for name, value in sizes.items():
        if type(value) is not int or value < 1:  # True is an int too
            raise ValueError(f"{name} is {value!r}, not a whole number above zero")
        if value > _MOST:
            raise ValueError(f"{name} is {value}, more than the {_MOST} of the largest networks")


def check_epsilon(epsilon: object) -> None:
    """What LayerNorm adds to a variance comes from a file too.

    Raises:
      ValueError: it is no number between 0 and 1.
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise ValueError(f"epsilon is {epsilon!r}, not a number between 0 and 1")


def check_depth(depth: int) -> None:
    """The number of blocks that a file claims: each of them is built.

    Raises:
      ValueError: there are more than any network has.
    """
    if depth > 1000:
        raise ValueError(f"{depth} blocks are more than a network has")


def check_activation(name: object) -> None:
    """The name of an activation comes from a file too.

    Raises:
      ValueError: it is none that is supported.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation {name!r} is not supported; known: {known}")


def check_channels(channels: object) -> None:
    """The number of input channels that a file claims.

    Raises:
      ValueError: it is not three.
    """
    if channels != 3:
        raise ValueError(f"num_channels is {channels}, not 3")


@dataclass(frozen=True)
class TowerConfig:
    """One transformer: width, feed-forward width, depth, heads, activation, LayerNorm's epsilon.

    `qkv_bias`: whether queries, keys and values have biases. `layer_scale`: whether a learned scale
    per unit stands behind attention and MLP (DINOv2).

    Raises:
      ValueError: sizes that no network can have, or an unknown activation.
    """

    width: int
    mlp: int
    depth: int
    heads: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    qkv_bias: bool = True
    layer_scale: bool = False

    def __post_init__(self):
        check_activation(self.activation)
        check_sizes(width=self.width, mlp=self.mlp, depth=self.depth, heads=self.heads)
        check_depth(self.depth)
        check_epsilon(self.epsilon)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "TowerConfig":
        """From the complete dictionary of a Hugging Face configuration of one tower.

        Raises:
          KeyError: a name is missing.
          ValueError: a value is one that no network can have.
        """
        return cls(
            width=config["hidden_size"],
            mlp=config["intermediate_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            activation=config["hidden_act"],
            epsilon=config["layer_norm_eps"],
        )


@dataclass(frozen=True, kw_only=True)
class TwoTowersConfig:
    """An image tower and a text tower with one embedding.

    `vocabulary` and `context` are the text's number of token ids and tokens, `image_size` the side
    of the square images, `embedding` the width of what both towers give.

    Raises:
      ValueError: sizes that no network can have.
    """

    vision: TowerConfig
    text: TowerConfig
    image_size: int
    patch_size: int
    vocabulary: int
    context: int
    embedding: int

    def __post_init__(self):
        check_sizes(
            image_size=self.image_size,
            patch_size=self.patch_size,
            vocabulary=self.vocabulary,
            context=self.context,
            embedding=self.embedding,
        )
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patches of {self.patch_size} do not fit into images of {self.image_size}"
            )


def linear(
    inputs: int, outputs: int, dtype: DTypeLike, rngs: nnx.Rngs, *, bias: bool = True
) -> nnx.Linear:
    """A dense layer that holds and computes `dtype`."""
    return nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, param_dtype=dtype, rngs=rngs)


def embed(entries: int, width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of embeddings that holds and computes `dtype`."""
    return nnx.Embed(entries, width, dtype=dtype, param_dtype=dtype, rngs=rngs)


def layer_norm(config: TowerConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A tower's LayerNorm that holds and computes `dtype`."""
    return nnx.LayerNorm(
        config.width, epsilon=config.epsilon, dtype=dtype, param_dtype=dtype, rngs=rngs
    )


class TextEmbeddings(nnx.Module):
    """Token and position embeddings."""

    def __init__(self, config: TwoTowersConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.text.width
        self.token_embedding = embed(config.vocabulary, width, dtype, rngs)
        self.position_embedding = embed(config.context, width, dtype, rngs)

    def __call__(self, token_ids: Int[AnyArray, "B L"]) -> Float[Array, "B L width"]:
        """Each token's embedding and its position's."""
        positions = self.position_embedding.embedding[...][None, : token_ids.shape[1]]
        return self.token_embedding(jnp.asarray(token_ids)) + positions


@runtime_checkable
class VisionConfig(Protocol):
    """What an image tower is built from; the configs of CLIP, SigLIP and of single towers fit."""

    @property
    def vision(self) -> TowerConfig:
        """The transformer."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square images."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of the square patches."""
        ...


class Attention(nnx.Module):
    """Multi-head self-attention; softmax in float32."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = config.heads
        self.causal = causal

        def projection(*, bias: bool) -> nnx.Linear:
            return linear(config.width, config.width, dtype, rngs, bias=bias)

        self.q_proj = projection(bias=config.qkv_bias)
        self.k_proj = projection(bias=config.qkv_bias)
        self.v_proj = projection(bias=config.qkv_bias)
        self.out_proj = projection(bias=True)

    def __call__(self, x: Float[Array, "B L width"]) -> Float[Array, "B L width"]:
        """Each token's mixture of all, or of those up to it if causal."""
        by_head = (*x.shape[:2], self.heads, -1)
        mixed = jax.nn.dot_product_attention(
            self.q_proj(x).reshape(by_head),
            self.k_proj(x).reshape(by_head),
            self.v_proj(x).reshape(by_head),
            is_causal=self.causal,
        )
        return self.out_proj(mixed.reshape(x.shape))


class Mlp(nnx.Module):
    """Feed-forward block; its `hidden` units are tapped after the activation."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = linear(config.width, config.mlp, dtype, rngs)
        self.fc2 = linear(config.mlp, config.width, dtype, rngs)
        self.activation = config.activation

    def __call__(
        self, x: Float[Array, "B *L width"], tap: Tap | None = None
    ) -> Float[Array, "B *L width"]:
        """Each token by itself."""
        hidden = ACTIVATIONS[self.activation](self.fc1(x))
        if tap is not None:
            hidden = tap("hidden", hidden)
        return self.fc2(hidden)


class LayerScale(nnx.Module):
    """A learned factor for each unit of what attention or MLP adds to the states."""

    def __init__(self, width: int, *, dtype: DTypeLike):
        self.lambda1 = nnx.Param(jnp.ones(width, dtype))

    def __call__(self, x: Float[Array, "B L width"]) -> Float[Array, "B L width"]:
        """Scaled."""
        return x * self.lambda1[...]


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.layer_norm1 = layer_norm(config, dtype, rngs)
        self.self_attn = Attention(config, causal=causal, dtype=dtype, rngs=rngs)
        self.layer_norm2 = layer_norm(config, dtype, rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)
        self.layer_scale = config.layer_scale
        if config.layer_scale:
            self.layer_scale1 = LayerScale(config.width, dtype=dtype)
            self.layer_scale2 = LayerScale(config.width, dtype=dtype)

    def __call__(self, x: Float[Array, "B L width"], tap: Tap) -> Float[Array, "B L width"]:
        """States after the block."""
        attention = tap("attention", self.self_attn(self.layer_norm1(x)))
        x = x + (self.layer_scale1(attention) if self.layer_scale else attention)
        update = self.mlp(self.layer_norm2(x), tap)
        return x + (self.layer_scale2(update) if self.layer_scale else update)


class Encoder(nnx.Module):
    """A stack of blocks."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        blocks = [Block(config, causal=causal, dtype=dtype, rngs=rngs) for _ in range(config.depth)]
        self.layers = nnx.List(blocks)

    def __call__(
        self, x: Float[Array, "B L width"], tap: Tap | None = None
    ) -> Float[Array, "B L width"]:
        """States after the last block; every block's outputs go to the tap."""
        tap = tap or Tap()
        for number, block in enumerate(self.layers):
            name = f"block{number}"
            x = tap(name, block(x, tap.within(name)))
        return x


class PatchEmbedding(nnx.Module):
    """Cuts an image into patches and projects each."""

    def __init__(
        self, patch: int, width: int, *, bias: bool = False, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        shape = (patch, patch, 3, width)
        self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype)) if bias else None

    def __call__(self, images: Float[AnyArray, "B H W 3"]) -> Float[Array, "B patches width"]:
        """Patches row by row; pixels that fill no patch are left out."""
        kernel = self.kernel[...]
        side = kernel.shape[0]
        batch, height, width = images.shape[:3]
        rows = height // side
        columns = width // side
        cut = images[:, : rows * side, : columns * side]
        # A strided convolution by reshape and one matrix product, which is faster: patches do not
        # overlap, so it only has to bring each patch's pixels together.
        grid = cut.reshape(batch, rows, side, columns, side, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = jnp.asarray(grid.reshape(batch, rows * columns, -1), kernel.dtype)
        projected = patches @ kernel.reshape(-1, kernel.shape[-1])
        return projected if self.bias is None else projected + self.bias[...]


def block_units(config: TowerConfig) -> dict[str, int]:
    """Units of every tap of a tower's blocks, in the order of the forward pass."""
    units = {}
    for number in range(config.depth):
        parts = {".attention": config.width, ".hidden": config.mlp, "": config.width}
        units |= {f"block{number}{part}": width for part, width in parts.items()}
    return units


def block_outgoing(layer: str, blocks: Path) -> tuple[Slices, ...]:
    """The parameters that a tap inside a block goes out by; none for other names.

    `blocks` is the path of the list of blocks. Hidden units feed `fc2` alone; what attention adds
    is all of `out_proj`'s output.
    """
    block, _, part = layer.partition(".")
    number = block.removeprefix("block")
    if not number.isdecimal():
        return ()
    path = (*blocks, int(number))
    if part == "hidden":
        return (Slices((*path, "mlp", "fc2", "kernel"), 0),)
    if part == "attention":
        out_proj = (*path, "self_attn", "out_proj")
        return Slices((*out_proj, "kernel"), 1), Slices((*out_proj, "bias"), 0)
    return ()
