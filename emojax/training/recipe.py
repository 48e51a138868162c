"""How a network is trained, as settings: optimizer, schedule of the learning rate, seed.

`Recipe` is part of the section `train` of the settings. Importing this module loads no JAX.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from emojax.section import Section, Seed

if TYPE_CHECKING:
    import numpy as np
    import optax

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "one_cycle", "plateau", "constant"]


class Recipe(Section):
    """How a network is trained.

    `optimizer`: `sgd` with Nesterov momentum, where the decay is added to the gradient as in
    PyTorch; or `adamw`, which decays kernels only. `schedule`: `cosine` falls to zero after the
    warmup; `one_cycle` (Smith and Topin 2018) rises and falls far along cosines; `plateau` is
    PyTorch's ReduceLROnPlateau(max, factor 0.75, patience 5) on the watched metric; `constant`. The
    last two begin at the peak.
    """

    epochs: Annotated[int, Field(gt=0, le=100_000)] = Field(
        default=20, description="passes over the training split"
    )
    optimizer: Optimizer = Field(
        default="adamw", description="sgd with Nesterov momentum, or adamw"
    )
    schedule: Schedule = Field(
        default="cosine",
        description="of the learning rate; plateau lowers it when validation no longer improves",
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1e3, description="its peak")
    warmup: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of the steps over which it rises (cosine, one_cycle)",
    )
    weight_decay: float = Field(default=1e-4, ge=0, le=1e3, description="weight decay")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum (sgd)")
    average: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of weights that is kept; 0 keeps them as they are",
    )
    seed: Seed = Field(
        default=0, description="of the first weights, data order, augmentation and dropout"
    )

    def transform(self) -> "optax.GradientTransformation":
        """Gradients to descent directions; the step scales them by the learning rate."""
        import optax

        if self.optimizer == "sgd":
            decay = optax.add_decayed_weights(self.weight_decay)
            return optax.chain(decay, optax.trace(self.momentum, nesterov=True))
        decay = optax.add_decayed_weights(self.weight_decay, mask=_is_kernel)
        return optax.chain(optax.scale_by_adam(), decay)

    def rates(self, steps: int) -> "np.ndarray":
        """Learning rate of each of `steps` steps [steps] float32, on the host.

        Computed before the first step, so that nothing in the loop waits for it.
        """
        import jax
        import jax.numpy as jnp
        import numpy as np
        import optax

        first = 0
        if self.schedule == "one_cycle":
            rise = max(self.warmup, 1 / steps)
            schedule = optax.cosine_onecycle_schedule(steps, self.learning_rate, rise)
        elif self.schedule == "cosine":
            rise = int(self.warmup * steps)
            schedule = optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, rise, max(steps, rise + 1)
            )
            first = int(rise > 0)  # a first step at rate 0 would be lost
        else:
            return np.full(steps, self.learning_rate, np.float32)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            return np.asarray(jax.vmap(schedule)(jnp.arange(steps) + first), np.float32)


def _is_kernel(params: Any) -> Any:
    """Which leaves weight decay is for: those of more than one axis, no biases and scales."""
    import jax

    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def members(recipe: Recipe, seeds: Sequence[int], rates: Sequence[float]) -> list[Recipe]:
    """Every seed with every learning rate; the recipe's own where none is given."""
    pairs = itertools.product(seeds or (recipe.seed,), rates or (recipe.learning_rate,))
    return [recipe.model_copy(update={"seed": seed, "learning_rate": rate}) for seed, rate in pairs]
