"""Many label settings from one record: each as its own run gives it."""

import numpy as np
import pytest

from emojax.data.concepts import ConceptSet
from emojax.dissection import label_settings
from emojax.dissection.dissect import dissect
from emojax.distributed.mesh import make_mesh
from emojax.errors import InputError
from emojax.probing.probe import probe

CONCEPTS = ConceptSet(("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw"))


@pytest.fixture(scope="module")
def record(tiny_vgg, blobs, tiny_clip):
    return probe(tiny_vgg, blobs, tiny_clip, layers=("conv4b", "lin2"), tile=8, mesh=make_mesh(1))


@pytest.mark.long
def test_every_setting_equals_its_own_run(record, tiny_clip):
    texts = tiny_clip.embed_texts(CONCEPTS.concepts)
    tried = {"a": (5.0,), "lam": (0.6,), "top_k": (20,), "prior": ("images", "units", "none")}
    grid = label_settings.grid(("correlation", "cos_similarity", "soft_wpmi"), **tried)
    grid += label_settings.grid(["consensus", "wpmi"], **tried | {"prior": ("images",)})
    assert len(grid) == 2 + 3 + 2
    together = label_settings.dissect_by(record, CONCEPTS, texts, grid)
    for setting, found in zip(grid, together, strict=True):
        options = vars(setting.options)
        alone = dissect(record, CONCEPTS, similarity=setting.similarity, null_sets=0, **options)
        largest = np.abs(alone.scores).max()
        np.testing.assert_allclose(found.scores, alone.scores, atol=2e-6 * largest)
        clear = np.sort(alone.scores, axis=1)
        clear = clear[:, -1] - clear[:, -2] > 4e-6 * largest  # no tie within rounding
        np.testing.assert_array_equal(found.labels[clear], alone.labels[clear])
        assert found.method == alone.method
        np.testing.assert_allclose(
            found.confidence.held_out.correlation, alone.confidence.held_out.correlation, atol=1e-6
        )


def test_a_weight_is_not_varied_without_a_prior():
    grid = label_settings.grid(["wpmi"], a=(2.0, 5.0), lam=(0.0, 1.0), prior=("images", "none"))
    assert len(grid) == 2 * (2 + 1)
    assert len(set(grid)) == len(grid)


def test_share_of_settings_with_the_default_label():
    labels = [np.array([0, 1, 2]), np.array([0, 2, 2])]
    np.testing.assert_array_equal(label_settings.shares(labels, np.array([0, 1, 0])), [1, 0.5, 0])


def test_other_functions_are_refused():
    with pytest.raises(InputError, match="not of rank_reorder"):
        label_settings.grid(["rank_reorder"])
