"""Plain float64 numpy versions of the kernels, and PyTorch versions of the networks."""

import numpy as np
from scipy import ndimage


def relative(got, want):
    """Largest difference, relative to the largest value."""
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


def _softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def top_images(activations, k):
    return np.argsort(-activations, kind="stable")[:k]


def _prior(loglik, lam, segments, prior="units", expected=None):
    if prior != "units":
        return loglik - (lam * expected if prior == "images" else 0)
    scores = np.empty_like(loglik)
    for segment in np.unique(segments):
        mine = loglik[segments == segment]
        peak = mine.max(axis=0)
        scores[segments == segment] = mine - lam * (
            peak + np.log(np.exp(mine - peak).sum(axis=0)) - np.log(len(mine))
        )
    return scores


def soft_wpmi(
    clip,
    acts,
    top_k=100,
    a=10.0,
    lam=1.0,
    min_prob=1e-7,
    p_start=0.998,
    p_end=0.97,
    segments=None,
    prior="units",
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
    expected = sum(np.log(1 + weight * (probs - 1) + min_prob).mean(axis=0) for weight in weights)
    segments = np.zeros(len(rows), int) if segments is None else segments
    return _prior(np.stack(rows), lam, segments, prior, expected)


def wpmi(clip, acts, top_k=28, a=2.0, lam=0.6, min_prob=1e-7, segments=None, prior="units"):
    clip, acts = np.float64(clip), np.float64(acts)
    probs = _softmax(a * clip)
    rows = [
        np.log(probs[top_images(acts[:, u], top_k)] + min_prob).sum(axis=0)
        for u in range(acts.shape[1])
    ]
    expected = top_k * np.log(probs + min_prob).mean(axis=0)
    segments = np.zeros(len(rows), int) if segments is None else segments
    return _prior(np.stack(rows), lam, segments, prior, expected)


def correlation(clip, acts):
    clip, acts = (np.float64(x) - np.float64(x).mean(axis=0) for x in (clip, acts))
    return cos_similarity(clip, acts)


def consensus(clip, acts, top_k=100, prior="images", segments=None):
    scores = soft_wpmi(clip, acts, top_k=top_k, prior=prior, segments=segments)
    wanted = []
    for own, r in zip(scores, correlation(clip, acts), strict=True):
        spread = np.std(r)
        z = (r - np.mean(r)) / spread if spread else np.zeros(len(r))
        wanted.append((own + np.mean(own) + np.std(own) * z) / 2)
    return np.array(wanted)


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
    """Every pixel weighs in with a tent of one pixel's width around its centre."""
    images, grid = np.float64(images), np.float64(grid)
    height, width = images.shape[1:3]
    x, y = ((grid[..., 0] + 1) * width - 1) / 2, ((grid[..., 1] + 1) * height - 1) / 2
    across = np.maximum(1 - abs(x[..., None] - np.arange(width)), 0)
    down = np.maximum(1 - abs(y[..., None] - np.arange(height)), 0)
    return np.einsum("ipqh,ipqw,ihwc->ipqc", down, across, images)


def torch_vgg(torch, config):
    """VGGNet without dropout in PyTorch; `torch` is the module, which may be missing."""
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


# Rotation, shear, zoom out and a shift: a good part of what the CNN sees lies outside the image.
_TILTED = np.float32([1.1, 0.35, 0.2, -0.3, 0.9, -0.25])


def smooth(channels):
    """Images as smooth as faces, between -1 and 1: float32 [6, 48, 48, C]."""
    coarse = np.random.default_rng(0).uniform(-1, 1, (6, 12, 12, channels))
    finer = [ndimage.zoom(image, (4, 4, 1), order=1, mode="nearest") for image in coarse]
    return np.float32(finer)


def deep_emotion_arrays(channels=1, classes=7):
    """A state dict without trivial values; the transform depends on the image."""
    rng = np.random.default_rng(11)
    shapes = {"localization.0": (8, channels, 7, 7), "localization.3": (10, 8, 5, 5)}
    shapes |= {"fc_loc.0": (32, 640), "fc_loc.2": (6, 32), "conv1": (10, channels, 3, 3)}
    shapes |= dict.fromkeys(("conv2", "conv3", "conv4"), (10, 10, 3, 3)) | {
        "fc1": (50, 810),
        "fc2": (classes, 50),
    }
    arrays = {}
    for name, shape in shapes.items():
        arrays[f"{name}.weight"] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        arrays[f"{name}.bias"] = 0.1 * rng.standard_normal(shape[0])
    arrays["fc_loc.2.weight"] *= 0.2
    arrays["fc_loc.2.bias"] = _TILTED
    for name in ("norm.weight", "norm.running_var"):
        arrays[name] = rng.uniform(0.5, 1.5, 10)
    for name in ("norm.bias", "norm.running_mean"):
        arrays[name] = 0.5 * rng.standard_normal(10)
    arrays = {name: np.float32(array) for name, array in arrays.items()}
    return arrays | {"norm.num_batches_tracked": np.zeros((), np.int64)}


def torch_deep_emotion(torch, arrays):
    """The architecture in torch, as the paper's PyTorch version lays it out; dropout left out."""
    nn, functional = torch.nn, torch.nn.functional
    channels, classes = arrays["conv1.weight"].shape[1], arrays["fc2.weight"].shape[0]

    class Torch(nn.Module):
        def __init__(self):
            super().__init__()
            for number, inputs in enumerate((channels, 10, 10, 10), 1):
                setattr(self, f"conv{number}", nn.Conv2d(inputs, 10, 3))
            self.norm = nn.BatchNorm2d(10)
            self.fc1, self.fc2 = nn.Linear(810, 50), nn.Linear(50, classes)
            pool = nn.MaxPool2d(2)
            self.localization = nn.Sequential(
                nn.Conv2d(channels, 8, 7), pool, nn.ReLU(), nn.Conv2d(8, 10, 5), pool, nn.ReLU()
            )
            self.fc_loc = nn.Sequential(nn.Linear(640, 32), nn.ReLU(), nn.Linear(32, 6))

        def forward(self, x):
            theta = self.fc_loc(self.localization(x).flatten(1)).view(-1, 2, 3)
            x = functional.grid_sample(
                x, functional.affine_grid(theta, x.shape, align_corners=False), align_corners=False
            )
            taps = {"conv1": self.conv1(x)}
            taps["conv2"] = self.conv2(taps["conv1"].relu())
            taps["conv3"] = self.conv3(functional.max_pool2d(taps["conv2"], 2).relu())
            taps["conv4"] = self.conv4(taps["conv3"].relu())
            x = functional.max_pool2d(self.norm(taps["conv4"]), 2).relu().flatten(1)
            taps["fc1"] = self.fc1(x)
            taps["fc2"] = self.fc2(taps["fc1"].relu())
            return theta, taps

    model = Torch()
    model.load_state_dict(
        {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, strict=True
    )
    return model.eval()


def channels_first(torch, images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def channels_last(tensor):
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


# Measures of explanations (emojax.ops.explanation_metrics), by loops over pairs


def _pairs(measure):
    """A function of two vectors as one of two matrices."""

    def matrix(acts, probs, *rest):
        acts, probs = np.float64(acts), np.float64(probs)
        return np.array([[measure(a, c, *rest) for c in probs.T] for a in acts.T])

    return matrix


def _active(a, alpha):
    return a >= np.sort(a)[::-1][int(np.ceil(alpha * len(a))) - 1]


def _pearson_sample(a, c):
    a, c = a - a.mean(), c - c.mean()
    spread = a.std(ddof=1) * c.std(ddof=1)
    return (a * c).mean() / spread if spread > 0 else 0.0


def _average_precision(values, wanted):
    area = 0.0
    for threshold in np.unique(values)[::-1]:
        reached = values >= threshold
        gained = (wanted & (values == threshold)).sum() / max(wanted.sum(), 1)
        area += gained * (wanted & reached).sum() / reached.sum()
    return area


def _auroc(values, wanted):
    yes, no = values[wanted], values[~wanted]
    if not len(yes) or not len(no):
        return 0.0
    return ((yes[:, None] > no).mean() + (yes[:, None] == no).mean() / 2).item()


def _share(part, whole):
    return part.sum() / max(whole.sum(), 1)


def _balanced(x, y):
    return (_share(x & y, x) + _share(~x & ~y, ~x)) / 2


def _binary(measure):
    return _pairs(lambda a, c, alpha: measure(_active(a, alpha), c >= 0.5))


def _mean(values):
    return values.mean() if len(values) else 0.0


def _mid_ranks(x):
    return np.array([(x < v).sum() + ((x == v).sum() - 1) / 2 for v in x])


explanation_metrics = {
    "correlation": _pairs(_pearson_sample),
    "cosine": _pairs(
        lambda a, c: a @ c / max(np.linalg.norm(a), 1e-9) / max(np.linalg.norm(c), 1e-9)
    ),
    "auprc": _pairs(lambda a, c, alpha: _average_precision(c, _active(a, alpha))),
    "f1": _binary(lambda x, y: 2 * (x & y).sum() / (x.sum() + y.sum())),
    "iou": _binary(lambda x, y: (x & y).sum() / (x | y).sum()),
    "recall": _binary(lambda x, y: _share(x & y, x)),
    "precision": _binary(lambda x, y: _share(x & y, y)),
    "accuracy": _binary(lambda x, y: (x == y).mean()),
    "balanced_accuracy": _binary(_balanced),
    "inverse_balanced_accuracy": _binary(lambda x, y: _balanced(y, x)),
    "auc": _pairs(lambda a, c, alpha: _auroc(c, _active(a, alpha))),
    "inverse_auc": _pairs(lambda a, c: _auroc(a, c >= 0.5)),
    "inverse_auprc": _pairs(lambda a, c: _average_precision(a, c >= 0.5)),
    "mad": _pairs(lambda a, c: _mean(a[c >= 0.5]) - _mean(a[c < 0.5])),
    "wpmi": _pairs(
        lambda a, c, alpha: np.log(np.maximum(c, 1e-8))[_active(a, alpha)].mean() - np.log(c.mean())
    ),
    "spearman_correlation": _pairs(lambda a, c: _pearson_sample(_mid_ranks(a), _mid_ranks(c))),
}


def linear_explanation(acts, values, most=10, tolerance=0.02):
    """Greedy least squares of one unit [I] on concept values [I, C]: concepts, weights, bias, R."""
    acts, values = np.float64(acts), np.float64(values)
    chosen, reached, fit = [], 0.0, np.zeros(0)

    def solve(columns):
        design = np.column_stack([values[:, columns], np.ones(len(acts))])
        solution = np.linalg.lstsq(design, acts, rcond=None)[0]
        return solution, np.corrcoef(design @ solution, acts)[0, 1]

    while len(chosen) < most and acts.std() > 0:
        others = [c for c in range(values.shape[1]) if c not in chosen]
        trials = {c: solve([*chosen, c]) for c in others}
        best = max(others, key=lambda c: trials[c][1])
        if chosen and trials[best][1] - reached < tolerance:
            break
        chosen.append(best)
        fit, reached = trials[best]
    return chosen, fit[:-1], fit[-1] if len(fit) else acts.mean(), reached
