"""ViT (Dosovitskiy et al. 2021, arXiv 2010.11929), DeiT (2012.12877) and DINOv2 (2304.07193).

Classifiers of Hugging Face's ViTForImageClassification, DeiTForImageClassification (also with
teacher) and Dinov2ForImageClassification; they differ in tokens and heads. timm's plain ViTs are
the first of these under other names. Taps: `embeddings`, those of every block (`transformer`), and
`pooled`, what the classifier reads.
Shapes: B batch, H height, W width, L tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from math import isqrt
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from emojax.models import convert
from emojax.models.preprocess import Preprocess
from emojax.models.tapped import POOLED, NetworkConfig, TappedNetwork
from emojax.models.taps import Slices, Tap
from emojax.models.transformer import (
    Encoder,
    PatchEmbedding,
    TowerConfig,
    block_outgoing,
    block_units,
    check_channels,
    check_sizes,
    layer_norm,
    linear,
)
from emojax.ops.image import resize_bicubic_torch

Kind = Literal["vit", "deit", "dinov2"]
# Hugging Face's names of our parts, from the file's top. Their blocks are not named as CLIP's.
_COMMON: convert.Table = {
    "kernel": "weight",
    "scale": "weight",
    "patch_embedding": "patch_embeddings.projection",
    "layers": "layer",
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "self_attn": "attention",
    "out_proj": "output.dense",
}
_VIT = _COMMON | {
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "mlp": None,
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
_DINOV2 = _COMMON | {"layer_norm1": "norm1", "layer_norm2": "norm2"}
_TIMM: convert.Table = {
    "kernel": "weight",
    "scale": "weight",
    "embeddings": None,
    "encoder": None,
    "position_embeddings": "pos_embed",
    "patch_embedding": "patch_embed.proj",
    "layers": "blocks",
    "self_attn": "attn",
    "out_proj": "proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "layernorm": "norm",
    "classifier": "head",
}
# What timm has in one array, in this order.
_QKV = ("q_proj", "k_proj", "v_proj")


def _table(config: "VitConfig") -> convert.Table:
    """The names in the network's file; Hugging Face has all but classifiers under the kind's."""
    if config.timm:
        return _TIMM
    kind = config.kind
    inside = {"embeddings": f"{kind}.embeddings", "encoder": f"{kind}.encoder"}
    norm: convert.Table = {"layernorm": f"{kind}.layernorm"}
    return (_DINOV2 if kind == "dinov2" else _VIT) | inside | norm


@dataclass(frozen=True, kw_only=True)
class VitConfig(NetworkConfig):
    """A transformer, its images and patches, and which of the three kinds it is.

    `teacher`: whether a second classifier reads the distillation token (DeiT), the logits being the
    mean of both. `timm`: whether the parameters have timm's names in the network's file.

    Raises:
      ValueError: sizes that no network can have.
    """

    kind: Kind
    tower: TowerConfig
    image_size: int
    patch_size: int
    teacher: bool = False
    timm: bool = False

    def __post_init__(self):
        check_sizes(image_size=self.image_size, patch_size=self.patch_size, classes=self.classes)
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patches of {self.patch_size} do not fit into images of {self.image_size}"
            )

    @property
    def pooled(self) -> int:
        """Units that the classifiers read."""
        # DINOv2 adds the mean patch to the class token, a teacher its own token.
        return self.tower.width * (2 if self.kind == "dinov2" or self.teacher else 1)

    def units(self) -> dict[str, int]:
        """Units of every tap."""
        tokens = {"embeddings": self.tower.width}
        return tokens | block_units(self.tower) | {POOLED: self.pooled}

    def probed(self) -> tuple[str, ...]:
        """The states after every block."""
        return tuple(f"block{number}" for number in range(self.tower.depth))

    @classmethod
    def small(cls, classes: int, class_names: tuple[str, ...] | None = None) -> "VitConfig":
        """A ViT of 0.34 M parameters for faces of 48×48, to be trained on a CPU."""
        half = (0.5, 0.5, 0.5)
        return cls(
            kind="vit",
            tower=TowerConfig(width=96, mlp=192, depth=4, heads=4, activation="gelu", epsilon=1e-6),
            image_size=48,
            patch_size=6,
            classes=classes,
            preprocess=Preprocess((48, 48), None, half, half, "bilinear"),
            class_names=class_names,
        )

    def to_hf(self) -> dict[str, Any]:
        """What `config.json` says of a ViT whose classes are named.

        Raises:
          ValueError: another kind, or the names are not known.
        """
        if self.kind != "vit" or self.class_names is None:
            raise ValueError("only a ViT whose classes are named has a folder of its own")
        return {
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "hidden_size": self.tower.width,
            "intermediate_size": self.tower.mlp,
            "num_hidden_layers": self.tower.depth,
            "num_attention_heads": self.tower.heads,
            "hidden_act": self.tower.activation,
            "layer_norm_eps": self.tower.epsilon,
            "qkv_bias": self.tower.qkv_bias,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_channels": self.channels,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "id2label": {str(number): name for number, name in enumerate(self.class_names)},
            "label2id": {name: number for number, name in enumerate(self.class_names)},
        }

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], *, preprocess: Preprocess, teacher: bool = False
    ) -> "VitConfig":
        """From the complete dictionary of a ViTConfig, DeiTConfig or Dinov2Config.

        Raises:
          KeyError: a name is missing.
          ValueError: a value is one that no network can have, or that is not supported.
        """
        kind = config["model_type"]
        is_dinov2 = kind == "dinov2"
        if is_dinov2 and config["use_swiglu_ffn"]:
            raise ValueError("use_swiglu_ffn is not supported")
        check_channels(config["num_channels"])
        width = config["hidden_size"]
        tower = TowerConfig(
            width=width,
            mlp=int(width * config["mlp_ratio"]) if is_dinov2 else config["intermediate_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            activation=config["hidden_act"],
            epsilon=config["layer_norm_eps"],
            qkv_bias=config["qkv_bias"],
            layer_scale=is_dinov2,
        )
        return cls(
            kind=kind,
            tower=tower,
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            classes=len(config["id2label"]),
            preprocess=preprocess,
            teacher=teacher,
        )


class Embeddings(nnx.Module):
    """Class token (and DeiT's distillation token), patches and positions."""

    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        width = config.tower.width
        self.grid = config.image_size // config.patch_size
        self.is_deit = config.kind == "deit"
        self.is_dinov2 = config.kind == "dinov2"
        normal = nnx.initializers.normal(0.02)
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        if self.is_deit:
            self.distillation_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.patch_embedding = PatchEmbedding(
            config.patch_size, width, bias=True, dtype=jnp.float32, rngs=rngs
        )
        tokens = self.grid**2 + (2 if self.is_deit else 1)
        self.position_embeddings = nnx.Param(normal(rngs.params(), (1, tokens, width)))

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B L width"]:
        """The special tokens, then the patches row by row."""
        patches = self.patch_embedding(images)
        special = [self.cls_token[...]]
        if self.is_deit:
            special.append(self.distillation_token[...])
        first = jnp.concatenate(special, axis=1)
        first = jnp.broadcast_to(first, (patches.shape[0], *first.shape[1:]))
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + self._positions(*images.shape[1:3])

    def _positions(self, height: int, width: int) -> Float[Array, "1 L width"]:
        """Position embeddings; DINOv2's are interpolated for images of another size."""
        positions = self.position_embeddings[...]
        side = self.patch_embedding.kernel.shape[0]
        size = (height // side, width // side)
        if not self.is_dinov2 or size == (self.grid, self.grid):
            return positions
        grid = positions[:, 1:].reshape(1, self.grid, self.grid, -1)
        resized = resize_bicubic_torch(grid, size).reshape(1, size[0] * size[1], -1)
        return jnp.concatenate([positions[:, :1], resized], axis=1)


class Vit(TappedNetwork):
    """A classifier of images; see the module for its taps."""

    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        width = config.tower.width
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config.tower, causal=False, dtype=jnp.float32, rngs=rngs)
        self.layernorm = layer_norm(config.tower, jnp.float32, rngs)
        if config.teacher:
            self.cls_classifier = linear(width, config.classes, jnp.float32, rngs)
            self.distillation_classifier = linear(width, config.classes, jnp.float32, rngs)
        else:
            self.classifier = linear(config.pooled, config.classes, jnp.float32, rngs)

    def run(self, images: Float[Array, "B H W 3"], tap: Tap) -> Float[Array, "B classes"]:
        """Logits."""
        tokens = tap("embeddings", self.embeddings(images))
        states = self.layernorm(self.encoder(tokens, tap))
        if self.config.teacher:
            pooled = tap(POOLED, states[:, :2].reshape(states.shape[0], -1))
            own, taught = jnp.split(pooled, 2, axis=1)
            return (self.cls_classifier(own) + self.distillation_classifier(taught)) / 2
        pooled = states[:, 0]
        if self.config.kind == "dinov2":
            pooled = jnp.concatenate([pooled, states[:, 1:].mean(axis=1)], axis=1)
        return self.classifier(tap(POOLED, pooled))

    def last_hidden(self) -> str:
        """What the classifier reads, or both classifiers."""
        return POOLED

    def last_layer(self) -> tuple[Array, Array]:
        """The classifier's kernel and bias; of a teacher's two, one that gives their mean."""
        if not self.config.teacher:
            return super().last_layer()
        own: Any = self.cls_classifier
        taught: Any = self.distillation_classifier
        kernel = jnp.concatenate([own.kernel[...], taught.kernel[...]]) / 2
        return kernel, (own.bias[...] + taught.bias[...]) / 2

    def state_dict(self) -> dict[str, np.ndarray]:
        """The parameters under Hugging Face's or timm's names and layouts."""
        arrays = convert.to_torch(self, _table(self.config))
        return _joined(arrays) if self.config.timm else arrays

    def outgoing(self, layer: str) -> tuple[Slices, ...]:
        """The classifier's rows for `pooled`, and what the blocks' parts feed."""
        if layer == POOLED and not self.config.teacher:
            return (Slices(("classifier", "kernel"), 0),)
        return block_outgoing(layer, ("encoder", "layers"))


def from_hf_state_dict(arrays: convert.Arrays, config: VitConfig) -> Vit:
    """The network in eval mode from arrays under Hugging Face's names.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    unread = (f"{config.kind}.pooler.", f"{config.kind}.embeddings.mask_token")
    model = convert.fill(
        lambda: Vit(config, rngs=nnx.Rngs(0)),
        arrays,
        _table(config),
        ignore=lambda name: name.startswith(unread),
    )
    model.eval()
    return model


def from_timm_state_dict(arrays: convert.Arrays, preprocess: Preprocess, *, heads: int) -> Vit:
    """A plain ViT of timm in eval mode: class token, pre-norm, GELU; other sizes are read off.

    Raises:
      ValueError: names are missing or unknown, shapes disagree, or values are not finite.
    """
    config = _timm_config(arrays, preprocess, heads)
    model = convert.fill(lambda: Vit(config, rngs=nnx.Rngs(0)), _split(arrays), _TIMM)
    model.eval()
    return model


def _timm_config(arrays: convert.Arrays, preprocess: Preprocess, heads: int) -> VitConfig:
    """The config whose network has arrays of these names and shapes."""
    try:
        patch_size = arrays["patch_embed.proj.weight"].shape[-1]
        names = (f"blocks.{number}.norm1.weight" for number in count())
        tower = TowerConfig(
            width=arrays["cls_token"].shape[-1],
            mlp=arrays["blocks.0.mlp.fc1.weight"].shape[0],
            depth=next(number for number, name in enumerate(names) if name not in arrays),
            heads=heads,
            activation="gelu",
            epsilon=1e-6,
            qkv_bias="blocks.0.attn.qkv.bias" in arrays,
        )
        return VitConfig(
            kind="vit",
            tower=tower,
            image_size=isqrt(arrays["pos_embed"].shape[1] - 1) * patch_size,
            patch_size=patch_size,
            classes=arrays["head.weight"].shape[0],
            preprocess=preprocess,
            timm=True,
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"this is not a plain ViT of timm: {error} is missing") from None


def _split(arrays: convert.Arrays) -> dict[str, np.ndarray]:
    """Queries, keys and values in arrays of their own."""
    parts = {}
    for name, array in arrays.items():
        if ".qkv." not in name:
            parts[name] = array
            continue
        if array.shape[0] % len(_QKV):
            raise ValueError(f"{name} has shape {array.shape}, which is not three parts")
        for part, third in zip(_QKV, np.split(array, len(_QKV)), strict=True):
            parts[name.replace("qkv", part)] = third
    return parts


def _joined(arrays: convert.Arrays) -> dict[str, np.ndarray]:
    """Queries, keys and values in one array, as timm has them."""
    joined = {}
    for name, array in arrays.items():
        if ".q_proj." in name:
            thirds = [arrays[name.replace("q_proj", part)] for part in _QKV]
            joined[name.replace("q_proj", "qkv")] = np.concatenate(thirds)
        elif ".k_proj." not in name and ".v_proj." not in name:
            joined[name] = array
    return joined
