"""Deep-Emotion and its spatial transformer, against torch where it is installed and against float64
numpy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from safetensors.numpy import save_file

import emojax
from emojax.data import weights
from emojax.errors import InputError
from emojax.models import deep_emotion
from emojax.models.deep_emotion import DeepEmotion, DeepEmotionConfig
from emojax.ops import image
from emojax.probing.network import as_network

# Rotation, shear, zoom out and a shift: a good part of what the CNN sees lies outside the image.
TILTED = np.float32([1.1, 0.35, 0.2, -0.3, 0.9, -0.25])
NO_TORCH = "the oracle extra (torch) is not installed"


def relative(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


@nnx.jit
def run(model, images):
    return model(images)


def random_arrays(channels=1, classes=7):
    """A state dict without trivial values: BatchNorm statistics, biases, and a transform that
    depends on the image.
    """
    rng = np.random.default_rng(11)
    shapes = {"localization.0": (8, channels, 7, 7), "localization.3": (10, 8, 5, 5)}
    shapes |= {"fc_loc.0": (32, 640), "fc_loc.2": (6, 32), "conv1": (10, channels, 3, 3)}
    shapes |= dict.fromkeys(("conv2", "conv3", "conv4"), (10, 10, 3, 3)) | {
        "fc1": (50, 810),
        "fc2": (classes, 50),
    }
    arrays = {}
    for name, shape in shapes.items():
        arrays[f"{name}.weight"] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        arrays[f"{name}.bias"] = 0.1 * rng.standard_normal(shape[0])
    arrays["fc_loc.2.weight"] *= 0.2
    arrays["fc_loc.2.bias"] = TILTED
    for name in ("norm.weight", "norm.running_var"):
        arrays[name] = rng.uniform(0.5, 1.5, 10)
    for name in ("norm.bias", "norm.running_mean"):
        arrays[name] = 0.5 * rng.standard_normal(10)
    arrays = {name: np.float32(array) for name, array in arrays.items()}
    return arrays | {"norm.num_batches_tracked": np.zeros((), np.int64)}


@pytest.fixture(scope="module", params=[1, 3], ids=["gray", "rgb"])
def arrays(request):
    return random_arrays(channels=request.param)


@pytest.fixture(scope="module")
def batch(arrays):
    """Images as smooth as faces, in the network's range: [6, 48, 48, C]."""
    coarse = np.random.default_rng(0).uniform(-1, 1, (6, 12, 12, arrays["conv1.weight"].shape[1]))
    return np.asarray(image.resize_bilinear(jnp.asarray(coarse, jnp.float32), (48, 48)))


