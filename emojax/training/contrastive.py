"""Training of a small CLIP on rendered faces: captions, CLIP's loss as a task, and the whole run.

`train_clip` is what `emojax train --task clip` calls; the CLIP that ships with emojax is made by
it.
Shapes: I images, B batch, L tokens of a text.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from emojax.data.clip_encoder import ClipEncoder, unit_rows
from emojax.data.image_set import ImageSet
from emojax.models.preprocess import Preprocess
from emojax.ops import augment as views
from emojax.ops.affinity import affinity
from emojax.synthetic.faces import ATTRIBUTES, Captions, Faces, random_captions
from emojax.synthetic.small_clip import SmallClip, small_clip
from emojax.training import tasks
from emojax.training.fit import Progress, Report, Result, fit
from emojax.training.recipe import Recipe
from emojax.training.tasks import Loss, Metrics, Task
from emojax.training.training_log import Row

# The loss does not change when all cosines shift. Published CLIPs have them above zero, and
# rank_reorder takes a root of their mean; a weak pull keeps ours there too.
_LEAST_COSINE = 0.1
_LARGEST_SCALE = 100.0  # of the cosines: the ceiling of Radford et al. 2021
_TOKENS = 32  # captions are padded to as many, so that all epochs have one shape


@dataclass(frozen=True)
class Pairs:
    """Images with a text each.

    Attributes:
      images: uint8 [I, H, W, C].
      tokens: epoch → token ids [I, L] int32 of each image's text.
      matches: (epoch, rows [B]) → whether text i is true of image j, bool [B, B]; None where only
        its own text is.
    """

    images: UInt8[np.ndarray, "I H W C"]
    tokens: Callable[[int], np.ndarray]
    matches: Callable[[int, np.ndarray], np.ndarray] | None = None


class TrainedClip(NamedTuple):
    """A trained CLIP, with what is written beside its weights, and the result that it is from."""

    clip: SmallClip
    result: Result


def train_clip(
    recipe: Recipe,
    faces: Faces,
    validation: Faces,
    *,
    batch: int,
    shard: bool = False,
    report: Report | None = None,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
    save_every: float = 300.0,
) -> TrainedClip:
    """Trains a new small CLIP on rendered faces and captions of them, new ones in every epoch.

    Args:
      recipe: its seed is also that of the tokenizer's texts, the weights and the captions.
      faces: to train on.
      validation: the mean of `pair_accuracy` on these chooses the epoch.
      batch: faces in a step.
      shard, report, progress, checkpoints, save_every: as `fit` takes them.

    Raises:
      InputError: fewer faces than a batch, or as `fit` raises it.
    """
    new = small_clip(random_captions(faces, recipe.seed).texts, recipe.seed)
    task = contrastive_task(
        new.encoder, caption_pairs(new.encoder, faces, recipe.seed), batch=batch
    )
    pictures = validation.render()

    def validate(params: PyTree, rest: PyTree) -> Row:
        encoder = trained_encoder(new.encoder, params, rest)
        accuracies = pair_accuracy(encoder, validation, pictures).values()
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        return {"validation_pair_accuracy": float(np.mean(known))} if known else {}

    (result,) = fit(
        task,
        recipe,
        shard=shard,
        validate=validate,
        report=report,
        progress=progress,
        checkpoints=checkpoints,
        save_every=save_every,
    )
    encoder = trained_encoder(new.encoder, result.params, result.rest)
    return TrainedClip(new._replace(encoder=encoder), result)


def caption_pairs(encoder: ClipEncoder, faces: Faces, seed: int) -> Pairs:
    """Rendered faces with a new caption each in every epoch."""
    length = min(_TOKENS, encoder.model.config.context)

    @functools.lru_cache(maxsize=1)  # `tokens` and `matches` ask for those of the same epoch
    def captions(epoch: int) -> Captions:
        return random_captions(faces, seed + epoch)

    def tokens(epoch: int) -> Int[np.ndarray, "I L"]:
        ids = encoder.tokenize(captions(epoch).texts)
        return np.pad(ids, ((0, 0), (0, max(0, length - ids.shape[1]))))

    def matches(epoch: int, rows: Int[np.ndarray, " B"]) -> Bool[np.ndarray, "B B"]:
        return captions(epoch).true_of(faces, rows)

    return Pairs(faces.render(), tokens, matches)


def pair_accuracy(
    encoder: ClipEncoder, faces: Faces, pictures: UInt8[np.ndarray, "I H W C"]
) -> dict[str, float | None]:
    """How often a face with an attribute is closer to its name than a face without, by attribute.

    Zero-shot: the names are texts like any other. Chance is one half. None where no face has the
    attribute, or all have it. `pictures` are the faces, rendered.
    """
    cosines = encoder.embed_images(pictures) @ encoder.embed_texts(ATTRIBUTES).T
    auroc = np.diag(affinity(cosines, faces.attributes).auroc)
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in zip(ATTRIBUTES, auroc, strict=True)
    }


def contrastive_loss(
    cosines: Float[Array, "B B"], scale: Float[Array, ""], matches: Bool[Array, "B B"]
) -> Float[Array, ""]:
    """CLIP's symmetric cross-entropy, its target shared by all texts that are true of an image.

    With the identity for `matches` it is the loss of Radford et al. 2021, figure 3. A few
    attributes
    make few captions: those of other images are often true too, and calling them false would teach
    their opposite.

    Args:
      cosines: of text i and image j.
      scale: what they are multiplied by.
      matches: whether text i is true of image j.
    """
    logits = scale * cosines

    def one_way(logits: Float[Array, "B B"], matches: Bool[Array, "B B"]) -> Float[Array, ""]:
        true = matches.astype(jnp.float32)
        target = true / true.sum(axis=1, keepdims=True)
        return optax.softmax_cross_entropy(logits, target).mean()

    return (one_way(logits, matches) + one_way(logits.T, matches.T)) / 2


def contrastive_task(encoder: ClipEncoder, pairs: Pairs, *, batch: int) -> Task:
    """CLIP's training of both towers on images that stay on the device, mirrored at random.

    Raises:
      InputError: there are fewer pairs than a batch.
    """
    images = ImageSet.from_arrays(pairs.images, name="pairs")
    tasks.check_fills_a_batch(images, batch)
    graphdef, params, rest = nnx.split(encoder.model, nnx.Param, ...)

    def batches(epoch: int, seed: int, first: int) -> Iterator[PyTree]:
        tokens = pairs.tokens(epoch)
        for rows in tasks.epoch_rows(len(images), batch, seed, epoch, first):
            own = np.eye(len(rows), dtype=bool)
            matches = own if pairs.matches is None else pairs.matches(epoch, rows)
            yield rows, tokens[rows], matches

    return Task(
        start=lambda seed: (params, rest),
        data=images.images,
        loss=_clip_loss(graphdef, encoder.preprocess),
        batches=batches,
        steps=len(images) // batch,
        batch=batch,
        watch="validation_pair_accuracy",
    )


@functools.lru_cache(maxsize=8)
def _clip_loss(graphdef: nnx.GraphDef, preprocess: Preprocess) -> Loss:
    """The loss of a task; one object for one architecture, so that its step compiles once."""

    def loss(
        params: PyTree, rest: PyTree, data: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        rows, tokens, matches = batch
        network = nnx.merge(graphdef, params, rest, copy=True)
        image = network.image_features(preprocess(views.mirror(key, data[rows])))
        text = network.text_features(tokens)
        cosines = unit_rows(text) @ unit_rows(image).T
        scale = jnp.exp(jnp.minimum(network.logit_scale[...], jnp.log(_LARGEST_SCALE)))
        shortfall = jnp.maximum(_LEAST_COSINE - cosines, 0.0)
        pull = 10.0 * (shortfall**2).mean()
        return contrastive_loss(cosines, scale, matches) + pull, (rest, {"scale": scale})

    return loss


def trained_encoder(encoder: ClipEncoder, params: PyTree, rest: PyTree) -> ClipEncoder:
    """The encoder with trained towers."""
    return replace(encoder, model=tasks.with_variables(encoder.model, params, rest))
