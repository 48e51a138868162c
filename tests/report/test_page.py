"""The page of a run: one file, escaped, bounded."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hostile_run import HOSTILE, copy_of, page_data

import emojax
from emojax import settings as config
from emojax import store
from emojax.commands import report as reporting
from emojax.data.image_set import ImageSet
from emojax.editing import study_result
from emojax.editing.study_result import ChosenSetting, StudySummary
from emojax.errors import InputError
from emojax.report import page, page_figures
from emojax.report.results import read_run


def test_page_is_one_escaped_file(hostile):
    folder, _ = hostile
    text = (folder / "report.html").read_text("utf-8")
    assert text.count("<script") == text.count("</script>")
    assert "<script>alert" not in text
    assert "onerror" not in text.partition('id="data">')[0].replace("onerror=b()&gt;", "")
    assert "<b>" not in text.partition("<h1>")[2].partition("</h1>")[0]
    assert "\u2028" not in text.partition('id="data">')[2]
    assert "default-src 'none'" in text
    assert not [word for word in ('src="http', 'href="http', "@import", "fetch(") if word in text]
    data = page_data(text)
    assert set(HOSTILE) <= set(data["concepts"])
    assert data["thumbs"]["shown"] == 16
    assert page.PEOPLE in text
    names = {p.name for p in (folder / "figures").iterdir()}
    expected = (
        "network",
        "samples",
        "descriptions",
        "similarities",
        "labels",
        "grid",
        "thresholds",
        "per_class",
    )
    assert names == {f"{name}.{kind}" for name in expected for kind in ("png", "svg")}
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


@pytest.mark.long
def test_no_images_unless_asked_for(hostile, tmp_path):
    folder = copy_of(hostile[0], tmp_path)
    store.note(folder, "page", None)  # a run without a page yet
    reporting.add(folder, config.Report(), hostile[1])
    text = (folder / "report.html").read_text("utf-8")
    assert page_data(text)["thumbs"] is None
    assert "maps" not in page_data(text)
    assert page.PEOPLE not in text
    assert 'class="pack"' not in text
    assert not (folder / "figures" / "samples.png").exists()


def test_the_page_says_what_the_network_has_seen(hostile, tmp_path):
    for target, said in (
        ({}, "unknown"),
        ({"target": {}}, "unknown"),
        ({"target": {"seen": None}}, "unknown origin: counts as having seen all test splits"),
        ({"target": {"seen": []}}, "none"),
    ):
        assert page.provenance(target) == said
    folder = copy_of(hostile[0], tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    store.write_json(
        folder / "manifest.json",
        manifest | {"target": {"seen": [{"name": "<i>", "role": "trained"}]}},
    )
    assert (
        "splits that shaped it</th><td>&lt;i&gt; (trained on)</td>"
        in page.build(read_run(folder))[0]
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("antialias", "said"), [(True, "with antialiasing (tests: without)"), (None, "")]
)
def test_the_page_says_how_the_probe_resized(hostile, tmp_path, antialias, said):
    folder = copy_of(hostile[0], tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    store.write_json(folder / "summary.json", summary | {"antialias": antialias})
    text = page.build(read_run(folder))[0]
    assert ("resized for the probe" in text) == bool(said)
    assert said in text


@pytest.mark.long
def test_flagged_images(hostile, tmp_path):
    folder, images = copy_of(hostile[0], tmp_path), hostile[1]
    lines = [
        [images.ids[3], "training", "happy", "blank", ""],
        ["elsewhere", "training", "sad", "duplicate", "of <x>"],
    ]
    store.write_csv(tmp_path / "audit.csv", ["file", "split", "label", "reason", "detail"], lines)
    found = read_run(folder, tmp_path)
    assert page_figures.flagged_images(found, images) == {"blank": [3]}
    text, drawn = page.build(found, images)
    assert "flagged" in drawn
    assert "Flagged images" in text
    assert "flagged" not in page.build(found)[1]
    with pytest.raises(InputError, match="no audit at"):
        read_run(folder, tmp_path / "none.csv")


def test_the_finding_is_a_table_whose_colour_follows_it(hostile, tmp_path):
    """An NLL whose interval lies on the bad side makes a bad box, whatever the predictions."""
    folder = copy_of(hostile[0], tmp_path)
    evidence = json.loads((folder / "evidence.json").read_text())
    same = {"difference": 0.0, "interval": [-0.01, 0.01]}
    measures = {name: same for name in ("accuracy", "macro_recall", "ece")}
    worse = {"nll": {"difference": 0.1, "interval": [0.05, 0.2]}}
    counts = {"gained": 3, "lost": 4, "p_scores": 0.5}
    store.write_json(folder / "evidence.json", evidence | counts | {"intervals": measures | worse})
    text = page.build(read_run(folder))[0]
    assert '<div class="verdict bad">' in text
    assert text.count('<svg class="edit-picture"') == 1  # by a threshold
    assert "No effect is shown. But NLL is worse. 3 images gained and 4 lost" in text
    box = text.partition('<div class="verdict bad">')[2].partition("</details>")[0]
    assert box.count('<td class="worse">worse</td>') == 1
    assert box.count("<td>no difference shown</td>") == 3


@pytest.mark.slow
def test_the_page_of_an_own_network_names_it_and_its_classes(tmp_path, tiny_clip):
    """From Python: a function's name, the encoder's, and classes that are no emotions."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 32, 32), dtype=np.uint8)
    images = ImageSet.from_arrays(pixels, np.arange(24) % 2, ("round", "square"))

    def shape_net(x):
        return x.mean(axis=(1, 2)), {"only": x.reshape(len(x), -1)[:, :6], "places": x}

    record = emojax.probe(shape_net, images, tiny_clip, top_k=10)
    found = emojax.dissect(record, ["circle", "box"], null_sets=0, similarity="correlation")
    shown = {"images": images, "people": False, "model": shape_net}
    text = emojax.write_report(found, tmp_path / "run", **shown).read_text()
    assert "network</th><td>shape_net</td>" in text
    assert f"CLIP</th><td>{tiny_clip.name}</td>" in text
    assert "Emotion labels" not in text
    assert "smile" not in text.lower()
    assert 'placeholder="c' in text or 'placeholder="b' in text
    assert "images</th><td>images</td>" in text
    assert "probe split" not in text
    assert "No accuracies: no label speaks for a class of the images" in text
    assert page_data(text)["maps"]["sides"] == [[0, 0], [10, 10]]


