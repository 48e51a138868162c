"""The procedure of selection, held-out test and controls against plain loops; error rates."""

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from layers import float64_logits, random_layer

from emojax.data.image_set import ImageSet
from emojax.editing import edit
from emojax.editing.activations import pre_bias_activations
from emojax.editing.search import Search
from emojax.editing.sweep import Sweep, try_settings
from emojax.errors import InputError
from emojax.evidence import assess as evidence
from emojax.evidence import comparison, verdict
from emojax.evidence.subject import Subject, subject
from emojax.ops import stats

SEARCH = Search(
    tau=(-0.5, 0.0, 0.5), factor=(1.0, 1.5, 3.0), top_fraction=(0.25,), continuous=(2.0,)
)
SMALL = {"permutations": 9, "masks": 30, "resamples": 500}
SIMULATION = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "simulate_evidence.py"))


def halves(seed, units=40, images=300):
    """A random dense layer on two sets of images."""
    whole = random_layer(np.random.default_rng(seed), images=2 * images, units=units, classes=5)
    parts = (slice(0, images), slice(images, None))
    return [
        dataclasses.replace(
            whole, values=whole.values[p], labels=whole.labels[p], key=f"{seed} {n}", name=n
        )
        for p, n in zip(parts, ("publictest", "privatetest"), strict=True)
    ]


def make_subject(seed, **options):
    public, private = halves(seed)
    scores = np.random.default_rng(seed).standard_normal(40).astype(np.float32)
    return Subject({"lin2": scores}, {"lin2": public}, {"lin2": private}, **options)


@pytest.fixture(scope="module")
def subjects():
    """Two networks on the same labels."""
    first, second = (
        make_subject(1, learned={"lin2": np.full(40, 1.1)}),
        make_subject(2, learned={"lin2": np.full(40, 0.9)}),
    )

    def relabelled(part):
        theirs = getattr(first, part)["lin2"]
        return {"lin2": dataclasses.replace(getattr(second, part)["lin2"], labels=theirs.labels)}

    return [
        first,
        dataclasses.replace(
            second, selection=relabelled("selection"), held_out=relabelled("held_out")
        ),
    ]


def ok(layer, gains):
    return float64_logits(layer, gains, "weights").argmax(1) == layer.labels


def plain_gains(setting, scores):
    if setting.kind == "continuous":
        return setting.factor * (scores - scores.min()) / (scores.max() - scores.min())
    rank = np.argsort(np.argsort(-scores, kind="stable"))
    mask = (
        scores > setting.tau
        if setting.kind == "threshold"
        else rank < round(setting.tau * len(scores))
    )
    return np.where(mask, np.float32(setting.factor), np.float32(1) / np.float32(setting.factor))


