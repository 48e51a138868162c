"""Activation maps, against the network's own outputs averaged cell by cell in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

import emojax
from emojax.errors import InputError
from emojax.models.preprocess import Preprocess
from emojax.probing import maps
from emojax.probing.network import WHOLE, as_network


def in_cells(output: np.ndarray, side: int) -> np.ndarray:
    """[H, W] averaged over cells [h, w], each place first made of h × w equal ones."""
    height, width = output.shape
    rows, columns = min(height, side), min(width, side)
    fine = np.float64(output).repeat(rows, axis=0).repeat(columns, axis=1)
    return fine.reshape(rows, height, columns, width).mean(axis=(1, 3))


def coded(unit_maps: np.ndarray) -> np.ndarray:
    low, high = unit_maps.min(), unit_maps.max()
    return (unit_maps - low) / (high - low) * 255


def split(found: maps.Maps, record) -> list[np.ndarray]:
    """The values of each unit [S, h, w]."""
    shapes = [(found.images, *found.sides[record.segment_ids[unit]]) for unit in found.units]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    assert ends[-1] == len(found.values)
    parts = np.split(found.values, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


@pytest.mark.long
def test_maps_of_convolutions(tiny_vgg, blobs, found):
    """Of the first units in the order whose layers have places, dense ones left out."""
    order = np.random.default_rng(0).permutation(len(found.segment_ids))
    done = []
    made = maps.activation_maps(
        as_network(tiny_vgg), blobs, found, order, units=9, progress=lambda *now: done.append(now)
    )
    layers = list(found.layers)
    assert [tuple(side) for side in made.sides[-2:]] == [(0, 0), (0, 0)]  # lin1 and lin2
    assert made.sides.max() == maps.SIDE
    dense = found.segment_ids >= layers.index("lin1")
    np.testing.assert_array_equal(made.units, np.sort(order[~dense[order]][:9]))
    assert made.part == WHOLE
    top = found.top_k(maps.IMAGES)
    assert done[-1] == (len(np.unique(top.indices[made.units])),) * 2
    starts = dict(zip(layers, np.cumsum([0, *found.layers.values()]), strict=False))
    for unit, got in zip(made.units, split(made, found), strict=True):
        layer = layers[found.segment_ids[unit]]
        pixels = np.asarray(blobs.images)[top.indices[unit]]
        own = np.asarray(tiny_vgg(tiny_vgg.preprocess(pixels))[1][layer])[..., unit - starts[layer]]
        # Cells of equal size have the mean that the probe kept.
        np.testing.assert_allclose(own.mean(axis=(1, 2)), top.values[unit], rtol=1e-3, atol=1e-5)
        expected = coded(np.stack([in_cells(one, maps.SIDE) for one in own]))
        np.testing.assert_allclose(got, expected, atol=0.51)


def token_network(images):
    """Two leading tokens and 4 × 4 patches of 12 × 12 pixels, and layers without places."""
    unit = images[..., 0].astype("float32")
    patches = unit.reshape(-1, 4, 12, 4, 12).mean(axis=(2, 4)).reshape(-1, 16, 1)
    both = jnp.concatenate([-patches[:, :2] - 7, patches], axis=1)
    return both[:, 0], {"tokens": both, "odd": patches[:, :15], "dense": patches[:, :, 0]}


@pytest.mark.slow
def test_maps_of_tokens(blobs, tiny_clip):
    """Of the patches, row by row; leading tokens and layers that are no square have none."""
    images = blobs.first(24)
    record = emojax.probe(token_network, images, tiny_clip, tokens="max", preprocess=lambda x: x)
    network = as_network(token_network, preprocess=lambda x: x)
    made = maps.activation_maps(network, images, record, np.arange(len(record.segment_ids)))
    assert made.sides.tolist() == [[4, 4], [0, 0], [0, 0]]
    assert made.units.tolist() == [0]
    pixels = np.float64(images.images[:])[record.top_k(maps.IMAGES).indices[0], ..., 0]
    expected = coded(pixels.reshape(-1, 4, 12, 4, 12).mean(axis=(2, 4)))
    np.testing.assert_allclose(split(made, record)[0], expected, atol=0.51)


@pytest.mark.slow
def test_another_network_is_refused(blobs, tiny_clip):
    images = blobs.first(12)

    def bright(x):
        return x.mean(axis=(1, 2)), {"conv": x}

    def dark(x):
        return x.mean(axis=(1, 2)), {"conv": 1 - x}

    def wide(x):
        return x.mean(axis=(1, 2)), {"conv": x.repeat(2, axis=-1)}

    record = emojax.probe(bright, images, tiny_clip, top_k=5)
    for other in (dark, wide):
        with pytest.raises(InputError, match=f"{other.__name__} does not give the record's"):
            maps.activation_maps(as_network(other), images, record, np.arange(1))
    assert maps.activation_maps(as_network(bright), images, record, np.arange(1)).images == 5


def test_what_a_crop_leaves(tiny_vgg):
    """A short side of 64 and a crop of 56 of images 48 × 72: the network sees 56 of 64 by 96."""
    normal = (0.5,) * 3
    part = Preprocess(64, (56, 56), normal, normal).part(48, 72)
    np.testing.assert_allclose(part, (4 / 64, 20 / 96, 56 / 64, 56 / 96))
    assert Preprocess((20, 20), None, normal, normal).part(48, 72) == WHOLE
    border = Preprocess(None, (60, 60), normal, normal).part(48, 48)
    np.testing.assert_allclose(border, (-1 / 8, -1 / 8, 5 / 4, 5 / 4))
    assert as_network(tiny_vgg).part(48, 48) == WHOLE
