"""What the runs of these tests share."""

import pytest
from signalled import SmallRun

from emojax.data.provenance import Use
from emojax.data.weights import save_vgg


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, sound, tiny_vgg) -> SmallRun:
    """A run that warns of nothing, with one cache for all tests: the first of them fills it."""
    folder = tmp_path_factory.mktemp("small-runs")
    save_vgg(tiny_vgg, folder / "vgg.safetensors", uses=[Use("other images", "0", "trained")])
    return SmallRun(sound, folder / "vgg.safetensors", folder / "cache")
