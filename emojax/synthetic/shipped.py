"""The two networks that ship with emojax, trained on rendered faces.

`scripts/build_demo_assets.py` makes them; `emojax demo` and the tests use them.
"""

from pathlib import Path

from emojax.data.weights import ClipEncoder, load_clip, load_vgg
from emojax.models.vgg import VggNet

ASSETS = Path(__file__).parent / "assets"


def load_demo() -> tuple[VggNet, ClipEncoder]:
    """The small VGGNet and the small CLIP, read as any other network is."""
    return load_vgg(ASSETS / "vgg.safetensors"), load_clip(ASSETS / "clip")
