"""What a run folder keeps of every unit."""

import numpy as np
import pytest
from hostile_run import columns, copy_of

from emojax.errors import InputError
from emojax.report import units


def test_units_file(hostile):
    folder, images = hostile
    kept, table = units.load(folder), columns(folder / "dissection.csv")
    assert kept.concepts[kept.best[:, 0]].tolist() == [row["concept"] for row in table]
    np.testing.assert_allclose(
        kept.best_scores[:, 0], [float(row["similarity"]) for row in table], rtol=1e-5
    )
    margins = kept.best_scores[:, 0] - kept.best_scores[:, 1]
    np.testing.assert_allclose(margins, [float(row["margin"]) for row in table], atol=1e-4)
    np.testing.assert_array_equal(kept.mix.sum(axis=1), 100)
    assert kept.outgoing.shape == (20, 7)
    assert [str(x) for x in kept.ids] == [images.ids[i] for i in kept.images]
    # What is marked as repeated is, pixel for pixel, and nothing else is
    shown = np.asarray(images.images)[kept.images]
    for unit in range(0, len(kept.top), 5):
        pixels = shown[kept.top[unit]].reshape(kept.top.shape[1], -1)
        for place, same in enumerate(kept.same_as[unit]):
            equal = np.flatnonzero((pixels[:place] == pixels[place]).all(axis=1))
            assert same == (equal[0] if len(equal) else -1)
    assert (kept.same_as >= 0).any()


def test_pickled_arrays_are_not_loaded(hostile, tmp_path):
    folder = copy_of(hostile[0], tmp_path)
    with np.load(folder / "units.npz") as file:
        arrays = dict(file)
    np.savez(
        folder / "units.npz", **arrays | {"ids": np.array([{}] * len(arrays["ids"]), dtype=object)}
    )
    with pytest.raises(InputError, match=r"units\.npz"):
        units.load(folder)
    np.savez(folder / "units.npz", **arrays | {"top": arrays["top"] + 10_000})
    with pytest.raises(InputError, match="do not fit each other"):
        units.load(folder)
