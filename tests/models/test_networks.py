"""Networks of other libraries against torch: logits and every tap, at random weights.

What torch gives for a tap is caught by forward hooks on the module that computes it.
"""

import numpy as np
import pytest
from conftest import TINY_VIT
from flax import nnx

from emojax.data.network_folder import load_network, save_network
from emojax.errors import InputError
from emojax.models.tapped import with_gains

torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
import transformers

LABELS = {"id2label": {"0": "joy", "1": "calm", "2": "awe"}}
SIDE = {"height": 16, "width": 16}


def block_hooks(blocks, attention, hidden):
    """Taps of transformer blocks: names → modules, by functions from a block to its parts."""
    hooks = {}
    for number, block in enumerate(blocks):
        hooks[f"block{number}.attention"] = attention(block)
        hooks[f"block{number}.hidden"] = hidden(block)
        hooks[f"block{number}"] = block
    return hooks


def vit_hooks(model, base):
    body = getattr(model, base)
    layers = body.layers if hasattr(body, "layers") else body.encoder.layer
    hooks = block_hooks(layers, lambda b: b.attention.o_proj, lambda b: b.mlp.activation_fn)
    return hooks | {"embeddings": body.embeddings}


def dinov2_hooks(model):
    body = model.dinov2
    hooks = block_hooks(
        body.encoder.layer, lambda b: b.attention.o_proj, lambda b: b.mlp.activation_fn
    )
    return hooks | {"embeddings": body.embeddings}


def clip_hooks(model):
    body = getattr(model, "vision_model", model)
    return block_hooks(
        body.encoder.layers, lambda b: b.self_attn.out_proj, lambda b: b.mlp.activation_fn
    )


def resnet_hooks(model):
    hooks = {"stem": model.resnet.embedder}
    for i, stage in enumerate(model.resnet.encoder.stages):
        for j, block in enumerate(stage.layers):
            for k, conv in enumerate(list(block.layer)[:-1]):
                hooks[f"stage{i}.block{j}.conv{k}"] = conv
            hooks[f"stage{i}.block{j}"] = block
        hooks[f"stage{i}"] = stage
    return hooks


def convnext_hooks(model):
    hooks = {"stem": model.convnext.embeddings}
    for i, stage in enumerate(model.convnext.encoder.stages):
        for j, block in enumerate(stage.layers):
            hooks[f"stage{i}.block{j}.hidden"] = block.act
            hooks[f"stage{i}.block{j}"] = block
        hooks[f"stage{i}"] = stage
    return hooks


def _vit(kind, cls, **changes):
    config = getattr(transformers, f"{kind}Config")(**TINY_VIT | LABELS | changes)
    return getattr(transformers, cls)(config), "ViT", {"size": SIDE}


def _dinov2(**changes):
    sizes = {name: value for name, value in TINY_VIT.items() if name != "intermediate_size"}
    config = transformers.Dinov2Config(**sizes | LABELS | {"mlp_ratio": 2} | changes)
    crop = {"size": {"shortest_edge": 16}, "crop_size": SIDE}
    return transformers.Dinov2ForImageClassification(config), "Bit", crop


def _resnet(**changes):
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2], "num_stages": 2}
    config = transformers.ResNetConfig(**sizes | LABELS | changes)
    settings = {"size": {"shortest_edge": 40}, "crop_pct": 0.875}
    return transformers.ResNetForImageClassification(config), "ConvNext", settings


def _convnext(**changes):
    sizes = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 1]}
    config = transformers.ConvNextConfig(
        **sizes | LABELS | {"layer_scale_init_value": 0.5} | changes
    )
    settings = {"size": {"shortest_edge": 32}}
    return transformers.ConvNextForImageClassification(config), "ConvNext", settings


def _clip(cls, kind="CLIP", **changes):
    config = getattr(transformers, f"{kind}VisionConfig")(**TINY_VIT | changes)
    processor = (
        {"size": SIDE} if kind == "Siglip" else {"size": {"shortest_edge": 16}, "crop_size": SIDE}
    )
    return getattr(transformers, cls)(config), kind, processor


