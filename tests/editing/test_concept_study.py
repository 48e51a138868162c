"""Edits by named concepts: which way, which units, tested against no edit and random controls."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import some_record
from flax import nnx

from emojax.data.concepts import ConceptSet
from emojax.data.image_set import ImageSet
from emojax.dissection.labels import Dissection
from emojax.editing.concept_study import concept_gains, correct_at_random, layer_of_concepts
from emojax.editing.erase import eraser
from emojax.editing.refit import Linear
from emojax.editing.search import Edit
from emojax.editing.shortcuts import Side
from emojax.editing.study import run_study
from emojax.editing.study_checks import check_study, erases
from emojax.errors import InputError
from emojax.evidence.comparison import permutation_p_value
from emojax.ops.stats import mcnemar_exact
from emojax.training.evaluate import evaluate

UNITS = {
    "Smile": {"lin1": np.array([True, False]), "lin2": np.array([True, True, False])},
    "Frown": {"lin1": np.array([False, False]), "lin2": np.array([False, True, False])},
}
NONE = np.zeros(3, bool)
SOME_CLIP = object()  # which of them it is plays no part


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
        ({"method": "erase", "suppress": ("c1",), "amplify": ("c2",)}, "amplify is of units"),
        ({"method": "erase", "suppress": ("c1",), "layers": ("lin2",)}, "layers is of units"),
    ],
)
def test_refusals(tiny_vgg, blobs, options, message):
    concepts = ConceptSet(("c0", "c1", "c2", "c3"))
    with pytest.raises(InputError, match=message):
        check_study(tiny_vgg, Edit(**options), blobs, [blobs], concepts=concepts)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"amplify": ("c2",)}, "--edit.amplify is of units"),
        ({"rule": "score", "least": 0.1}, "--edit.rule, --edit.least are of units"),
        ({"suppress_factor": 0.5}, "--edit.suppress-factor is of units"),
    ],
)
def test_auto_erases_unless_what_is_given_is_of_units(tiny_vgg, blobs, caplog, options, reason):
    caplog.set_level(logging.INFO, "emojax")
    edit = Edit(suppress=("c1",), **options)
    assert erases(tiny_vgg, blobs, edit, SOME_CLIP) == (reason is None)
    (line,) = caplog.messages
    assert ("'c1' erased from the last layer" if reason is None else f"since {reason}") in line


def test_auto_scales_units_where_nothing_can_be_erased(tiny_vgg, blobs, caplog):
    caplog.set_level(logging.INFO, "emojax")
    unlabelled = ImageSet.from_arrays(blobs.images[:2], name="some")
    two_classes = ImageSet.from_arrays(blobs.images[:2], [0, 1], ("a", "b"), name="others")
    edit = Edit(suppress=("c1",))
    for model, images, clip in (
        (tiny_vgg, unlabelled, SOME_CLIP),
        (tiny_vgg, two_classes, SOME_CLIP),
        (SimpleNamespace(), blobs, SOME_CLIP),
        (tiny_vgg, blobs, None),
    ):
        assert not erases(model, images, edit, clip)
    reasons = (
        "some has no class labels",
        "others has 2 classes",
        "not ours to change",
        "from disk",
    )
    for line, reason in zip(caplog.messages, reasons, strict=True):
        assert reason in line
    with pytest.raises(InputError, match="some has no class labels; change that"):
        check_study(tiny_vgg, Edit(suppress=("c1",), method="erase"), unlabelled, [blobs])


def some_side(rng, count=60):
    """Three classes that two of five units tell, and similarities with two concepts by chance."""
    labels = np.arange(count) % 3
    features = rng.normal(size=(count, 5))
    features[np.arange(count), labels] += 1.0
    return Side(features, labels, labels, rng.normal(size=(count, 2)))


def test_random_erasings_are_of_all_concepts_at_once():
    """Each draw gives an image's similarities, together, to another of its class."""
    side = some_side(np.random.default_rng(0))
    drawn = []

    def erased(similarities):
        drawn.append(similarities)
        return Linear(np.zeros((5, 3)), np.arange(3.0))

    correct = correct_at_random(erased, side, side.features, side.labels, 4)
    np.testing.assert_array_equal(correct, [20] * 4)  # the last class, whatever the image
    for similarities in drawn:
        assert (similarities != side.similarities).any()
        for label in range(3):
            pairs = (own[side.labels == label] for own in (similarities, side.similarities))
            np.testing.assert_array_equal(*(np.unique(rows, axis=0) for rows in pairs))


@pytest.mark.slow
def test_two_concepts_of_nothing_are_as_good_as_random_ones():
    """p ≤ 0.1 in at most some tenth of studies: naming two concepts buys no better chance."""
    small = 0
    for study in range(40):
        rng = np.random.default_rng([3, study])
        side, test = some_side(rng), some_side(rng)
        erased = eraser(Linear(np.eye(5)[:, :3], np.zeros(3)), side.features, side.labels)

        def correct(layer, test=test):
            return int((layer.logits(test.features).argmax(axis=1) == test.labels).sum())

        drawn = correct_at_random(erased, side, test.features, test.labels, 19)
        small += permutation_p_value(correct(erased(side.similarities)), drawn) <= 0.1
    assert small <= 10  # of a rate of 0.1 more are seen in 0.15 % of such sets of studies


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
@pytest.mark.parametrize("method", ["units", "auto"])
def test_the_study_tests_what_the_edited_network_does(tiny_vgg, dissected, method):
    found, images, tests = dissected
    labels = found.record.by_layer(found.labels)["lin2"]
    names = tuple(found.concepts.concepts[label] for label in np.unique(labels)[:2])
    options = Edit(suppress=names, masks=19, method=method)
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
    assert all(name in evidence.verdict for name in names)
    assert (
        "As many random units" if method == "units" else "Random directions"
    ) in evidence.verdict
    control = evidence.controls["random_masks" if method == "units" else "random_directions"]
    assert control["draws"] == 19
    assert study.summary.setting.kind == ("concepts" if method == "units" else "erased")
    assert study.summary.edited["all"].correct == now.sum()
    if method == "units":
        units = found.units(*names)["lin2"]
        np.testing.assert_array_equal(study.edited_units["unit"], np.flatnonzero(units))
        kernel = np.asarray(study.edited.lin2.kernel[...])
        np.testing.assert_array_equal(kernel[:, units], 0)
        np.testing.assert_array_equal(
            kernel[:, ~units], np.asarray(tiny_vgg.lin2.kernel[...])[:, ~units]
        )
    else:
        changed, own = (nnx.to_flat_state(nnx.state(model)) for model in (study.edited, tiny_vgg))
        for (path, leaf), (_, before) in zip(changed, own, strict=True):
            same = np.array_equal(np.asarray(leaf[...]), np.asarray(before[...]))
            assert same == (path[0] != "lin3")
