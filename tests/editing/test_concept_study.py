"""Edits by named concepts: which units, how much, tested against no edit and random controls."""

import numpy as np
import pytest
from conftest import some_record
from flax import nnx

from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.dissection.labels import Dissection
from emojax.editing.concept_study import concept_gains, layer_of_concepts
from emojax.editing.search import Edit
from emojax.editing.study import run_study
from emojax.editing.study_checks import check_study
from emojax.errors import InputError
from emojax.ops.stats import mcnemar_exact
from emojax.training.evaluate import evaluate

UNITS = {
    "Smile": {"lin1": np.array([True, False]), "lin2": np.array([True, True, False])},
    "Frown": {"lin1": np.array([False, False]), "lin2": np.array([False, True, False])},
}
NONE = np.zeros(3, bool)


def test_gains_of_a_unit_that_stands_for_two_are_multiplied():
    options = Edit(suppress=("Smile",), amplify=("Frown",), suppress_factor=0.5, amplify_factor=3.0)
    np.testing.assert_array_equal(concept_gains(UNITS, "lin2", options), [0.5, 1.5, 1.0])


def test_auto_is_the_last_hidden_layer_that_has_units():
    by_name = Edit(suppress=("Smile",), layers=("lin1",))
    auto = Edit(suppress=("Smile",))
    assert layer_of_concepts(UNITS, auto, "lin3") == "lin2"
    assert layer_of_concepts(UNITS, auto, "lin2") == "lin1"
    assert layer_of_concepts(UNITS, by_name, "lin3") == "lin1"
    only = {"Frown": UNITS["Frown"]}
    with pytest.raises(InputError, match=r"no unit of lin1 stands for .Frown.*lin2 1"):
        layer_of_concepts(only, by_name, "lin3")
    with pytest.raises(InputError, match="no hidden unit stands for 'Frown'"):
        layer_of_concepts({"Frown": {"lin1": NONE, "lin2": NONE}}, auto, "lin3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suppress": ("c1",), "amplify": ("c1",)}, "both name 'c1'"),
        ({"suppress": ("c9",)}, "no concept 'c9'"),
        ({"suppress": ("c1",), "layers": ("lin1", "lin2")}, "an edit by concepts is of one layer"),
        ({"suppress": ("c1",), "gains": "gains.txt"}, "are edits each; give one"),
        ({"method": "erase", "suppress": ("c1",), "amplify": ("c2",)}, "--edit.method units"),
        ({"method": "erase", "suppress": ("c1",), "layers": ("lin2",)}, "leave out --edit.layers"),
    ],
)
def test_refusals(tiny_vgg, blobs, options, message):
    concepts = ConceptSet(("c0", "c1", "c2", "c3"))
    with pytest.raises(InputError, match=message):
        check_study(tiny_vgg, Edit(**options), blobs, [blobs], concepts=concepts)


@pytest.fixture(scope="module")
def dissected(tiny_vgg, tiny_clip, blobs):
    """A dissection with random scores, its 60 images, and two test sets of others."""
    parts = [
        ImageSet.from_arrays(blobs.images[rows], blobs.labels[rows], blobs.classes, name=name)
        for name, rows in {
            "probe": slice(0, 60),
            "first": slice(60, 120),
            "second": slice(120, 180),
        }.items()
    ]
    rng = np.random.default_rng(0)
    record = some_record(tiny_clip.key)
    record.layers = {"lin1": 24, "lin2": 20}
    record.clip = tiny_clip
    record.embeddings = rng.normal(size=(60, tiny_clip.embed_texts(["Smile"]).shape[1]))
    scores = rng.normal(size=(44, 3)).astype(np.float32)
    concepts = ConceptSet(("Smile", "Frown", "Glasses"))
    return Dissection(record, concepts, "correlation", scores), parts[0], parts[1:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["units", "erase"])
def test_the_study_tests_what_the_edited_network_does(tiny_vgg, dissected, method):
    found, images, tests = dissected
    name = found.concepts.concepts[found.record.by_layer(found.labels)["lin2"][0]]
    options = Edit(suppress=(name,), masks=19, method=method)
    study = run_study(tiny_vgg, found, [], images, tests, options)
    befores = [evaluate(tiny_vgg, test) for test in tests]
    afters = [evaluate(study.edited, test) for test in tests]
    was, now = (
        np.concatenate([result.predictions == result.labels for result in results])
        for results in (befores, afters)
    )
    evidence = study.evidence
    assert (evidence.gained, evidence.lost) == ((now & ~was).sum(), (was & ~now).sum())
    assert evidence.p_value == mcnemar_exact(evidence.gained, evidence.lost)
    assert evidence.total == 120
    assert name in evidence.verdict
    control = evidence.controls["random_masks" if method == "units" else "random_directions"]
    assert control["draws"] == 19
    assert study.summary.edited["all"].correct == now.sum()
    if method == "units":
        units = found.units(name)["lin2"]
        np.testing.assert_array_equal(study.edited_units["unit"], np.flatnonzero(units))
        kernel = np.asarray(study.edited.lin2.kernel[...])
        np.testing.assert_array_equal(kernel[:, units], 0)
        np.testing.assert_array_equal(
            kernel[:, ~units], np.asarray(tiny_vgg.lin2.kernel[...])[:, ~units]
        )
        if units.sum() == 1:
            assert study.edited_units["change"][0] == now.sum() - was.sum()
    else:
        changed, own = (nnx.to_flat_state(nnx.state(model)) for model in (study.edited, tiny_vgg))
        for (path, leaf), (_, before) in zip(changed, own, strict=True):
            same = np.array_equal(np.asarray(leaf[...]), np.asarray(before[...]))
            assert same == (path[0] != "lin3")
