"""Training views against a plain loop in float64, and what the draws may be."""

import jax
import numpy as np
import pytest

from emojax.ops import augment
from emojax.ops.image import resize_bilinear

# Points are float32 in -1…1: up to 48 / 2 · 2^-23 · a few pixels off, times a slope of at most one.
POSITION = 1e-5
# Called eagerly, each of their operations would be a program of its own.
view = jax.jit(augment.view, static_argnames=("canvas", "side"))
draw = jax.jit(augment.draw, static_argnames=("count", "size", "canvas", "side"))
random_boxes = jax.jit(augment.random_boxes, static_argnums=(1, 2, 3, 4))


def still(count, height=48, width=48, **changed):
    """A draw that changes nothing, but for what is given."""
    zeros = np.zeros(count, np.float32)
    whole = (np.full(count, side, np.float32) for side in (height, width))
    box = augment.Boxes(zeros, zeros, *whole, np.ones(count, bool))
    fields = {
        "box": box,
        "shift": np.zeros((count, 2), np.float32),
        "angle": zeros,
        "mirror": np.zeros(count, bool),
    }
    return augment.Draw(**({**fields, "corner": np.zeros((count, 2), np.float32)} | changed))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((6, 48, 48, 1), dtype=np.float32)


@pytest.mark.slow
def test_nothing_drawn_is_the_image_or_its_resize(images):
    np.testing.assert_allclose(view(images, still(6), 48, 48), images, atol=POSITION)
    got = view(images, still(6), 40, 40)
    resized = jax.jit(lambda x: resize_bilinear(x, (40, 40)))(images)
    np.testing.assert_allclose(got, resized, atol=POSITION)


def test_mirror_shift_and_crop_move_whole_pixels(images):
    moved = still(
        6,
        mirror=np.ones(6, bool),
        shift=np.tile(np.float32([3.0, -5.0]), (6, 1)),
        corner=np.full((6, 2), 4.0, np.float32),
    )
    got = view(images, moved, 48, 40)
    want = np.zeros_like(images)
    want[:, :43, 3:] = images[:, 5:, :45]  # shifted right by three and up by five
    np.testing.assert_allclose(got, want[:, :, ::-1][:, 4:44, 4:44], atol=POSITION)


def plain_view(image, drawn, canvas, side):
    """One view, a pixel at a time, in float64."""
    box, (height, width) = drawn.box, image.shape
    out = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            x, y = (
                column + drawn.corner[0] + 0.5 - canvas / 2,
                row + drawn.corner[1] + 0.5 - canvas / 2,
            )
            c, s = np.cos(drawn.angle), np.sin(drawn.angle)
            x, y = c * x - s * y, s * x + c * y
            inside = max(abs(x), abs(y)) <= canvas / 2
            x, y = (-x if drawn.mirror else x) - drawn.shift[0], y - drawn.shift[1]
            if not inside or max(abs(x), abs(y)) > canvas / 2:
                continue
            at_x = np.clip((x / canvas + 0.5) * box.width - 0.5, 0, box.width - 1) + box.left
            at_y = np.clip((y / canvas + 0.5) * box.height - 0.5, 0, box.height - 1) + box.top
            left, top = int(np.floor(at_x)), int(np.floor(at_y))
            for i, wy in ((top, 1 - (at_y - top)), (top + 1, at_y - top)):
                for j, wx in ((left, 1 - (at_x - left)), (left + 1, at_x - left)):
                    out[row, column] += wx * wy * image[min(i, height - 1), min(j, width - 1)]
    return out


@pytest.mark.slow
def test_random_views_equal_a_plain_loop(images):
    drawn = draw(jax.random.key(0), 6, (48, 48), 48, 40)
    got = np.asarray(view(images, drawn, 48, 40))
    for at in range(6):
        one = jax.tree.map(lambda x, at=at: np.float64(np.asarray(x)[at]), drawn)
        want = plain_view(np.float64(images[at, ..., 0]), one, 48, 40)
        differ = np.abs(got[at, ..., 0] - want) > 1e-4
        assert differ.mean() < 0.002, at  # a point on the canvas's edge may fall on either side


@pytest.mark.slow
def test_boxes_fit_and_have_the_shares_asked_for():
    boxes = random_boxes(jax.random.key(1), 4000, (40, 40), (0.02, 0.33), (0.3, 3.3))
    top, left, height, width, found = (np.asarray(x) for x in boxes)
    assert found.all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 40).all()
    assert (left + width <= 40).all()
    share = height * width / 1600
    assert 0.01 < share.min() < 0.03
    assert 0.30 < share.max() < 0.36
    assert np.mean(share) == pytest.approx(0.175, abs=0.01)
    assert np.mean(height > width) == pytest.approx(0.5, abs=0.03)
    assert 0 in top
    assert 0 in left


@pytest.mark.slow
def test_a_box_that_never_fits_is_the_whole_image():
    boxes = random_boxes(jax.random.key(0), 3, (48, 48), (1.5, 2.0), (0.9, 1.1))
    assert not np.asarray(boxes.found).any()
    np.testing.assert_array_equal(boxes.height, 48)
    np.testing.assert_array_equal(boxes.top, 0)


@pytest.mark.slow
def test_half_of_the_views_lose_a_box(images):
    views = np.ones((400, 40, 40, 1), np.float32)
    gone = 1 - np.asarray(jax.jit(augment.erase)(jax.random.key(2), views))[..., 0]
    touched = gone.any(axis=(1, 2))
    assert touched.mean() == pytest.approx(0.5, abs=0.08)
    for mask in gone[touched][:50]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns)  # one whole rectangle
        assert np.ptp(rows) + 1 == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "views"), [("affine", 1), ("one_crop", 1), ("ten_crop", 10)])
def test_kinds(images, kind, views):
    made = jax.jit(lambda key, x: augment.augment(kind, key, x, 40))
    one, again, other = (np.asarray(made(jax.random.key(seed), images)) for seed in (0, 0, 1))
    assert one.shape == (6 * views, 40, 40, 1)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert 0 <= one.min() <= one.max() <= 1


@pytest.mark.slow
def test_ten_crops_are_those_of_one_view(images):
    """Crops of an image share its geometry: where none was erased, they agree with its view."""
    drawn = draw(jax.random.split(jax.random.key(3))[0], 6, (48, 48), 48, 48)
    whole = np.asarray(view(images, drawn, 48, 48))
    ten_crop = jax.jit(lambda key, x: augment.augment("ten_crop", key, x, 40))
    crops = np.asarray(ten_crop(jax.random.key(3), images)).reshape(6, 10, 40, 40, 1)
    kept = crops[:, 0] != 0
    np.testing.assert_array_equal(crops[:, 0][kept], whole[:, :40, :40][kept])
    assert kept.mean() > 0.5
