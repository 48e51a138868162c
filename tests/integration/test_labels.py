"""Labels of a probe against torch and float64 numpy, from the pixels on."""

import importlib.util
import sys
from pathlib import Path

import pytest

from emojax.synthetic import shipped

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_labels.py"


@pytest.mark.long
def test_antialiased_labels_equal_torch():
    pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    spec = importlib.util.spec_from_file_location("check_labels", SCRIPT)
    check_labels = importlib.util.module_from_spec(spec)
    sys.modules["check_labels"] = check_labels  # dataclasses look their module up
    spec.loader.exec_module(check_labels)
    model, clip = shipped.load_demo()
    images = shipped.demo_faces(240)[0].image_set("faces")
    agreement = check_labels.compare(model, clip, images)
    # Ten layers of float32: sums of at most 9 × 48 products, each rounded; and so are ours.
    assert agreement.activation_error <= 10 * 2 * 9 * 48 * 1.2e-7
    # Where a unit's last top images are as good as tied, float32 may take another one.
    assert agreement.unexplained == 0
    assert agreement.changed > agreement.units // 50  # the resize is what is tested
