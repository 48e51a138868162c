"""The two networks that ship with emojax, trained on rendered faces by `scripts/build_demo_assets.py`."""

from pathlib import Path

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.clip_folder import load_clip
from emojax.data.weights import load_vgg
from emojax.models.vgg import VggNet

ASSETS = Path(__file__).parent / "assets"


def load_demo() -> tuple[VggNet, ClipEncoder]:
    """The small VGGNet and the small CLIP, by the same code that loads anybody's."""
    return load_vgg(ASSETS / "vgg.safetensors"), load_clip(ASSETS / "clip")
