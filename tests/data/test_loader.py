"""Batches."""

import numpy as np
import pytest

from emojax.data.loader import batches
from emojax.data.opening import open_split
from emojax.errors import InputError
from emojax.ops.topk import EMPTY


@pytest.mark.parametrize("size", [1, 4, 10, 16])
def test_batches_are_padded_and_complete(size):
    images = np.arange(10, dtype=np.uint8)[:, None, None, None]
    seen = []
    for batch in batches(images, size):
        assert batch.images.shape == (size, 1, 1, 1)
        real = batch.indices != EMPTY
        assert (batch.images[real, 0, 0, 0] == batch.indices[real]).all()
        seen += batch.indices[real].tolist()
    assert seen == list(range(10))
    assert [b.indices[0] for b in batches(images, 4, start=8)] == [8]


@pytest.mark.parametrize("start", [0, 6, 12, 18])
def test_stream_of_files_goes_on_where_it_stopped(fer_folder, start):
    """Files are decoded as they are needed; from any image on, and for any share of a batch, the
    stream is the same.
    """
    images = open_split(fer_folder / "train", "all", kind="folder").images
    whole = images[0 : images.shape[0]]
    for rows in (slice(0, 6), slice(0, 2), slice(4, 6)):
        stream = list(batches(images, 6, start=start, rows=rows))
        assert len(stream) == -(-max(0, len(whole) - start) // 6)
        for number, batch in enumerate(stream):
            first, real = start + 6 * number + rows.start, batch.indices != EMPTY
            assert len(batch.indices) == rows.stop - rows.start
            np.testing.assert_array_equal(batch.indices[real], np.arange(first, first + real.sum()))
            np.testing.assert_array_equal(batch.images[real], whole[first : first + real.sum()])
            assert not batch.images[~real].any()


def test_an_unreadable_file_in_a_stream_is_named(fer_folder):
    images = open_split(fer_folder / "train", "all", kind="folder").images
    next((fer_folder / "train" / "happy").iterdir()).write_bytes(b"gone")
    with pytest.raises(InputError, match=r"happy.*not a readable image"):
        list(batches(images, 2))
