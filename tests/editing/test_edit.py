"""Edited networks: several layers at once, gains from scores, from weights and from files."""

import jax
import numpy as np
import pytest

from emojax.editing import edit
from emojax.errors import InputError
from emojax.models import vgg
from emojax.ops import gains as ops


@pytest.mark.slow
def test_several_layers_at_once(tiny_vgg):
    gains = {"conv1a": np.full(4, 2.0), "lin2": np.full(20, 0.5)}
    both = edit.edit_layers(tiny_vgg, gains)
    step = edit.edit(edit.edit(tiny_vgg, "lin2", gains["lin2"]), "conv1a", gains["conv1a"])
    for name, array in vgg.to_torch_state_dict(both).items():
        np.testing.assert_array_equal(array, vgg.to_torch_state_dict(step)[name])
    with pytest.raises(InputError, match="no layer 'lin9'"):
        edit.edit_layers(tiny_vgg, {"lin9": np.ones(3)})


@pytest.mark.slow
def test_gains_from_scores_and_weights():
    scores = np.array([2.0, -1.0, 5.0, 2.0], np.float32)
    np.testing.assert_allclose(
        ops.continuous(scores, 3.0), 3 * (np.float64(scores) + 1) / 6, rtol=1e-6
    )
    np.testing.assert_array_equal(ops.continuous(np.full(4, 7.0), 3.0), np.ones(4))
    assert ops.top_fraction(scores, 0.5).tolist() == [
        True,
        False,
        True,
        False,
    ]  # the tie goes to the lower unit
    assert ops.top_fraction(scores, 1.0).all()
    np.testing.assert_array_equal(ops.from_mask([True, False], 4.0), [4, 0.25])
    kernel = np.random.default_rng(0).standard_normal((3, 3, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(
        ops.weight_sums(jax.numpy.asarray(kernel)), np.abs(kernel).sum((0, 1, 2)), rtol=1e-6
    )
    assert ops.above_mean(np.array([1.0, 2.0, 6.0])).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("name", "content", "factor", "message"),
    [
        ("none.txt", None, None, "cannot read the gains file"),
        (
            "a.csv",
            "1,2,x",
            None,
            "could not convert string to float: 'x'; write one number per unit",
        ),
        ("a.csv", "1,2", None, "holds 2 numbers, the layer has 3 units"),
        ("a.txt", "1\n2\nnan", None, "number 3 is nan; write a number from -1e"),
        ("a.txt", "1\n0\n2", 2.0, "number 3 is 2; write 0 or 1"),
    ],
)
def test_gains_files_are_refused_in_one_line(tmp_path, name, content, factor, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        edit.read_gains(tmp_path / name, 3, factor=factor)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_gains_files(tmp_path):
    (tmp_path / "a.csv").write_text("1, 2.5\n3\n")
    np.testing.assert_array_equal(edit.read_gains(tmp_path / "a.csv", 3), [1, 2.5, 3])
    np.save(tmp_path / "m.npy", np.array([True, False, True]))
    np.testing.assert_array_equal(edit.read_gains(tmp_path / "m.npy", 3, factor=2.0), [2, 0.5, 2])
    np.save(tmp_path / "objects.npy", np.array([object()]))
    with pytest.raises(InputError, match=r"objects\.npy"):
        edit.read_gains(tmp_path / "objects.npy", 3)
