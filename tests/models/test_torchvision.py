"""torchvision's state dicts against torch: networks built here under torchvision's names."""

import jax
import numpy as np
import pytest
from flax import nnx
from reference import relative

from emojax.data.network_folder import load_network
from emojax.data.weights import save_network
from emojax.errors import InputError
from emojax.models.tapped import with_gains

torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
from safetensors.torch import save_file
from torch import nn


class Block(nn.Module):
    """torchvision's BasicBlock or Bottleneck."""

    def __init__(self, inputs, width, stride, *, is_bottleneck):
        super().__init__()
        inner = width // 4
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if is_bottleneck:
            shapes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, width, 1, 1)]
        self.convs = len(shapes)
        for number, (i, o, side, step) in enumerate(shapes, 1):
            conv = nn.Conv2d(i, o, side, step, padding=side // 2, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", nn.BatchNorm2d(o))
        self.downsample = None
        if inputs != width or stride != 1:
            conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x):
        inside = x
        for number in range(1, self.convs + 1):
            inside = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(inside))
            if number < self.convs:
                inside = inside.relu()
        return (inside + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """torchvision's ResNet of two stages."""

    def __init__(self, *, is_bottleneck):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        block = {"is_bottleneck": is_bottleneck}
        self.layer1 = nn.Sequential(Block(8, 16, 1, **block), Block(16, 16, 1, **block))
        self.layer2 = nn.Sequential(Block(16, 24, 2, **block))
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        stages = {"stem": x}
        for number, layer in enumerate((self.layer1, self.layer2)):
            x = stages[f"stage{number}"] = layer(x)
        return self.fc(x.mean((2, 3))), stages


class Vgg(nn.Module):
    """torchvision's VGG 16, narrow."""

    def __init__(self, *, batch_norm):
        super().__init__()
        layers, inputs = [], 3
        for width, depth in ((4, 2), (5, 2), (6, 3), (7, 3), (8, 3)):
            for _ in range(depth):
                norm = [nn.BatchNorm2d(width)] if batch_norm else []
                layers += [nn.Conv2d(inputs, width, 3, padding=1), *norm, nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        dense = [nn.Linear(8 * 49, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 10), nn.ReLU()]
        self.classifier = nn.Sequential(*dense, nn.Dropout(), nn.Linear(10, 5))

    def forward(self, x):
        outputs = {}
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                outputs[f"conv{len(outputs)}"] = x
        x = nn.functional.adaptive_avg_pool2d(x, 7).flatten(1)
        for number, layer in enumerate(self.classifier):
            x = layer(x)
            if number in (1, 4):
                outputs[f"dense{number // 3}"] = x
        return x, outputs


NETWORKS = {
    "basic": lambda: ResNet(is_bottleneck=False),
    "bottleneck": lambda: ResNet(is_bottleneck=True),
    "vgg16": lambda: Vgg(batch_norm=False),
    "vgg16_bn": lambda: Vgg(batch_norm=True),
}


@pytest.fixture(params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    model = NETWORKS[request.param]().eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


@pytest.mark.slow
def test_equal_to_torch_and_edited_and_saved(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "network.safetensors")
    network = load_network(tmp_path / "network.safetensors")
    images = np.random.default_rng(0).standard_normal((2, 48, 48, 3)).astype(np.float32)

    def theirs():
        with torch.no_grad():
            logits, taps = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        arrays = {}
        for name, tap in taps.items():
            array = tap.numpy()
            arrays[name] = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        return logits.numpy(), arrays

    want, want_taps = theirs()
    run = nnx.jit(lambda module, x, gains: module(x, gains=gains))
    got, taps = run(network, images, {})
    assert relative(got, want) <= 1e-4
    for name, tap in want_taps.items():
        assert relative(taps[name], tap) <= 1e-4, name
    kernel, bias = network.last_layer()
    assert relative(taps[network.last_hidden()] @ kernel + bias, want) <= 1e-4
    units = network.config.units()
    assert units == {name: tap.shape[-1] for name, tap in taps.items()}

    layers = [name for name in units if network.outgoing(name)]
    assert layers
    rng = np.random.default_rng(1)
    gains = {name: rng.uniform(0, 2, units[name]).astype(np.float32) for name in layers}
    edited = with_gains(network, gains)
    scaled, _ = run(network, images, gains)
    assert relative(run(edited, images, {})[0], np.asarray(scaled)) <= 1e-5
    save_network(edited, tmp_path / "edited.safetensors")
    from safetensors.torch import load_file

    model.load_state_dict(load_file(tmp_path / "edited.safetensors"), strict=True)
    assert relative(scaled, theirs()[0]) <= 1e-4


def test_preprocessing_is_torchvisions(model, tmp_path):
    """Short side to 256 by Pillow's bilinear, the central 224, ImageNet's mean and deviation."""
    from PIL import Image

    save_file(model.state_dict(), tmp_path / "network.safetensors")
    network = load_network(tmp_path / "network.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    resized = Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized)[16:240, 58:282] / 255
    want = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    got = jax.jit(network.preprocess)(image[None])[0]
    np.testing.assert_allclose(got, want, atol=3 * 2**-23 * 3)


def test_damaged_state_dicts_are_refused(tmp_path):
    path = tmp_path / "network.safetensors"
    arrays = NETWORKS["basic"]().state_dict()
    save_file({name: a for name, a in arrays.items() if name != "fc.weight"}, path)
    with pytest.raises(InputError, match=r"not a torchvision ResNet: 'fc.weight' is missing"):
        load_network(path)
    arrays = NETWORKS["vgg16"]().state_dict()
    save_file({name: a for name, a in arrays.items() if name != "features.2.weight"}, path)
    with pytest.raises(InputError, match="not a torchvision VGG: 12 convolutions"):
        load_network(path)
