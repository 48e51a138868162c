"""Recipes: the optimizer against PyTorch, schedules, members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import recipe

from emojax.training.recipe import Recipe, members


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_equals_pytorchs(optimizer):
    torch = pytest.importorskip("torch", reason="needs the oracle extra")
    start = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    gradients = np.random.default_rng(1).standard_normal((6, 4, 3)).astype(np.float32)
    rates = [0.1, 0.1, 0.05, 0.05, 0.02, 0.01]
    weight = torch.nn.Parameter(torch.tensor(start))
    recipe = Recipe(epochs=1, optimizer=optimizer, weight_decay=0.01, momentum=0.9)
    if optimizer == "sgd":
        theirs = torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.01)
    else:
        theirs = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.01)
    transform, ours = recipe.transform(), jnp.asarray(start)
    state = transform.init(ours)
    for gradient, rate in zip(gradients, rates, strict=True):
        theirs.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(gradient)
        theirs.step()
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it, as in the step
            updates, state = transform.update(jnp.asarray(gradient), state, ours)
        ours = ours - rate * updates
    np.testing.assert_allclose(ours, weight.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_rate_rises_and_falls():
    values = Recipe(epochs=1, learning_rate=0.5, warmup=0.1).rates(100).tolist()
    assert max(values) == pytest.approx(0.5)
    assert values.index(max(values)) == 9
    assert values[0] == pytest.approx(0.05)
    assert values[-1] < 1e-3


@pytest.mark.slow
def test_one_cycle_and_constant():
    values = recipe(schedule="one_cycle", learning_rate=0.5, warmup=0.3).rates(100)
    assert values.max() == pytest.approx(0.5)
    assert values.argmax() == 30
    assert values[0] == pytest.approx(0.5 / 25)
    assert values[-1] < 1e-3
    np.testing.assert_array_equal(recipe(schedule="constant").rates(3), np.float32(1e-3))


def test_members():
    made = members(recipe(seed=7), (), (0.1, 0.2))
    assert [(one.seed, one.learning_rate) for one in made] == [(7, 0.1), (7, 0.2)]
    assert len(members(recipe(), (1, 2, 3), (0.1, 0.2))) == 6
