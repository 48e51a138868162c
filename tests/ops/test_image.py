"""Resizes against Pillow and the golden files, affine maps against torch and float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from PIL import Image

from emojax.ops import image

NO_TORCH = "the oracle extra (torch) is not installed"


def pillow(images, size, kernel="bicubic"):
    resample = Image.Resampling[kernel.upper()]
    return np.stack([np.asarray(Image.fromarray(x).resize(size[::-1], resample)) for x in images])


SIZES = [
    ((48, 48), (224, 224)),
    ((224, 224), (224, 224)),
    ((300, 500), (37, 61)),  # more than 4 taps a pixel
    ((2000, 30), (2, 60)),  # three digits of fixed point, height first
    ((50, 50), (49, 51)),
    ((57, 22), (10, 4)),
    ((100, 50), (39, 20)),  # the last height that goes first
    ((100, 50), (41, 20)),
    ((40, 60), (80, 30)),
    ((1, 1), (5, 5)),
]


# The bicubic kernel is everybody's; the others differ from it in their weights alone.
CASES = [(*sizes, "bicubic") for sizes in SIZES]
CASES += [(*sizes, kernel) for sizes in SIZES[::3] for kernel in ("bilinear", "lanczos")]
FURTHER = [(*sizes, kernel) for sizes in SIZES for kernel in ("bilinear", "lanczos")]
FURTHER = [
    pytest.param(*case, marks=pytest.mark.exhaustive) for case in FURTHER if case not in CASES
]


@pytest.mark.parametrize(("source", "target", "kernel"), CASES + FURTHER)
def test_resize_equals_pillow_on_every_pixel(source, target, kernel):
    images = np.random.default_rng(0).integers(0, 256, (2, *source), dtype=np.uint8)
    got = jax.jit(lambda x: image.resize_pil(x, target, kernel))(images)
    np.testing.assert_array_equal(got, pillow(images, target, kernel))


def test_bicubic_colour_and_extremes():
    images = np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (2, 31, 31, 3))
    got = jax.jit(lambda x: image.resize_bicubic_pil(x, (64, 64)))(jnp.asarray(images))
    np.testing.assert_array_equal(got, pillow(images, (64, 64)))


def test_bicubic_refuses_floats():
    with pytest.raises(TypeError, match="uint8"):
        image.resize_bicubic_pil(jnp.ones((1, 4, 4)), (2, 2))


def test_gray_equals_pillow():
    images = np.random.default_rng(2).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    want = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in images])
    np.testing.assert_array_equal(jax.jit(image.to_gray)(images)[..., 0], want)


def test_golden_preprocessing(golden):
    data = np.load(golden / "preprocess.npz")
    images = data["images_uint8"][..., None]
    # torch takes positions between 32 and 48 in float32, half a unit in the last place (2⁻¹⁹) off;
    # a pixel further is at most 1 brighter. That on two axes, and a few roundings of the sums.
    positions = 2 * 2**-19 + 8 * 2**-24
    for antialias in (True, False):
        resize = jax.jit(
            lambda x, antialias=antialias: image.resize_bilinear(
                image.to_unit(x), (40, 40), antialias=antialias
            )
        )
        got = resize(images)[..., 0]
        np.testing.assert_allclose(
            got, data[f"bilinear40_antialias_{antialias}"], rtol=0, atol=positions
        )


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    ("source", "target"), [((48, 48), (40, 40)), ((97, 31), (12, 40)), ((7, 300), (16, 16))]
)
def test_bilinear_equals_torch(source, target, antialias):
    """torchvision's `Resize` of tensors is this function of torch."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    images = np.random.default_rng(4).random((2, *source, 1), np.float32)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(images.transpose(0, 3, 1, 2)), target, mode="bilinear", antialias=antialias
    ).numpy()
    resize = jax.jit(lambda x: image.resize_bilinear(x, target, antialias=antialias)[..., 0])
    got = resize(images)
    np.testing.assert_allclose(got, want[:, 0], atol=resize_error(source, target), rtol=0)


@pytest.mark.parametrize(("source", "target"), [((48, 48), (40, 40)), ((97, 31), (12, 40))])
def test_antialiased_bilinear_equals_pillow_on_floats(source, target):
    """Pillow resizes floats with antialiasing, always; on bytes it rounds between its passes."""
    images = np.random.default_rng(5).random((2, *source), np.float32)
    resized = [Image.fromarray(x).resize(target[::-1], Image.Resampling.BILINEAR) for x in images]
    resize = jax.jit(lambda x: image.resize_bilinear(x, target, antialias=True)[..., 0])
    got = resize(images[..., None])
    np.testing.assert_allclose(got, np.stack(resized), atol=resize_error(source, target), rtol=0)


def resize_error(source, target):
    """How far two float32 resizes of values in [0, 1] can be apart.

    A pass sums the n pixels under a tent of weights that add up to 1: n + 1 roundings. The weights
    of torch and Pillow follow from a centre in float32, which is off by up to eps times the
    source's length; a shift of the tent by that much moves weights of twice as much in all.
    """
    taps = max(2 * max(s / t, 1) + 1 for s, t in zip(source, target, strict=True))
    one_pass = (taps + 1 + 2 * max(source)) * np.finfo(np.float32).eps
    return 2 * 2 * one_pass  # two passes, two implementations


