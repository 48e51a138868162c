"""Contrast of captions and faces: the loss in float64, and that a small CLIP learns."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from emojax.data.clip_folder import load_clip, save_clip
from emojax.distributed.mesh import make_mesh
from emojax.synthetic import faces
from emojax.synthetic.small_clip import small_clip
from emojax.training import contrastive
from emojax.training.fit import fit
from emojax.training.recipe import Recipe


@pytest.mark.slow
def test_contrastive_loss():
    """Against the definition in float64, with the identity, CLIP's own, and with shared targets."""
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


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_clip_learns_which_caption_is_whose():
    """24 captions by heart: better than any network that does not look at the pictures."""
    people = faces.random_faces(24, 3)
    pictures = people.render()
    texts = faces.random_captions(people, 0).texts
    encoder = small_clip(texts, 0).encoder
    pairs = contrastive.Pairs(pictures, lambda epoch: encoder.tokenize(texts))
    task = contrastive.contrastive_task(encoder, pairs, batch=24)
    recipe = Recipe(epochs=40, learning_rate=1e-3, schedule="constant")
    (result,) = fit(task, recipe, mesh=make_mesh(1))
    # Whoever gives every picture the same probabilities has at best the loss log 24.
    assert result.history[-1]["loss"] < np.log(24)
    learnt = contrastive.trained_encoder(encoder, result.params, result.rest)
    cosines = learnt.embed_images(pictures) @ learnt.embed_texts(texts).T
    right = int((cosines.argmax(axis=1) == np.arange(24)).sum())
    assert stats.binomtest(right, 24, 1 / 24, "greater").pvalue < 1e-9


@pytest.mark.long
def test_train_clip(tmp_path):
    """Rows with the validation, and a folder that loads by the code that loads any CLIP."""
    rows = []
    people = faces.random_faces(96, 3)
    recipe = Recipe(epochs=2, learning_rate=2e-3)
    clip, result = contrastive.train_clip(recipe, people, people, batch=48, report=rows.append)
    assert rows == result.history
    save_clip(tmp_path / "clip", clip.encoder.model, clip.hf_config, clip.tokenizer)
    loaded = load_clip(tmp_path / "clip")
    assert loaded.key == clip.encoder.key
    accuracies = contrastive.pair_accuracy(loaded, people, people.render()).values()
    mean = np.mean([accuracy for accuracy in accuracies if accuracy is not None])
    assert mean == pytest.approx(rows[result.best_epoch - 1]["validation_pair_accuracy"])
