"""The formulas of `docs/scale.md` against XLA's own analysis of the compiled probe step."""

import runpy
from pathlib import Path

import pytest
from conftest import hf_config

from emojax.models.clip import ClipConfig
from emojax.models.vgg import VggConfig

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCALE = runpy.run_path(str(SCRIPTS / "scale.py"))
VGG, CLIP = (
    VggConfig(widths=(8, 8, 12, 12, 16, 16, 24, 24), hidden=(64, 32)),
    ClipConfig.from_hf(hf_config().to_dict()),
)


def test_formulas_equal_what_xla_finds():
    shapes = {"side": 48, "top_k": 20, "tile": 16, "devices": 4, "keep": True}
    compiled, parameters = SCALE["compiled_step"](VGG, CLIP, **shapes, shared=True)
    cost, memory = SCALE["estimate"](VGG, CLIP, parameters, **shapes), compiled.memory_analysis()
    assert memory.argument_size_in_bytes == cost.parameters + cost.state + cost.images
    assert memory.output_size_in_bytes == pytest.approx(cost.state + cost.rows, abs=256)  # pointers
    assert memory.alias_size_in_bytes == cost.state  # the state is updated in place
    assert SCALE["exchanged"](compiled) == cost.exchanged
    found = compiled.cost_analysis()[
        "flops"
    ]  # with element-wise work, which weighs in such small networks
    assert cost.operations * 16 < found < 1.3 * cost.operations * 16


@pytest.mark.long
def test_devices_of_one_process_keep_activations_where_they_are_made():
    shapes = {"side": 48, "top_k": 20, "tile": 16, "devices": 2, "keep": True}
    compiled, parameters = SCALE["compiled_step"](VGG, CLIP, **shapes, shared=False)
    cost = SCALE["estimate"](VGG, CLIP, parameters, **shapes, shared=False)
    assert SCALE["exchanged"](compiled) == cost.exchanged


def test_a_published_size():
    """ViT-B/16 is known to take 17.6·10⁹ multiplications with an addition each for an image."""
    networks = runpy.run_path(str(SCRIPTS / "benchmarks" / "networks.py"))
    size = networks["clip_config"]("b16")
    assert SCALE["vision_operations"](ClipConfig.from_hf(size.to_dict())) == pytest.approx(
        2 * 17.56e9, rel=0.01
    )