def plain_choice(subjects, all_scores):
    """Gains in correct images of every setting, summed over networks, by plain loops."""
    settings = SEARCH.settings(["lin2"])
    table = np.zeros(len(settings), int)
    for one, scores in zip(subjects, all_scores, strict=True):
        layer = one.selection["lin2"]
        table += [
            ok(layer, plain_gains(s, scores)).sum() - ok(layer, np.ones(40)).sum() for s in settings
        ]
    return settings[int(table.argmax())], table


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.long)])
def test_procedure_equals_plain_loops(subjects, count):
    mine = subjects[:count]
    found = evidence.assess(mine, SEARCH, seed=3, **SMALL)
    scores = [one.scores["lin2"] for one in mine]
    setting, table = plain_choice(mine, scores)
    assert found.setting == setting
    assert [row["change"] * count for row in found.selection["grid"]] == pytest.approx(
        table.tolist()
    )
    assert found.selection["mean_change"] * count == pytest.approx(table.mean())

    def on_test(setting, all_scores):
        layers = [one.held_out["lin2"] for one in mine]
        after = [
            ok(layer, plain_gains(setting, s)).astype(int)
            for layer, s in zip(layers, all_scores, strict=True)
        ]
        return sum(after) - sum(ok(layer, np.ones(40)).astype(int) for layer in layers)

    net = on_test(setting, scores)
    assert (found.gained, found.lost, found.total) == ((net > 0).sum(), (net < 0).sum(), 300)
    assert found.change * count == net.sum()
    assert found.p_value == stats.mcnemar_exact(found.gained, found.lost)

    rng, best, tested = np.random.default_rng(3), [], []
    draws = [[rng.permutation(s) for _ in range(9)] for s in scores]
    for shuffled in zip(*draws, strict=True):
        picked, table_r = plain_choice(mine, shuffled)
        best.append(table_r.max())
        tested.append(on_test(picked, shuffled).sum())
    assert found.selection["p_search"] == pytest.approx(
        (1 + (np.array(best) >= table.max()).sum()) / 10
    )
    assert found.p_scores == pytest.approx((1 + (np.array(tested) >= net.sum()).sum()) / 10)
    assert found.controls["permuted_scores"]["mean"] * count == pytest.approx(np.mean(tested))

    own = [plain_gains(setting, s) for s in scores]
    heavy = [
        one.held_out["lin2"].weight_sums > one.held_out["lin2"].weight_sums.mean() for one in mine
    ]
    controls = {
        "all_up": [np.full(40, setting.factor)] * count,
        "all_down": [np.full(40, 1 / setting.factor)] * count,
        "inverted": [1 / g for g in own],
        "weight_sum": [np.where(m, setting.factor, 1 / setting.factor) for m in heavy],
        "learned": [np.full(40, g) for g in (1.1, 0.9)[:count]],
    }
    assert set(found.controls) == {*controls, "random_masks", "permuted_scores"}
    for name, gains in controls.items():
        change = sum(
            ok(one.held_out["lin2"], g).sum() - ok(one.held_out["lin2"], np.ones(40)).sum()
            for one, g in zip(mine, gains, strict=True)
        )
        assert found.controls[name]["change"] * count == change, name
    assert found.controls["random_masks"]["draws"] == 30
    assert (found.p_networks is None) == (count == 1)
    if count == 2:
        signs = [np.sign(n["gained"] - n["lost"]) for n in found.networks]
        assert found.p_networks == stats.mcnemar_exact(signs.count(1), signs.count(-1))


@pytest.mark.slow
def test_numbers_of_a_network(subjects):
    found = evidence.assess(subjects[:1], SEARCH, seed=3, **SMALL)
    layer = subjects[0].held_out["lin2"]
    for when, gains in (
        ("before", np.ones(40)),
        ("after", plain_gains(found.setting, subjects[0].scores["lin2"])),
    ):
        numbers, right = found.networks[0][when], ok(layer, gains)
        logits = float64_logits(layer, gains, "weights")
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert (numbers["correct"], numbers["accuracy"]) == (
            right.sum(),
            pytest.approx(right.mean()),
        )
        assert numbers["nll"] == pytest.approx(
            -np.log(p[np.arange(300), layer.labels]).mean(), rel=1e-5
        )
        ece = stats.calibration_error(np.float32(p.max(1)), right)
        assert numbers["ece"] == pytest.approx(float(ece), abs=1e-5)
    both = found.networks[0]["before"], found.networks[0]["after"]
    for name, at in found.intervals.items():
        assert at["difference"] == pytest.approx(both[1][name] - both[0][name], abs=1e-6)
        assert at["interval"][0] < at["difference"] < at["interval"][1]
    assert sum(row["gained"] for row in found.per_class.values()) == found.gained
    assert sum(row["images"] for row in found.per_class.values()) == 300
    assert all(row["p_adjusted"] >= row["p_value"] - 1e-6 for row in found.per_class.values())


@pytest.mark.slow
def test_bootstrap_intervals_equal_plain_resampling(subjects):
    """Resampled by hand: each statistic computed from the images themselves."""
    import jax

    layer = subjects[0].held_out["lin2"]
    pair = [Sweep(layer).evaluate(g) for g in (np.ones(40), np.linspace(0.5, 2, 40))]
    got = comparison.intervals([tuple(pair)], 200, 0.9, seed=5)
    keys = jax.random.split(jax.random.key(5), 256)[:200]
    rows = []
    for key in keys:
        at = np.asarray(jax.random.randint(key, (300,), 0, 300))
        parts = []
        for whole in pair:
            part = dataclasses.replace(whole, logits=whole.logits[at], labels=whole.labels[at])
            parts.append(part.summary() | {"ece": part.calibration().error})
        names = ("top1", "macro_recall", "nll", "ece")
        rows.append([parts[1][name] - parts[0][name] for name in names])
    measures = ("accuracy", "macro_recall", "nll", "ece")
    for name, column in zip(measures, np.transpose(rows), strict=True):
        np.testing.assert_allclose(
            got[name]["interval"], np.quantile(column, [0.05, 0.95]), rtol=1e-4, atol=1e-6
        )


