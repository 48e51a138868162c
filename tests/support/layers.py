"""Random dense layers that feed the logits, and their logits in float64."""

import numpy as np

from emojax.editing.activations import Head, PreBiasActivations


def random_layer(rng, images, units, classes):
    head = Head(
        rng.normal(0, 0.3, units).astype(np.float32),
        rng.normal(0, 0.3, (units, classes)).astype(np.float32),
        rng.normal(0, 0.3, classes).astype(np.float32),
    )
    values = rng.standard_normal((images, units)).astype(np.float32)
    labels = rng.integers(0, classes - 1, images).astype(np.int32)  # the last class has no images
    names = tuple(f"class {c}" for c in range(classes))
    return PreBiasActivations(
        "lin2", values, labels, names, head, rng.random(units), f"random {units}", "random"
    )


def float64_logits(layer, gains, scope):
    head, gains = layer.params, np.float64(gains)
    bias = head.bias * (gains if scope == "weights_and_bias" else 1)
    return (
        np.maximum(np.float64(layer.values) * gains + bias, head.floor) @ np.float64(head.weight)
        + head.offset
    )
