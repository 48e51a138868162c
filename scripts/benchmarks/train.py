"""Steps of training against PyTorch's."""

import dataclasses
from typing import Any

import numpy as np
from common import OnDevice, Results, taking_turns
from networks import torch_vgg

# Sizes for a first look.
QUICK = "--batch 16 --repeats 3"


@dataclasses.dataclass
class Options(OnDevice):
    """Steps of training the published VGGNet against PyTorch's."""

    batch: int = 64
    repeats: int = 5
    devices: int | None = None
    """that share the batch; as a training chooses them, when None"""


def measure(options: Options) -> Results:
    """Seconds of a training step, ours and PyTorch's."""
    import jax
    import torch
    from flax import nnx

    from emojax.distributed.mesh import make_mesh, put_replicated, put_sharded, replicated
    from emojax.models.vgg import VggConfig, VggNet
    from emojax.synthetic import faces
    from emojax.training import classifiers, tasks
    from emojax.training import step as steps
    from emojax.training.fit import training_mesh
    from emojax.training.recipe import Recipe

    where = "cuda" if options.device == "gpu" else "cpu"
    images = faces.random_faces(4 * options.batch, 0).image_set("faces")
    recipe = Recipe(epochs=1, optimizer="sgd", learning_rate=0.01)

    config = VggConfig(dropout=0.0)
    task = classifiers.classification_task(
        nnx.eval_shape(lambda: VggNet(config, rngs=nnx.Rngs(0))),
        images,
        batch=options.batch,
        start=tasks.start_fresh(lambda seed: VggNet(config, rngs=nnx.Rngs(seed))),
    )
    state = steps.first_state(task, recipe)
    mesh = make_mesh(options.devices) if options.devices else training_mesh(state.params)
    state = put_replicated(mesh, state)
    step = steps.make_step(task.loss, recipe, mesh, jax.tree.map(lambda _: replicated(mesh), state))
    rows = put_sharded(mesh, next(task.batches(0, 0, 0)))
    data, key = put_replicated(mesh, task.data), jax.random.key(0)
    states = [state]

    def our_step() -> Any:
        states[0], metrics = step(states[0], data, rows, np.float32(0.01), key, np.int32(0))
        return metrics

    theirs = torch_vgg(config).to(where).train()
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    x = torch.rand(options.batch, 1, 40, 40, device=where)
    labels = torch.randint(0, 7, (options.batch,), device=where)

    def torch_step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(x), labels).backward()
        optimizer.step()

    ours, plain, _ = taking_turns(our_step, torch_step, options.repeats, where)
    rates = {
        "images_per_second": options.batch / ours,
        "torch_images_per_second": options.batch / plain,
    }
    return [
        {
            "what": "training step of VGGNet",
            "batch": options.batch,
            "seconds": ours,
            **rates,
            "ratio": plain / ours,
        }
    ]
