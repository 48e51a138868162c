"""The arena: every contender gives logits, its tests are those of plain counts, seeds are units."""

import itertools

import numpy as np
import pytest

from emojax.editing import arena
from emojax.editing.arena import Images
from emojax.editing.refit import Linear, adjust, refit_balanced
from emojax.ops.stats import mcnemar_exact


def some_images(rng, count, share):
    """Unit 0 tells the nuisance, 1 the class, 2 and 3 nothing; CLIP sees the nuisance."""
    labels = rng.integers(0, 2, count)
    shown = np.where(rng.random(count) < share, labels, 1 - labels)
    features = np.stack([2.0 * shown, 1.5 * labels, labels * 0.0, labels * 0.0], axis=1)
    features = np.abs(features + rng.normal(0, 0.7, (count, 4)))
    similarities = np.stack([labels * 0.0, shown + rng.normal(0, 0.1, count)], axis=1)
    return Images(features, labels, 2 * labels + shown, similarities)


@pytest.fixture(scope="module")
def sides():
    rng = np.random.default_rng(0)
    weight = np.array([[-1.0, 1.0], [-1.0, 1.0], [0.3, 0.1], [0.0, 0.2]])
    last = Linear(weight, np.array([2.0, -2.0]))
    return some_images(rng, 1500, 0.95), some_images(rng, 1200, 0.5), last


@pytest.mark.slow
def test_all_contenders_meet_on_the_same_images(sides):
    selection, held_out, last = sides
    units = np.array([True, False, False, False])
    contest = arena.contest(selection, held_out, last, units, 1, draws=3)
    assert set(contest.logits) == {
        *(arena.NONE, arena.SILENCED, arena.ERASED, arena.DFR, arena.ORACLE),
        *arena.NO_GROUPS,
    }
    rows = {name: arena.measures(logits, held_out) for name, logits in contest.logits.items()}
    worst = {name: row["worst_group"] for name, row in rows.items()}
    for name in (arena.ERASED, arena.DFR):
        assert worst[name] > worst[arena.NONE] + 0.2
    adjusted = adjust(last.logits(selection.features), selection.labels)
    np.testing.assert_array_equal(
        contest.logits[arena.NO_GROUPS[0]], adjusted(last.logits(held_out.features))
    )
    for drawn in contest.random.values():
        assert drawn.shape == (3, 1200, 2)
    right = contest.logits[arena.ERASED].argmax(axis=1) == held_out.labels
    own = refit_balanced(selection.features, selection.labels, selection.groups, 2)
    np.testing.assert_array_equal(own.logits(held_out.features), contest.logits[arena.DFR])
    assert right.mean() == rows[arena.ERASED]["accuracy"]


@pytest.mark.slow
def test_measures_are_plain_ones(sides):
    _, held_out, last = sides
    logits = last.logits(held_out.features)
    found = arena.measures(logits, held_out)
    right = logits.argmax(axis=1) == held_out.labels
    recalls = [right[held_out.labels == c].mean() for c in (0, 1)]
    groups = [right[held_out.groups == g].mean() for g in range(4)]
    odds = np.exp(logits)
    own = (odds / odds.sum(axis=1, keepdims=True))[np.arange(1200), held_out.labels]
    assert found["accuracy"] == right.mean()
    assert found["macro_recall"] == pytest.approx(np.mean(recalls))
    assert (found["worst_class"], found["worst_group"]) == (min(recalls), min(groups))
    assert found["nll"] == pytest.approx(-np.log(own).mean())


def test_paired_tests_count_images(sides):
    _, held_out, last = sides
    before = last.logits(held_out.features)
    after = arena.silenced(last, np.array([True, False, False, False]))
    after = after.logits(held_out.features) + np.array([0.0, 1.0])
    minority = held_out.groups % 2 != held_out.labels
    found = arena.against(before, after, held_out, minority, resamples=999)
    was, now = (logits.argmax(axis=1) == held_out.labels for logits in (before, after))
    gained, lost = int((now & ~was)[minority].sum()), int((was & ~now)[minority].sum())
    p_value = mcnemar_exact(gained, lost)
    assert found["minority"] == {"gained": gained, "lost": lost, "p_value": p_value}
    assert found["worst_group"]["change"] > 0.1
    assert found["worst_group"]["p_value"] == 1 / 1000
    back = arena.against(after, before, held_out, minority, resamples=999)
    assert back["worst_group"]["p_value"] == 1.0
    same = arena.against(before, before, held_out, minority, resamples=99)
    assert (same["worst_group"]["change"], same["worst_group"]["p_value"]) == (0.0, 1.0)


def test_signs_of_seeds_are_all_tried():
    changes = np.array([0.3, -0.1, 0.2, 0.4])
    sums = [np.dot(signs, changes) for signs in itertools.product((1, -1), repeat=4)]
    expected = np.mean(np.array(sums) >= changes.sum() - 1e-12)
    assert arena.sign_flip_p_value(changes) == expected
    assert arena.sign_flip_p_value(np.ones(10)) == 2.0**-10
    with pytest.raises(ValueError, match="21 seeds"):
        arena.sign_flip_p_value(np.ones(21))
