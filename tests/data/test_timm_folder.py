"""timm's folders, against transformers' networks of the same shapes under timm's names."""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_VIT
from flax import nnx
from reference import relative

from emojax.data.network_folder import load_network, save_network
from emojax.data.timm_folder import preprocess_of
from emojax.errors import InputError
from emojax.models import resnet
from emojax.models.preprocess import Preprocess
from emojax.models.tapped import with_gains

torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
import transformers
from safetensors.numpy import load_file, save_file

HALF = (0.5, 0.5, 0.5)
IMAGES = {
    "input_size": [3, 16, 16],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": HALF,
    "std": HALF,
}
# transformers' names → timm's.
VIT = [
    (r"^vit\.", ""),
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^encoder\.layer\.", "blocks."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(\d)\.output\.dense", r"\1.mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head"),
]
CONVNEXT = [
    (r"^convnext\.embeddings\.patch_embeddings", "stem.0"),
    (r"^convnext\.embeddings\.layernorm", "stem.1"),
    (r"^convnext\.encoder\.", ""),
    (r"downsampling_layer", "downsample"),
    (r"layers", "blocks"),
    (r"dwconv", "conv_dw"),
    (r"(\d)\.layernorm", r"\1.norm"),
    (r"pwconv(\d)", r"mlp.fc\1"),
    (r"layer_scale_parameter", "gamma"),
    (r"^convnext\.layernorm", "head.norm"),
    (r"^classifier", "head.fc"),
]


def renamed(arrays, table):
    for old, new in table:
        arrays = {re.sub(old, new, name): array for name, array in arrays.items()}
    return arrays


def vit():
    """A ViT of transformers, and its parameters as timm has them."""
    config = transformers.ViTConfig(**TINY_VIT, layer_norm_eps=1e-6, num_labels=3)
    model = transformers.ViTForImageClassification(config)
    arrays = renamed(state_of(model), VIT)
    for name in [name for name in arrays if ".query." in name]:
        parts = [arrays.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        joined = re.sub(r"attention\.attention\.query", "attn.qkv", name)
        arrays[joined] = np.concatenate(parts)
    return model, arrays


def convnext():
    config = transformers.ConvNextConfig(
        num_stages=2,
        hidden_sizes=[8, 16],
        depths=[2, 1],
        num_labels=3,
        layer_scale_init_value=0.5,
        layer_norm_eps=1e-6,
    )
    model = transformers.ConvNextForImageClassification(config)
    return model, renamed(state_of(model), CONVNEXT)


def state_of(model):
    """Parameters, shaken, under the names of transformers' files."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    with tempfile.TemporaryDirectory() as folder:
        model.eval().save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def write(folder, arrays, **config):
    folder.mkdir(exist_ok=True)
    settings = {"num_classes": 3, "pretrained_cfg": IMAGES} | config
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        folder / "model.safetensors",
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "build", "layer"),
    [("vit_tiny_patch4_16", vit, "block1.hidden"), ("convnext_tiny", convnext, "pooled")],
)
def test_equal_to_torch_and_edited_and_saved(name, build, layer, tmp_path):
    model, arrays = build()
    names = ["joy", "calm", "awe"]
    own = write(tmp_path / "own", arrays, architecture=name, label_names=names)
    network = load_network(own)
    assert network.config.class_names == tuple(names)
    side = 32 if build is convnext else 16
    images = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    run = nnx.jit(lambda module, x: module(x)[0])
    assert relative(run(network, images), want) <= 1e-4

    # An edit goes back under timm's names, and nothing else changes.
    units = network.config.units()[layer]
    edited = with_gains(network, {layer: np.full(units, 2, np.float32)})
    save_network(edited, tmp_path / "edited", like=own)
    saved = load_file(tmp_path / "edited" / "model.safetensors")
    assert saved.keys() == arrays.keys()
    changed = {key for key in saved if not np.array_equal(saved[key], arrays[key])}
    assert changed == {"blocks.1.mlp.fc2.weight" if build is vit else "head.fc.weight"}
    np.testing.assert_array_equal(
        run(load_network(tmp_path / "edited"), images), run(edited, images)
    )


@pytest.mark.slow
def test_a_resnet_has_torchvisions_names(tmp_path):
    """Only the preprocessing is timm's own."""
    sizes = {"stem": 4, "widths": (4, 8), "depths": (1, 2), "block": "basic", "classes": 3}
    config = resnet.ResNetConfig(**sizes, preprocess=resnet.TORCHVISION, torchvision=True)
    state = nnx.jit(lambda: resnet.ResNet(config, rngs=nnx.Rngs(0)))().state_dict()
    network = load_network(write(tmp_path / "own", state, architecture="resnet18"))
    assert network.config.depths == (1, 2)
    assert network.config.class_names is None
    want = Preprocess(17, (16, 16), HALF, HALF, "bicubic", half_even=True)
    assert network.config.preprocess == want


def test_an_odd_margin_is_cut_as_torchvision_does():
    """A margin of 11 pixels: 6 of them at the near side, where transformers cuts 5."""
    steps = preprocess_of(IMAGES | {"crop_pct": 0.595})  # 26 pixels, of which 16 are kept
    assert (steps.resize, steps.crop) == (26, (16, 16))
    steps = Preprocess(None, (16, 16), HALF, HALF, half_even=True)
    images = np.arange(27 * 19, dtype=np.uint8).reshape(1, 27, 19, 1)
    np.testing.assert_array_equal(steps.pixels(images)[0], images[0, 6:22, 2:18])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "swin_tiny_patch4_window7_224"},
            r"are ViT.*of timm vit_base_patch",
        ),
        ({"architecture": "vit_base_patch16_clip_224"}, r"--target\.factory and emojax\.collect"),
        ({"model_args": {"class_token": False}}, "model_args has class_token"),
        ({"global_pool": "avg"}, "global_pool is 'avg', not 'token'"),
        ({"pretrained_cfg": IMAGES | {"input_size": [3, 20, 20]}}, "positions are of 16×16"),
        ({"pretrained_cfg": IMAGES | {"crop_mode": "border"}}, "crop_mode 'border'"),
        ({"pretrained_cfg": IMAGES | {"crop_pct": 2}}, "crop_pct 2 is not a share of 1"),
        ({"pretrained_cfg": {}}, "input_size"),
        ({"architecture": "convnext_tiny"}, "not a ConvNeXt of timm"),
        ({"architecture": "vit_small_patch4_16"}, "width 25 does not divide"),
    ],
)
def test_others_are_refused_in_one_line(changes, message, arrays, tmp_path):
    if "small" in changes.get("architecture", ""):
        arrays = arrays | {"cls_token": np.zeros((1, 1, 25), np.float32)}
    config = {"architecture": "vit_tiny_patch4_16"} | changes
    with pytest.raises(InputError, match=message) as refusal:
        load_network(write(tmp_path / "own", arrays, **config))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 700


@pytest.fixture(scope="module")
def arrays():
    return vit()[1]
