"""Plain float64 numpy versions of the kernels, one unit and one concept at a time where that is
clearest.
"""

import numpy as np


def _softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def top_images(activations, k):
    return np.argsort(-activations, kind="stable")[:k]


def _prior(loglik, lam, segments):
    scores = np.empty_like(loglik)
    for segment in np.unique(segments):
        mine = loglik[segments == segment]
        peak = mine.max(axis=0)
        scores[segments == segment] = mine - lam * (
            peak + np.log(np.exp(mine - peak).sum(axis=0)) - np.log(len(mine))
        )
    return scores


def soft_wpmi(
    clip, acts, top_k=100, a=10.0, lam=1.0, min_prob=1e-7, p_start=0.998, p_end=0.97, segments=None
):
    clip, acts = np.float64(clip), np.float64(acts)
    probs = _softmax(a * clip)
    weights = p_start - np.arange(top_k) / top_k * (p_start - p_end)
    rows = [
        np.log(1 + weights[:, None] * (probs[top_images(acts[:, u], top_k)] - 1) + min_prob).sum(
            axis=0
        )
        for u in range(acts.shape[1])
    ]
    return _prior(np.stack(rows), lam, np.zeros(len(rows), int) if segments is None else segments)


def wpmi(clip, acts, top_k=28, a=2.0, lam=0.6, min_prob=1e-7, segments=None):
    clip, acts = np.float64(clip), np.float64(acts)
    probs = _softmax(a * clip)
    rows = [
        np.log(probs[top_images(acts[:, u], top_k)] + min_prob).sum(axis=0)
        for u in range(acts.shape[1])
    ]
    return _prior(np.stack(rows), lam, np.zeros(len(rows), int) if segments is None else segments)


def cos_similarity(clip, acts):
    clip, acts = np.float64(clip), np.float64(acts)
    return (
        acts.T
        @ clip
        / np.linalg.norm(acts, axis=0)[:, None]
        / np.linalg.norm(clip, axis=0)[None, :]
    )


def cos_similarity_cubed(clip, acts, min_norm=1e-3):
    def cubed(x):
        x = (x - x.mean(axis=0)) ** 3
        return x / np.clip(np.linalg.norm(x, axis=0), min_norm, None)

    return cubed(np.float64(acts)).T @ cubed(np.float64(clip))


def rank_reorder(clip, acts, permutations, top_fraction=0.05, p=3, scale_p=0.5):
    clip, acts = np.float64(clip), np.float64(acts)
    n = int(len(acts) * top_fraction)
    scores = np.empty((acts.shape[1], clip.shape[1]))
    for u in range(acts.shape[1]):
        images = top_images(acts[:, u], n)
        values = acts[images, u]
        ascending = values[::-1]
        baseline = np.mean(
            [np.mean(np.abs(ascending[order] - ascending) ** p) for order in permutations[u]]
        )
        for c in range(clip.shape[1]):
            rank = np.argsort(np.argsort(-clip[images, c], kind="stable"))
            error = np.mean(np.abs(values[rank] - values) ** p) / baseline
            scores[u, c] = -error / clip[images, c].mean() ** scale_p
    return scores


def affine_grid(theta, size):
    """One matrix product on homogeneous points (x, y, 1) at the pixels' centres."""
    y, x = np.meshgrid(*((np.arange(n) + 0.5) * 2 / n - 1 for n in size), indexing="ij")
    return np.einsum("iak,hwk->ihwa", np.float64(theta), np.stack([x, y, np.ones_like(x)], axis=-1))


def grid_sample(images, grid):
    """Every pixel weighs in with a tent of one pixel's width around its centre; outside there is
    nothing to weigh in.
    """
    images, grid = np.float64(images), np.float64(grid)
    height, width = images.shape[1:3]
    x, y = ((grid[..., 0] + 1) * width - 1) / 2, ((grid[..., 1] + 1) * height - 1) / 2
    across = np.maximum(1 - abs(x[..., None] - np.arange(width)), 0)
    down = np.maximum(1 - abs(y[..., None] - np.arange(height)), 0)
    return np.einsum("ipqh,ipqw,ihwc->ipqc", down, across, images)


def torch_vgg(torch, config):
    """VGGNet without dropout, written in PyTorch; `torch` is the module, which not every machine
    has.
    """
    convs = [f"conv{number}{letter}" for number in range(1, 5) for letter in "ab"]

    class Torch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            inputs = 1
            for name, width in zip(convs, config.widths, strict=True):
                setattr(self, name, torch.nn.Conv2d(inputs, width, 3, padding=1))
                setattr(self, name.replace("conv", "bn"), torch.nn.BatchNorm2d(width))
                inputs = width
            inputs *= 4
            for name, width in zip(
                ("lin1", "lin2", "lin3"), (*config.hidden, config.classes), strict=True
            ):
                setattr(self, name, torch.nn.Linear(inputs, width))
                inputs = width

        def forward(self, x):
            for name in convs:
                x = torch.relu(getattr(self, name.replace("conv", "bn"))(getattr(self, name)(x)))
                x = torch.nn.functional.max_pool2d(x, 2) if name.endswith("b") else x
            return self.lin3(torch.relu(self.lin2(torch.relu(self.lin1(x.flatten(1))))))

    return Torch()
