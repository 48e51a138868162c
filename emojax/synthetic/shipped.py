"""The three networks that ship with emojax, trained on rendered faces.

`scripts/build_demo_assets.py` says how they are made; `emojax demo` and the tests use them.
"""

from pathlib import Path

from emojax.data.clip_encoder import ClipEncoder
from emojax.data.clip_folder import load_clip
from emojax.data.weights import load_vgg
from emojax.models.vgg import VggNet
from emojax.synthetic.faces import Faces, random_faces
from emojax.synthetic.shortcut import Shortcut

ASSETS = Path(__file__).parent / "assets"
SHORTCUT = Shortcut("Glasses", "happy", 0.97)  # what `load_shortcut`'s network was trained with


def load_demo() -> tuple[VggNet, ClipEncoder]:
    """The small VGGNet and the small CLIP, read as any other network is."""
    return load_vgg(ASSETS / "vgg.safetensors"), load_clip(ASSETS / "clip")


def load_shortcut() -> VggNet:
    """A small VGGNet that takes glasses for happiness: in its training they went together."""
    return load_vgg(ASSETS / "shortcut.safetensors")


def demo_faces(images: int) -> tuple[Faces, list[Faces]]:
    """Faces to probe with and two test sets of half as many.

    The shipped networks were trained on none of them.
    """
    return random_faces(images, 11), [random_faces(images // 2, seed) for seed in (12, 13)]
