"""`ClipEncoder`: a CLIP or SigLIP with preprocessing and tokenizer: texts, images → embeddings.

The probe and the concepts need no more of an encoder than what is here. `clip_folder` reads one
from a Hugging Face folder. Shapes: I images, C concepts or texts, L tokens, B batch, D embedding.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from emojax.data.image_set import Images
from emojax.errors import InputError, short
from emojax.models.clip import Clip
from emojax.models.preprocess import Preprocess
from emojax.models.siglip import Siglip
from emojax.store import content_key

_TEXT_BATCH = 64
# Of the images that OpenAI trained on; most CLIPs since use the same.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Padding:
    """How texts are padded to the whole context, for a network that sees its padding (SigLIP).

    Attributes:
      token: the id of the padding.
      left: before the text instead of behind it.
    """

    token: int
    left: bool = False


class HfTokenizer:
    """A transformers tokenizer as a function: texts → lists of token ids, unpadded, never cut."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text, with start and end tokens."""
        return self._tokenizer(list(texts), padding=False, truncation=False)["input_ids"]

    @cached_property
    def key(self) -> str:
        """Content key: vocabulary, merges, special tokens, normalization, and a sample's tokens."""
        special = " ".join(map(str, self._tokenizer.all_special_tokens))
        if hasattr(self._tokenizer, "sp_model"):  # sentencepiece: SigLIP's first tokenizer
            pieces = self._tokenizer.sp_model.serialized_model_proto()
            rules = {"sentencepiece": hashlib.sha256(pieces).hexdigest()}
        else:
            rules = json.loads(self._tokenizer.backend_tokenizer.to_str())
            # Whoever called the tokenizer last has set these two; they change nothing here.
            rules = {
                name: part for name, part in rules.items() if name not in ("padding", "truncation")
            }
        # The sample shows what the Python side adds: special tokens within a text, for one.
        return content_key([json.dumps(rules, sort_keys=True), self([f"A sample: {special} é"])])


@dataclass(frozen=True)
class ClipEncoder:
    """A CLIP or SigLIP ready for use: network, image preprocessing, tokenizer.

    Attributes:
      model: the flax network.
      preprocess: uint8 images → the network's input, on the device. Hashable: it is part of what
        the compiled programs are keyed by.
      tokenizer: texts → lists of token ids, unpadded, with start and end tokens. Its attribute
        `key`, if it has one, is part of the encoder's key.
      name: folder or hub name, for messages and reports.
      padding: of texts to the whole context; None for a network that does not see what is behind
        the end token (CLIP).
      trained_on: the only kind of images that it knows, where its settings say so; None for one
        that is made for any.
    """

    model: Clip | Siglip
    preprocess: Preprocess
    tokenizer: Callable[[Sequence[str]], list[list[int]]]
    name: str = "clip"
    padding: Padding | None = None
    trained_on: str | None = None

    @cached_property
    def key(self) -> str:
        """Content key of the weights, the settings, the preprocessing and the tokenizer."""
        leaves = nnx.to_flat_state(nnx.state(self.model))
        weights = {"/".join(map(str, path)): leaf[...] for path, leaf in leaves}
        tokenizer = getattr(self.tokenizer, "key", None)
        parts = [weights, repr(self.model.config), repr(self.preprocess), tokenizer]
        # Nothing of it for a CLIP, whose keys are those of records made before there was a SigLIP.
        return content_key([*parts, repr(self.padding)] if self.padding else parts)

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "C L"]:
        """Token ids: padded as `padding` says, else with zeros behind the end token.

        L is the context length for the former, for the latter a multiple of 8 or the context
        length, so that few shapes are compiled.

        Raises:
          InputError: a text is longer than the context.
        """
        rows = self.tokenizer(list(texts))
        context = self.model.config.context
        for text, row in zip(texts, rows, strict=True):
            if len(row) > context:
                raise InputError(
                    f"{short(text)} is {len(row)} tokens long, {self.name} takes {context}; "
                    "shorten it"
                )
        padding = self.padding
        length = context if padding else min(context, -(-max(map(len, rows)) // 8) * 8)
        ids = np.full((len(rows), length), padding.token if padding else 0, np.int32)
        for number, row in enumerate(rows):
            start = length - len(row) if padding and padding.left else 0
            ids[number, start : start + len(row)] = row
        return ids

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "C D"]:
        """Unit embeddings of texts as they are: no template, as CLIP-Dissect does.

        Raises:
          InputError: a text is longer than the context.
        """
        graphdef, state = nnx.split(self.model)
        embed = functools.partial(_embed_texts, graphdef, state)
        return _in_batches(embed, self.tokenize(texts), _TEXT_BATCH)

    def embed_images(self, images: Images, *, batch: int = 512) -> Float32[np.ndarray, "I D"]:
        """Unit embeddings of uint8 images [I, H, W, C], `batch` at a time."""
        graphdef, state = nnx.split(self.model)
        embed = functools.partial(_embed_images, graphdef, self.preprocess, state)
        return _in_batches(embed, images, batch)


# One jitted program a tower. Static arguments are what shapes the program (the module's structure,
# the preprocessing); weights are an argument, so no program holds any and a second call, of this
# encoder or of another of the same structure, traces nothing.


@functools.partial(jax.jit, static_argnums=0)
def _embed_texts(graphdef: Any, state: Any, tokens: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return unit_rows(nnx.merge(graphdef, state).text_features(tokens))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed_images(
    graphdef: Any, preprocess: Preprocess, state: Any, images: jax.Array
) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return unit_rows(nnx.merge(graphdef, state).image_features(preprocess(images)))


def _in_batches(
    embed: Callable[[np.ndarray], jax.Array], rows: Images | np.ndarray, batch: int
) -> np.ndarray:
    """What `embed` gives for all rows, in batches of one shape.

    The last batch is filled with repeats of its last row, which are cut off again.
    """
    parts = []
    for start in range(0, rows.shape[0], batch):
        chunk = np.asarray(rows[start : start + batch])
        fill = [(0, batch - len(chunk))] + [(0, 0)] * (chunk.ndim - 1)
        embedded = embed(np.pad(chunk, fill, mode="edge"))
        parts.append(np.asarray(embedded)[: len(chunk)])
    return np.concatenate(parts)


def unit_rows(features: Float[Array, "B D"]) -> Float32[Array, "B D"]:
    """Rows scaled to length one, in float32."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)
