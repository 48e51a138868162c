"""What tasks have in common: the order of images in an epoch."""

import numpy as np

from emojax.training import tasks


def test_every_epoch_has_every_image_once():
    rows = [np.concatenate(list(tasks.epoch_rows(100, 10, 0, epoch))) for epoch in (0, 1)]
    for order in rows:
        assert sorted(order) == list(range(100))
    assert (rows[0] != rows[1]).any()
    assert len(list(tasks.epoch_rows(25, 10, 0, 0))) == 2
