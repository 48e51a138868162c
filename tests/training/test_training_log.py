"""The training log: plateaus as PyTorch's, and what a checkpoint holds of it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from emojax.training.training_log import Plateau, TrainingLog


@pytest.mark.long
def test_plateau_equals_pytorchs():
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    rng = np.random.default_rng(0)
    values = (
        np.round((0.6 + 0.1 * np.tanh(np.arange(80) / 10) + 0.01 * rng.standard_normal(80)) * 3589)
        / 3589
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.75, patience=5
    )
    ours = Plateau()
    for value in values:
        theirs.step(value)
        assert ours.scale(value) == pytest.approx(optimizer.param_groups[0]["lr"])
        ours = Plateau(json.loads(json.dumps(ours.numbers())))  # as a checkpoint keeps it
    assert ours.numbers()[0] < 0.4


def test_what_a_checkpoint_holds_does_not_change_while_it_is_written():
    log = TrainingLog(1)
    log.add([{"loss": jnp.float32(1)}])
    written = log.to_json()
    log.add([{"loss": jnp.float32(2)}])
    log.history[0].append({"epoch": 1})
    assert (written["sums"], written["history"]) == ({"loss": [1.0]}, [[]])


def test_a_log_survives_json():
    """Of two members, in the middle of an epoch; then both logs end it alike."""
    log = TrainingLog(2)
    log.start_clock()
    for value in (0.5, 0.25):
        log.add([{"loss": jnp.float32(value)}, {"loss": jnp.float32(2 * value)}])
        log.steps += 1
    log.add_epoch(log.end_epoch(2, 8, [0.1, 0.2]), "loss", plateau=True)
    log.add([{"loss": jnp.float32(1)}, {"loss": jnp.float32(3)}])
    log.steps += 1
    restored = TrainingLog(2)
    restored.restore(json.loads(json.dumps(log.to_json())))
    for one in (log, restored):
        one.start_clock()
        one.add([{"loss": jnp.float32(2)}, {"loss": jnp.float32(4)}])
        one.steps += 1
    rows, again = log.end_epoch(2, 8, [0.1, 0.2]), restored.end_epoch(2, 8, [0.1, 0.2])
    assert [row["loss"] for row in rows] == [row["loss"] for row in again] == [1.5, 3.5]
    assert [row["epoch"] for row in again] == [2, 2]
    assert log.add_epoch(rows, "loss", plateau=True) == [0, 1]
    assert restored.add_epoch(again, "loss", plateau=True) == [0, 1]
    assert (restored.steps, restored.best_epoch, restored.rate_scales) == (4, [2, 2], [1.0, 1.0])