TINY = {
    "vit": (lambda: _vit("ViT", "ViTForImageClassification"), lambda m: vit_hooks(m, "vit")),
    "vit no bias": (
        lambda: _vit("ViT", "ViTForImageClassification", qkv_bias=False, hidden_act="quick_gelu"),
        lambda m: vit_hooks(m, "vit"),
    ),
    "deit": (lambda: _vit("DeiT", "DeiTForImageClassification"), lambda m: vit_hooks(m, "deit")),
    "deit teacher": (
        lambda: _vit("DeiT", "DeiTForImageClassificationWithTeacher"),
        lambda m: vit_hooks(m, "deit"),
    ),
    "dinov2": (_dinov2, dinov2_hooks),
    "dinov2 interpolated": (lambda: _dinov2(image_size=28), dinov2_hooks),
    "resnet": (_resnet, resnet_hooks),
    "resnet basic": (lambda: _resnet(layer_type="basic"), resnet_hooks),
    "resnet strides": (
        lambda: _resnet(downsample_in_bottleneck=True, downsample_in_first_stage=True),
        resnet_hooks,
    ),
    "convnext": (_convnext, convnext_hooks),
    "clip": (lambda: _clip("CLIPVisionModel"), clip_hooks),
    "clip projected": (
        lambda: _clip("CLIPVisionModelWithProjection", projection_dim=12),
        clip_hooks,
    ),
    "siglip": (lambda: _clip("SiglipVisionModel", "Siglip"), clip_hooks),
}
BASE = {
    "vit": (
        lambda: _vit("ViT", "ViTForImageClassification", **VIT_B),
        lambda m: vit_hooks(m, "vit"),
    ),
    "dinov2": (lambda: _dinov2(**DINOV2_S), dinov2_hooks),
    "resnet": (lambda: _resnet(**RESNET_50), resnet_hooks),
    "convnext": (lambda: _convnext(**CONVNEXT_T), convnext_hooks),
    "siglip": (lambda: _clip("SiglipVisionModel", "Siglip", **VIT_B), clip_hooks),
}
VIT_B = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
}
DINOV2_S = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
}
RESNET_50 = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "num_stages": 4,
}
CONVNEXT_T = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3], "num_stages": 4}


def shake(model):
    """Random parameters and statistics: those of a new network hide wrong scales and signs."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def make_folder(build, folder, side=None):
    """A folder of a random network, and the torch network."""
    model, kind, processor = build()
    shake(model).save_pretrained(folder)
    if side is not None:
        square = {"height": side, "width": side}
        kind, processor = "ViT", {"size": square}
    getattr(transformers, f"{kind}ImageProcessorPil")(**processor).save_pretrained(folder)
    return model


def torch_outputs(model, hooks, images):
    """Logits, or what a tower gives, and every hooked module's output, channels last."""
    outputs = {}

    def keep(name):
        def hook(_module, _inputs, output):
            array = (output[0] if isinstance(output, tuple) else output).detach().numpy()
            is_image = array.ndim == 4 and not name.endswith(".hidden")
            outputs[name] = array.transpose(0, 2, 3, 1) if is_image else array

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in hooks.items()]
    with torch.no_grad():
        result = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for handle in handles:
        handle.remove()
    for name in ("logits", "image_embeds", "pooler_output"):
        if getattr(result, name, None) is not None:
            return getattr(result, name).numpy(), outputs
    raise AssertionError("no output")


