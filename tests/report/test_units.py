"""What a run folder keeps of every unit."""

import numpy as np
import pytest
from hostile_run import columns, copy_of

import emojax
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
    np.testing.assert_array_equal(kept.mix.sum(axis=1), 60)  # a quarter of the images
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
    for wrong in ({"maps": arrays["maps"][1:]}, {"map_units": arrays["map_units"] + 4}):
        np.savez(folder / "units.npz", **arrays | wrong)  # the next four units are dense
        with pytest.raises(InputError, match="do not fit each other"):
            units.load(folder)


def test_lowest_images_and_values(tiny_clip):
    """Of kept activations the lowest images, ties to the first; without them none."""
    from conftest import some_record

    from emojax.data.concepts import ConceptSet

    record = some_record(tiny_clip.key)
    record.activations = np.round(np.random.default_rng(0).normal(size=(40, 20)), 1).astype("f4")
    texts = np.eye(2, 24, dtype=np.float32)
    concepts = ConceptSet(("a", "b"))
    found = emojax.dissect(record, concepts, similarity="correlation", text_embeddings=texts)
    kept = units.collect(found)
    order = np.argsort(record.activations, axis=0, kind="stable")[:8].T
    np.testing.assert_array_equal(kept.images[kept.bottom], order)
    lowest = np.take_along_axis(record.activations, order.T, axis=0).T
    np.testing.assert_array_equal(kept.bottom_values, lowest)
    np.testing.assert_array_equal(kept.values, record.top_k(16).values)
    record.activations = None
    assert units.collect(found).bottom.shape == (20, 0)


def test_a_file_of_an_older_version_is_read(hostile, tmp_path):
    folder = copy_of(hostile[0], tmp_path)
    with np.load(folder / "units.npz") as file:
        arrays = {name: file[name] for name in file if name not in units.LATER}
    np.savez(folder / "units.npz", **arrays)
    kept = units.load(folder)
    assert kept.values.size == kept.bottom.size == 0
    np.testing.assert_array_equal(kept.top, units.load(hostile[0]).top)