def test_the_page_warns_of_an_encoder_that_sees_little(hostile):
    run = read_run(hostile[0])
    weak = {"images": 9, "accuracy": 0.15, "chance": 0.14, "weak": True}
    named = {"name": "<b>", "trained_on": "drawings"}
    for encoder, said in (
        (None, 0),
        ({"name": "<b>"}, 0),
        (named, 1),
        (named | {"zero_shot": weak | {"weak": False}}, 1),
        (named | {"zero_shot": weak | {"weak": False, "kappa": 0.9}}, 0),
        (named | {"zero_shot": weak}, 2),
    ):
        warned = dataclasses.replace(run, summary=run.summary | {"encoder": encoder})
        assert len(page._beware(warned)) == said
        tile = dict(map(reversed, page._cards(warned)))
        assert ("labels that can be trusted" in tile) == (said == 0)
        seen = [
            ("classes by name", "the CLIP finds the right one for 15.0% of 9 images (chance 14.0%)")
        ]
        assert page._sees(warned) == (seen if "zero_shot" in (encoder or {}) else [])
    text = page.build(warned)[0]
    assert text.count("Beware.") == 2
    assert "&lt;b&gt; was trained on drawings alone" in text


def test_an_erasing_is_told_as_one():
    """It scales no units, so neither a factor nor a scope is named."""
    setting = ChosenSetting("lin2", "erased", concepts="'Glasses' erased from the last layer")
    study = StudySummary(
        setting, "weights", False, None, {}, tested=study_result.Tested(["a", "b"], 10, 1, 0)
    )
    told = page._edit(SimpleNamespace(evidence=None), study)
    assert told["setting"] == (
        "'Glasses' erased from the last layer. Tested on a, b, which took no part in its selection."
    )
    assert "taken out of the last layer's weights" in told["meaning"]