@pytest.mark.slow
def test_same_seed_same_evidence(subjects):
    one, two, other = (
        evidence.assess(subjects[:1], SEARCH, seed=s, **SMALL).summary() for s in (3, 3, 4)
    )
    assert one == two
    assert one["controls"]["random_masks"] != other["controls"]["random_masks"]
    assert one["gained"] == other["gained"]
    assert json.loads(json.dumps(one, allow_nan=False))["finding"] == one["finding"]


@pytest.mark.slow
def test_stopped_evidence_resumes(subjects, tmp_path, monkeypatch):
    want = evidence.assess(subjects[:1], SEARCH, seed=3, cache=tmp_path, **SMALL).summary()
    monkeypatch.setattr(Sweep, "_count", lambda *_: pytest.fail("computed again"))
    assert evidence.assess(subjects[:1], SEARCH, seed=3, cache=tmp_path, **SMALL).summary() == want


@pytest.mark.slow
def test_settings_of_many_kinds_keep_their_order(subjects):
    layer, scores = subjects[0].selection["lin2"], subjects[0].scores["lin2"]
    settings = SEARCH.settings(["lin2"])[::-1]
    found = try_settings({"lin2": Sweep(layer)}, settings, [scores] * len(settings))
    for at, setting in enumerate(settings):
        want = float64_logits(layer, plain_gains(setting, scores), "weights").argmax(1)
        np.testing.assert_array_equal(found.predictions[at], want)


def test_without_a_second_set_the_search_decides(subjects):
    alone = dataclasses.replace(subjects[0], held_out=None)
    found = evidence.assess([alone], SEARCH, seed=3, **SMALL)
    assert found.selected_on_test
    assert found.p_scores == found.selection["p_search"]
    assert found.change == found.selection["change"]
    assert "chosen on the very images of the test" in found.verdict


@pytest.mark.long
def test_a_network_from_images(tiny_vgg, blobs):
    """Layers of every kind in one search, down from the pixels."""
    first, second = (
        blobs.first(60),
        ImageSet.from_arrays(blobs.images[60:130], blobs.labels[60:130], blobs.classes),
    )
    rng = np.random.default_rng(0)
    scores = {"conv4b": rng.standard_normal(10), "lin2": rng.standard_normal(20)}
    one = subject(tiny_vgg, scores, first, [second, first], tile=4)
    search = Search(tau=(0.0,), factor=(2.0,), continuous=(1.5,), scope="weights_and_bias")
    found = evidence.assess([one], search, permutations=3, masks=5, resamples=64)
    assert found.total == 130
    assert found.networks[0]["images"] == "images + blobs"
    settings = search.settings(list(scores))
    assert [row["layer"] for row in found.selection["grid"]] == ["conv4b", "conv4b", "lin2", "lin2"]
    base = Sweep(one.selection["lin2"]).evaluate(np.ones(20)).summary()["correct"]
    for setting, row in zip(settings, found.selection["grid"], strict=True):
        gains = edit.gains_of(setting, np.float32(scores[setting.layer]))
        edited = edit.edit(tiny_vgg, setting.layer, gains, scope="weights_and_bias")
        layer = pre_bias_activations(edited, first, "lin3", tile=4)
        assert row["change"] == Sweep(layer).evaluate(np.ones(7)).summary()["correct"] - base


def test_refusals(subjects):
    one = subjects[0]
    for call, message in (
        (lambda: evidence.assess([]), "no network to assess"),
        (lambda: evidence.assess([one], Search(factor=(1.0,))), "a factor other than 1"),
        (
            lambda: evidence.assess([one, dataclasses.replace(one, held_out=None)]),
            "differ in layers or sets",
        ),
        (
            lambda: evidence.assess([dataclasses.replace(one, scores={"lin2": np.ones(3)})]),
            "layer lin2 needs 40 finite",
        ),
        (lambda: evidence.assess([one, make_subject(2)]), "read on other images"),
        (lambda: verdict.Evidence(48, 33, 50), "48 gained and 33 lost of 50 images cannot be"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_simulated_studies():
    """40 studies of each kind. At most 5 of 40 false findings: P(more) is 1.4 %."""
    options = SIMULATION["Options"](studies=40, permutations=39, masks=20)
    for kind in SIMULATION["KINDS"]:
        rates = SIMULATION["simulate"](options, kind)
        if kind == "planted":
            assert rates["helps"] >= 0.3
        else:
            assert rates["helps"] <= 5 / 40