def in_float64(model):
    """The same network with its parameters in float64; for use under `jax.enable_x64`."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state))


def oracle(arrays):
    """The architecture in torch, as the paper's PyTorch version lays it out; dropout left out."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    nn, functional = torch.nn, torch.nn.functional
    channels, classes = arrays["conv1.weight"].shape[1], arrays["fc2.weight"].shape[0]

    class Torch(nn.Module):
        def __init__(self):
            super().__init__()
            for number, inputs in enumerate((channels, 10, 10, 10), 1):
                setattr(self, f"conv{number}", nn.Conv2d(inputs, 10, 3))
            self.norm = nn.BatchNorm2d(10)
            self.fc1, self.fc2 = nn.Linear(810, 50), nn.Linear(50, classes)
            pool = nn.MaxPool2d(2)
            self.localization = nn.Sequential(
                nn.Conv2d(channels, 8, 7), pool, nn.ReLU(), nn.Conv2d(8, 10, 5), pool, nn.ReLU()
            )
            self.fc_loc = nn.Sequential(nn.Linear(640, 32), nn.ReLU(), nn.Linear(32, 6))

        def forward(self, x):
            theta = self.fc_loc(self.localization(x).flatten(1)).view(-1, 2, 3)
            x = functional.grid_sample(
                x, functional.affine_grid(theta, x.shape, align_corners=False), align_corners=False
            )
            taps = {"conv1": self.conv1(x)}
            taps["conv2"] = self.conv2(taps["conv1"].relu())
            taps["conv3"] = self.conv3(functional.max_pool2d(taps["conv2"], 2).relu())
            taps["conv4"] = self.conv4(taps["conv3"].relu())
            x = functional.max_pool2d(self.norm(taps["conv4"]), 2).relu().flatten(1)
            taps["fc1"] = self.fc1(x)
            taps["fc2"] = self.fc2(taps["fc1"].relu())
            return theta, taps

    model = Torch()
    model.load_state_dict(
        {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, strict=True
    )
    return torch, model.eval()


def channels_first(torch, images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def channels_last(tensor):
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def test_equals_torch(arrays, batch):
    torch, theirs = oracle(arrays)
    with torch.no_grad():
        theta, want = theirs(channels_first(torch, batch))
    assert np.ptp(theta.numpy(), axis=0).min() > 0.02  # each image has its own transform
    model = deep_emotion.from_torch_state_dict(arrays)
    assert relative(model.transform(jnp.asarray(batch)), theta.numpy().reshape(-1, 2, 3)) <= 1e-5
    logits, taps = run(model, jnp.asarray(batch))
    assert tuple(want) == deep_emotion.LAYERS
    for layer in deep_emotion.LAYERS:
        assert relative(taps[layer], channels_last(want[layer])) <= 1e-5, layer
    np.testing.assert_array_equal(taps["fc2"], logits)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients_equal_torchs_in_float64(arrays, batch, mode):
    """In float32 a pixel on the edge of a ReLU or a pooling window may fall on either side, in
    torch as here.
    """
    torch, theirs = oracle(arrays)
    theirs, labels = theirs.double().train(mode == "train"), np.arange(len(batch)) % 7
    want_taps = theirs(channels_first(torch, batch.astype(np.float64)))[1]
    torch.nn.functional.cross_entropy(want_taps["fc2"], torch.from_numpy(labels)).backward()
    want = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}

    def loss(model, images):
        logits, taps = model(images)
        return -(jax.nn.log_softmax(logits) * np.eye(7)[labels]).sum(axis=1).mean(), taps

    with jax.enable_x64(True):
        model = in_float64(deep_emotion.from_torch_state_dict(arrays))
        model.train() if mode == "train" else model.eval()
        gradients, taps = nnx.jit(nnx.grad(loss, has_aux=True))(
            model, jnp.asarray(batch, jnp.float64)
        )
        nnx.update(
            model, gradients
        )  # where the weights were, so that the gradients take their names and axes
        got = deep_emotion.to_torch_state_dict(model)
    for layer, tap in want_taps.items():
        assert relative(taps[layer], channels_last(tap)) <= 1e-12, layer
    for name, gradient in want.items():
        if (name, mode) == (
            "conv4.bias",
            "train",
        ):  # the norm takes any bias away again: its gradient is rounding
            assert max(np.abs(gradient).max(), np.abs(got[name]).max()) <= 1e-12
        else:
            assert relative(got[name], gradient) <= 1e-11, name


def points(seed, shape):
    """Points that reach well outside the image, on its edges and its corners, on pixel centres, and
    very far away.
    """
    grid = np.random.default_rng(seed).uniform(-1.6, 1.6, (*shape, 2)).astype(np.float32)
    grid[:, 0, :4] = [[-1, -1], [1, 1], [-1, 1], [1, -1]]
    grid[:, 1, :4] = [[3e9, 0], [0, -3e9], [1e30, 1e30], [0, 0]]
    return grid


@pytest.mark.parametrize("size", [(7, 11), (1, 5)])
def test_grid_sample_equals_float64_numpy(size):
    images = np.random.default_rng(1).standard_normal((3, *size, 2)).astype(np.float32)
    grid = points(2, (3, 6, 9))
    got = jax.jit(image.grid_sample)(images, grid)
    np.testing.assert_allclose(got, reference.grid_sample(images, grid), atol=2e-5)
    assert (np.asarray(got) == 0).all(-1).any()


def test_infinity_is_outside():
    grid = jnp.full((1, 2, 2, 2), jnp.inf).at[0, 0].set(-jnp.inf)
    np.testing.assert_array_equal(
        image.grid_sample(jnp.ones((1, 4, 4, 1)), grid), np.zeros((1, 2, 2, 1))
    )


def test_affine_grid_equals_float64_numpy():
    theta = np.random.default_rng(3).standard_normal((4, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(
        image.affine_grid(theta, (6, 9)), reference.affine_grid(theta, (6, 9)), atol=1e-6
    )


def moved(images, *rows):
    theta = jnp.broadcast_to(jnp.asarray(rows, jnp.float32), (len(images), 2, 3))
    return np.asarray(
        image.grid_sample(jnp.asarray(images), image.affine_grid(theta, images.shape[1:3]))
    )


def test_transforms_whose_result_is_known():
    images = np.random.default_rng(4).random((2, 48, 32, 3), dtype=np.float32)
    np.testing.assert_allclose(moved(images, [1, 0, 0], [0, 1, 0]), images, atol=1e-5)
    np.testing.assert_allclose(moved(images, [-1, 0, 0], [0, 1, 0]), images[:, :, ::-1], atol=1e-5)
    shifted = np.zeros_like(images)
    shifted[:, :-5, 3:] = images[:, 5:, :-3]  # 3 pixels to the right, 5 up; what comes in is zero
    np.testing.assert_allclose(
        moved(images, [1, 0, -3 * 2 / 32], [0, 1, 5 * 2 / 48]), shifted, atol=1e-5
    )


@pytest.mark.parametrize("size", [(7, 11), (12, 5)])
def test_grid_sample_and_affine_grid_equal_torchs(size):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    functional = torch.nn.functional
    rng = np.random.default_rng(5)
    images = rng.standard_normal((4, 8, 10, 3)).astype(np.float32)
    theta = rng.standard_normal((4, 2, 3)).astype(np.float32)
    weight = rng.standard_normal((4, *size, 3)).astype(np.float32)
    their_images = channels_first(torch, images).requires_grad_()
    their_theta = torch.from_numpy(theta).requires_grad_()
    grid = functional.affine_grid(their_theta, (4, 3, *size), align_corners=False)
    sampled = functional.grid_sample(their_images, grid, align_corners=False)
    (sampled * channels_first(torch, weight)).sum().backward()
    assert (grid.detach().abs() > 1).any(-1).float().mean() > 0.2  # many points are outside

    np.testing.assert_allclose(image.affine_grid(theta, size), grid.detach().numpy(), atol=1e-6)
    ours = image.grid_sample(images, image.affine_grid(theta, size))
    assert relative(ours, channels_last(sampled)) <= 1e-5

    def total(images, theta):
        return (image.grid_sample(images, image.affine_grid(theta, size)) * weight).sum()

    of_images, of_theta = jax.grad(total, (0, 1))(images, theta)
    assert relative(of_images, channels_last(their_images.grad)) <= 1e-5
    assert relative(of_theta, their_theta.grad.numpy()) <= 1e-5
    extreme = points(6, (4, *size))
    want = functional.grid_sample(their_images, torch.from_numpy(extreme), align_corners=False)
    assert relative(image.grid_sample(images, extreme), channels_last(want)) <= 1e-5


def test_a_new_network_looks_at_the_image_as_it_is():
    model = nnx.jit(lambda: DeepEmotion(DeepEmotionConfig(), rngs=nnx.Rngs(0)))()
    model.eval()
    images = np.random.default_rng(9).uniform(-1, 1, (3, 48, 48, 1)).astype(np.float32)
    np.testing.assert_array_equal(model.transform(images), np.tile(np.eye(2, 3), (3, 1, 1)))
    np.testing.assert_allclose(run(model, images)[1]["conv1"], model.conv1(images), atol=1e-5)
    gradient = nnx.jit(nnx.grad(lambda m, x: m(x)[0].var()))(model, images)
    assert (
        np.abs(gradient["fc_loc"]["layers"][2]["kernel"][...]).max() > 0
    )  # the transformer can learn from here
    for name, array in deep_emotion.to_torch_state_dict(
        model
    ).items():  # PyTorch's range of starting weights
        if array.ndim > 1 and name != "fc_loc.2.weight":
            bound = array[0].size ** -0.5
            assert 0.9 * bound < np.abs(array).max() <= bound, name


def test_dropout_only_while_training(arrays, batch):
    model = deep_emotion.from_torch_state_dict(arrays)
    drop = nnx.jit(lambda m, x, seed: m(x, rngs=nnx.Rngs(dropout=jax.random.key(seed)))[1])
    np.testing.assert_array_equal(drop(model, batch, 1)["fc2"], run(model, batch)[0])
    model.train()
    plain, one, two = run(model, batch)[1], drop(model, batch, 1), drop(model, batch, 2)
    np.testing.assert_array_equal(one["conv4"], plain["conv4"])
    assert relative(one["fc1"], plain["fc1"]) > 0.1
    assert relative(one["fc1"], two["fc1"]) > 0.1


def test_training_moves_the_statistics_and_evaluating_does_not(arrays, batch):
    model, before = deep_emotion.from_torch_state_dict(arrays), arrays["norm.running_mean"]
    run(model, batch)
    np.testing.assert_array_equal(model.norm.mean[...], before)
    model.train()
    raw = run(model, batch)[1]["conv4"]
    np.testing.assert_allclose(
        model.norm.mean[...], 0.9 * before + 0.1 * raw.mean((0, 1, 2)), atol=1e-6
    )


def abstract(**settings):
    """A network without values, for what the settings alone decide."""
    return nnx.eval_shape(lambda: DeepEmotion(DeepEmotionConfig(**settings), rngs=nnx.Rngs(0)))


def test_preprocess():
    faces = np.random.default_rng(7).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    gray, colour = abstract(channels=1), abstract(channels=3)
    np.testing.assert_allclose(colour.preprocess(faces), faces / 127.5 - 1, atol=1e-6)
    luma = np.asarray(image.to_gray(faces))
    np.testing.assert_allclose(gray.preprocess(faces), luma / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(
        colour.preprocess(luma), np.repeat(gray.preprocess(luma), 3, axis=-1)
    )


def test_preprocess_resizes_as_torch_does():
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    faces = np.random.default_rng(8).integers(0, 256, (2, 96, 60, 3), dtype=np.uint8)
    unit = channels_first(torch, faces.astype(np.float32) / 255)
    want = channels_last(torch.nn.functional.interpolate(unit, (48, 48), mode="bilinear"))
    np.testing.assert_allclose(
        abstract(channels=3).preprocess(faces), (want - 0.5) / 0.5, atol=1e-5
    )


def test_state_dict_round_trip(arrays):
    again = deep_emotion.to_torch_state_dict(deep_emotion.from_torch_state_dict(arrays))
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


def test_settings_are_read_off_the_shapes():
    model = deep_emotion.from_torch_state_dict(random_arrays(channels=3, classes=5))
    assert model.config == DeepEmotionConfig(channels=3, classes=5)
    assert model.config.units() == {
        "conv1": 10,
        "conv2": 10,
        "conv3": 10,
        "conv4": 10,
        "fc1": 50,
        "fc2": 5,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("fc_loc.2.bias"), r"1 parameters are missing: fc_loc\.2\.bias"),
        (
            lambda a: a.update({"localization.1.weight": np.ones(3)}),
            r"1 names are not of this network: localization\.1\.weight",
        ),
        (
            lambda a: a.update({"conv2.num_batches_tracked": np.ones(())}),
            "1 names are not of this network",
        ),
        (
            lambda a: a.update({"fc1.weight": np.ones((50, 640))}),
            r"fc1\.weight has shape \(50, 640\), not \(50, 810\)",
        ),
        (
            lambda a: a.update({"norm.running_var": np.full(10, np.nan)}),
            "norm.running_var holds values that are not finite",
        ),
        (lambda a: a.pop("conv1.weight"), r"not a Deep-Emotion state dict: 'conv1\.weight'"),
        (lambda a: a.update({"conv1.weight": np.ones(())}), "not a Deep-Emotion state dict"),
        (
            lambda a: a.update({"conv1.weight": np.ones((10, 2, 3, 3))}),
            r"1 channel \(gray\) or 3 \(RGB\), not 2",
        ),
    ],
)
def test_refuses_other_weights(change, message):
    arrays = random_arrays()
    change(arrays)
    with pytest.raises(ValueError, match=message):
        deep_emotion.from_torch_state_dict(arrays)


def test_weight_files(arrays, tmp_path):
    path = tmp_path / "deep_emotion.safetensors"
    emojax.save_deep_emotion(deep_emotion.from_torch_state_dict(arrays), path)
    again = deep_emotion.to_torch_state_dict(emojax.load_deep_emotion(path))
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    with pytest.raises(
        InputError, match=r"deep_emotion\.safetensors: this is not a VGGNet state dict"
    ):
        weights.load_vgg(path)
    save_file({"a": np.ones(2, np.float32)}, path)
    with pytest.raises(
        InputError, match=r"deep_emotion\.safetensors: this is not a Deep-Emotion state dict"
    ):
        weights.load_deep_emotion(path)
    with pytest.raises(InputError, match="no weights file"):
        weights.load_deep_emotion(tmp_path / "none.pt")


def test_file_that_torch_saved(arrays, batch, tmp_path):
    torch, theirs = oracle(arrays)
    torch.save(theirs.state_dict(), tmp_path / "deep_emotion-20-128-0.001.pt")
    model = emojax.load_deep_emotion(tmp_path / "deep_emotion-20-128-0.001.pt")
    with torch.no_grad():
        want = theirs(channels_first(torch, batch))[1]["fc2"].numpy()
    assert relative(run(model, batch)[0], want) <= 1e-5


def test_network_for_the_probe(arrays):
    model = deep_emotion.from_torch_state_dict(arrays)
    network = as_network(model)
    shapes = network.tap_shapes((96, 64, 3))
    assert tuple(shapes) == deep_emotion.LAYERS
    assert {name: shape[-1] for name, shape in shapes.items()} == model.config.units()
    assert (shapes["conv2"], shapes["conv4"], shapes["fc1"]) == (
        (1, 44, 44, 10),
        (1, 18, 18, 10),
        (1, 50),
    )
    assert network.key == as_network(deep_emotion.from_torch_state_dict(arrays)).key


def test_probe(tiny_clip, blobs):
    model = deep_emotion.from_torch_state_dict(random_arrays())
    images = blobs.images[:24]
    record = emojax.probe(
        model, images, tiny_clip, layers=["conv4", "fc2"], top_k=5, batch=16, tile=8
    )
    taps = run(model, model.preprocess(images))[1]
    pooled = np.concatenate(
        [np.asarray(taps["conv4"]).mean((1, 2)), np.asarray(taps["fc2"])], axis=1
    )
    np.testing.assert_allclose(record.top_k(5).values, -np.sort(-pooled, axis=0)[:5].T, atol=1e-5)