def test_ten_crop_order():
    x = np.arange(48 * 48, dtype=np.float32).reshape(1, 48, 48, 1)
    crops = np.asarray(jax.jit(lambda x: image.ten_crop(x, 40))(x))[0, ..., 0]
    full = x[0, ..., 0]
    corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    for got, (top, left) in zip(crops[:5], corners, strict=True):
        np.testing.assert_array_equal(got, full[top : top + 40, left : left + 40])
    for got, (top, left) in zip(crops[5:], corners, strict=True):
        np.testing.assert_array_equal(got, full[:, ::-1][top : top + 40, left : left + 40])


def points(seed, shape):
    """Points well outside the image, on its edges and corners, on pixels' centres, far away."""
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
    grid = np.full((1, 2, 2, 2), np.inf, np.float32)
    grid[0, 0] = -np.inf
    got = jax.jit(image.grid_sample)(np.ones((1, 4, 4, 1), np.float32), grid)
    np.testing.assert_array_equal(got, np.zeros((1, 2, 2, 1)))


def test_affine_grid_equals_float64_numpy():
    theta = np.random.default_rng(3).standard_normal((4, 2, 3)).astype(np.float32)
    # Two products and two sums, none larger than Σ|θ|, and the rounded positions, twice.
    bound = 6 * 2**-24 * np.abs(theta).sum(axis=2).max()
    got = jax.jit(lambda theta: image.affine_grid(theta, (6, 9)))(theta)
    np.testing.assert_allclose(got, reference.affine_grid(theta, (6, 9)), rtol=0, atol=bound)


@jax.jit
def warped(images, theta):
    return image.grid_sample(images, image.affine_grid(theta, images.shape[1:3]))


def moved(images, *rows):
    theta = np.broadcast_to(np.float32(rows), (len(images), 2, 3))
    return np.asarray(warped(images, theta))


def test_transforms_whose_result_is_known():
    images = np.random.default_rng(4).random((2, 48, 32, 3), dtype=np.float32)
    np.testing.assert_allclose(moved(images, [1, 0, 0], [0, 1, 0]), images, atol=1e-5)
    np.testing.assert_allclose(moved(images, [-1, 0, 0], [0, 1, 0]), images[:, :, ::-1], atol=1e-5)
    shifted = np.zeros_like(images)
    shifted[:, :-5, 3:] = images[:, 5:, :-3]  # 3 pixels to the right, 5 up; what comes in is zero
    np.testing.assert_allclose(
        moved(images, [1, 0, -3 * 2 / 32], [0, 1, 5 * 2 / 48]), shifted, atol=1e-5
    )


@pytest.mark.long
@pytest.mark.parametrize("size", [(7, 11), (12, 5)])
def test_grid_sample_and_affine_grid_equal_torchs(size):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    functional = torch.nn.functional
    rng = np.random.default_rng(5)
    images = rng.standard_normal((4, 8, 10, 3)).astype(np.float32)
    theta = rng.standard_normal((4, 2, 3)).astype(np.float32)
    weight = rng.standard_normal((4, *size, 3)).astype(np.float32)
    their_images = reference.channels_first(torch, images).requires_grad_()
    their_theta = torch.from_numpy(theta).requires_grad_()
    grid = functional.affine_grid(their_theta, (4, 3, *size), align_corners=False)
    sampled = functional.grid_sample(their_images, grid, align_corners=False)
    (sampled * reference.channels_first(torch, weight)).sum().backward()
    assert (grid.detach().abs() > 1).any(-1).float().mean() > 0.2  # many points are outside

    @jax.jit
    def forward(images, theta):
        positions = image.affine_grid(theta, size)
        return positions, image.grid_sample(images, positions)

    positions, ours = forward(images, theta)
    np.testing.assert_allclose(positions, grid.detach().numpy(), atol=1e-6)
    assert reference.relative(ours, reference.channels_last(sampled)) <= 1e-5

    def total(images, theta):
        return (image.grid_sample(images, image.affine_grid(theta, size)) * weight).sum()

    of_images, of_theta = jax.jit(jax.grad(total, (0, 1)))(images, theta)
    assert reference.relative(of_images, reference.channels_last(their_images.grad)) <= 1e-5
    assert reference.relative(of_theta, their_theta.grad.numpy()) <= 1e-5
    extreme = points(6, (4, *size))
    want = functional.grid_sample(their_images, torch.from_numpy(extreme), align_corners=False)
    assert (
        reference.relative(image.grid_sample(images, extreme), reference.channels_last(want))
        <= 1e-5
    )


@pytest.mark.long
@pytest.mark.parametrize("sides", [(6, 8), (5, 7)])
def test_halving_equals_torchs_max_pool(sides):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    images = np.random.default_rng(8).standard_normal((3, *sides, 4)).astype(np.float32)
    theirs = reference.channels_first(torch, images).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(theirs, 2)
    (pooled**2).sum().backward()
    ours = image.halve_by_maximum(jnp.asarray(images))
    np.testing.assert_array_equal(ours, reference.channels_last(pooled))
    gradient = jax.grad(lambda x: (image.halve_by_maximum(x) ** 2).sum())(jnp.asarray(images))
    np.testing.assert_array_equal(gradient, reference.channels_last(theirs.grad))
