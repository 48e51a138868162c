"""The networks that ship do what their metrics say."""

import json

import numpy as np
import pytest

from emojax.synthetic import faces
from emojax.synthetic.shipped import ASSETS, load_demo
from emojax.training import contrastive
from emojax.training.evaluate import evaluate

pytestmark = pytest.mark.slow


def test_what_ships_does_what_its_metrics_say():
    """On faces that metrics.json is not of, within what 1,500 faces can tell; at most 4 MB."""
    model, clip = load_demo()
    told = json.loads((ASSETS / "metrics.json").read_text())
    people = faces.random_faces(1500, 31)
    pairs = contrastive.pair_accuracy(clip, people, people.render())
    concepts = np.mean([value for name, value in pairs.items() if name not in faces.DISTRACTORS])
    assert concepts == pytest.approx(
        told["clip"]["mean_pair_accuracy_of_the_25_concepts"], abs=0.02
    )
    assert concepts > 0.9
    accuracy = evaluate(model, people.image_set("faces")).top(1)
    assert accuracy == pytest.approx(told["vgg"]["test_accuracy"], abs=0.04)
    assert 0.7 < accuracy < 0.95
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 4e6