def relative(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


def check_parity(network, model, hooks, side, batch):
    images = np.random.default_rng(0).standard_normal((batch, side, side, 3)).astype(np.float32)
    want, taps = torch_outputs(model, hooks, images)
    got, ours = nnx.jit(lambda module, x: module(x))(network, images)
    assert relative(got, want) <= 1e-4
    for name, tap in taps.items():
        assert ours[name].shape == tap.shape, name
        assert relative(ours[name], tap) <= 1e-4, name
    if network.config.classes:  # sweeps finish the logits from here
        kernel, bias = network.last_layer()
        assert relative(ours[network.last_hidden()] @ kernel + bias, want) <= 1e-4
    return ours


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_tiny_networks_equal_torch(name, tmp_path):
    build, hooks = TINY[name]
    model = make_folder(build, tmp_path)
    network = load_network(tmp_path)
    side = 35 if name.startswith("resnet") else 32 if name == "convnext" else 16
    taps = check_parity(network, model, hooks(model), side, batch=2)
    # The config tells the taps without running the network.
    assert network.config.units() == {layer: tap.shape[-1] for layer, tap in taps.items()}
    assert set(network.config.probed()) <= set(taps)
    labels = None if network.config.classes == 0 else ("joy", "calm", "awe")
    assert network.config.class_names == labels


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("vit", "resnet", "convnext"),
        # Tiny ones of these are compared above; of the published shape they are much like a ViT.
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("dinov2", "siglip")),
    ],
)
def test_published_shapes_equal_torch(name, tmp_path):
    """ViT-B/16, DINOv2-S/14 of 518 pixels on 224, ResNet-50, ConvNeXt-T, SigLIP-B/16."""
    build, hooks = BASE[name]
    model = make_folder(build, tmp_path, side=224)
    check_parity(load_network(tmp_path), model, hooks(model), 224, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vit", ["block0.hidden", "block1.attention", "pooled"]),
        pytest.param(
            "dinov2", ["block1.hidden", "block0.attention", "pooled"], marks=pytest.mark.long
        ),
        ("resnet", ["stage1.block1.conv0", "stage0.block0.conv1", "pooled"]),
        pytest.param("convnext", ["stage1.block0.hidden", "pooled"], marks=pytest.mark.long),
        pytest.param("clip projected", ["block1.hidden", "pooled"], marks=pytest.mark.long),
    ],
)
def test_edits_as_parameters_equal_edits_of_outputs_and_load_in_transformers(
    name, layers, tmp_path
):
    build, _ = TINY[name]
    model = make_folder(build, tmp_path / "own")
    network = load_network(tmp_path / "own")
    side = 32 if name in ("resnet", "convnext") else 16
    rng = np.random.default_rng(1)
    units = network.config.units()
    gains = {layer: rng.uniform(-1, 2, units[layer]).astype(np.float32) for layer in layers}
    images = rng.standard_normal((2, side, side, 3)).astype(np.float32)

    run = nnx.jit(lambda module, x, gains: module(x, gains=gains))
    before, _ = run(network, images, {})
    scaled, _ = run(network, images, gains)
    edited = with_gains(network, gains)
    logits, _ = run(edited, images, {})
    assert relative(logits, np.asarray(scaled)) <= 1e-5
    assert relative(logits, np.asarray(before)) > 1e-3
    np.testing.assert_array_equal(run(network, images, {})[0], before)  # left alone

    save_network(edited, tmp_path / "edited", like=tmp_path / "own")
    theirs = type(model).from_pretrained(tmp_path / "edited").eval()
    want, _ = torch_outputs(theirs, {}, images)
    assert relative(logits, want) <= 1e-4
    again, _ = run(load_network(tmp_path / "edited"), images, {})
    np.testing.assert_array_equal(again, logits)

    # A given output stands in for all before it, the images included.
    gain = {layers[0]: gains[layers[0]]}
    start = network.starts_at(layers[0])
    given = {start: run(network, images, {})[1][start]}
    finish = nnx.jit(lambda module, x, given, gain: module(x, given=given, gains=gain))
    cut, _ = finish(network, np.zeros_like(images), given, gain)
    assert relative(cut, np.asarray(run(network, images, gain)[0])) <= 1e-5
    with pytest.raises(ValueError, match="goes out on several ways"):
        with_gains(network, {next(iter(units)): np.ones(next(iter(units.values())))})


def change(folder, **values):
    import json

    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_array(folder):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "model.safetensors")
    del arrays["vit.layernorm.bias"]
    save_file(arrays, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change(f, architectures=["BertModel"]), "supported are ViTForImageClassifica"),
        (lambda f: change(f, architectures=None), "supported are ViTForImageClassification"),
        (lambda f: change(f, hidden_size=30), "has shape"),
        (lambda f: change(f, hidden_size=-24), "hidden_size|not a whole number"),
        (lambda f: change(f, num_hidden_layers=3), "parameters are missing"),
        (
            lambda f: change(f, num_hidden_layers=10**9),
            "more than the 1048576 of the largest networks",
        ),
        (lambda f: change(f, num_attention_heads=5), "does not divide into 5 heads"),
        (lambda f: change(f, image_size=32), "32×32"),
        (lambda f: change(f, num_channels=1), "num_channels is 1, not 3"),
        (lambda f: change(f, hidden_act="swish"), "'swish' is not supported"),
        (lambda f: change(f, id2label={"0": "a", "1": "b", "7": "c"}), "id2label"),
        (drop_array, "parameters are missing: vit.layernorm.bias"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(damage, message, vit_folder, tmp_path):
    import shutil

    folder = tmp_path / "network"
    shutil.copytree(vit_folder, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as refusal:
        load_network(folder)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 700


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "vit"
    make_folder(TINY["vit"][0], folder)
    return folder
