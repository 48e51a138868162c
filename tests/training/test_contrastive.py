"""Contrast of captions and faces: the loss in float64, and that a small CLIP learns."""

import jax.numpy as jnp
import numpy as np

from emojax.data.weights import load_clip, save_clip
from emojax.ops.affinity import affinity
from emojax.synthetic import faces
from emojax.training import contrastive
from emojax.training.recipe import Recipe


def test_contrastive_loss():
    """Against the definition in float64: with the identity CLIP's loss, else the target shared by
    the true ones.
    """
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-1, 1, (5, 5))
    matches = np.eye(5, dtype=bool) | (rng.random((5, 5)) < 0.3)
    for truth in (np.eye(5, dtype=bool), matches):

        def one_way(logits, truth):
            logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            return -np.mean([logp[i][truth[i]].mean() for i in range(5)])

        want = (one_way(7 * cosines, truth) + one_way(7 * cosines.T, truth.T)) / 2
        got = contrastive.contrastive_loss(
            jnp.asarray(cosines, jnp.float32), jnp.float32(7), jnp.asarray(truth)
        )
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_clip_learns(tmp_path):
    """Captions and their faces come together; the folder loads by the code that loads any CLIP."""
    rows = []
    people = faces.random_faces(96, 3)
    recipe = Recipe(epochs=8, learning_rate=2e-3)
    clip, _ = contrastive.train_clip(recipe, people, people, batch=48, report=rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"]
    save_clip(tmp_path / "clip", clip.encoder.model, clip.hf_config, clip.tokenizer)
    loaded = load_clip(tmp_path / "clip")
    assert loaded.key == clip.encoder.key
    pictures = people.render()
    cosines = loaded.embed_images(pictures) @ loaded.embed_texts(faces.ATTRIBUTES).T
    pairs = contrastive.pair_accuracy(loaded, people, pictures)
    learnt = np.mean(list(pairs.values()))
    # The same for faces that are not those of the pictures: what comes of chance alone.
    rng = np.random.default_rng(0)
    chance = []
    for _ in range(199):
        shuffled = people.attributes[rng.permutation(len(people))]
        chance.append(np.nanmean(np.diag(affinity(cosines, shuffled).auroc)))
    print("learnt", learnt, max(chance), rows[-1]["loss"], rows[0]["loss"])
    assert learnt > max(chance)  # p = 1/200, exactly
