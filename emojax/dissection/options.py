"""The similarity functions by name, and the hyperparameters of each, with the official defaults.

Stated here once, for the library and the settings. Importing this module loads no JAX. A new
similarity function is a name and a class here, and a function that computes it in `scores`.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict

from emojax.errors import InputError

if TYPE_CHECKING:
    import jax

Similarity = Literal[
    "consensus",
    "correlation",
    "soft_wpmi",
    "wpmi",
    "rank_reorder",
    "cos_similarity",
    "cos_similarity_cubed",
]
Prior = Literal["units", "images", "none"]  # as in `ops/similarity.py`, which loads JAX
UnitRule = Literal["label", "trusted", "margin", "score", "share"]  # see `labels.Dissection.units`
# What labels are made with where nothing else is asked for: the best by
# `scripts/compare_labelers.py`. The kernels' own defaults are the official ones.
DEFAULT: Similarity = "consensus"
DEFAULT_PRIOR: Prior = "images"  # of the functions that have one


@dataclass(frozen=True)
class SoftWpmi:
    """Soft-WPMI, equation 6 of CLIP-Dissect (arXiv 2204.10965).

    Attributes:
      top_k: most activating images per unit.
      a: factor on cosines before the softmax over concepts.
      lam: weight of the prior.
      min_prob: added to each probability, so that its logarithm is finite.
      prior: what a log-likelihood is compared with: the layer's `units` (the official one), random
        `images`, or `none`.
      p_start: the chance that the first of the top images belongs to the unit's activating set.
      p_end: that of the last one.
    """

    top_k: int = 100
    a: float = 10.0
    lam: float = 1.0
    min_prob: float = 1e-7
    p_start: float = 0.998
    p_end: float = 0.97
    prior: Prior = "units"


@dataclass(frozen=True)
class Consensus(SoftWpmi):
    """The mean of soft_wpmi, here with the prior over images, and correlation.

    The one looks at a unit's top images, the other at all; they err on different units.
    Correlations are brought to the mean and spread over the concepts that the unit's soft_wpmi has,
    so scores are on its scale. The hyperparameters are those of `SoftWpmi`.
    """

    prior: Prior = "images"


@dataclass(frozen=True)
class Wpmi:
    """WPMI, equation 4 of CLIP-Dissect; its hyperparameters are those of `SoftWpmi`."""

    top_k: int = 28
    a: float = 2.0
    lam: float = 0.6
    min_prob: float = 1e-7
    prior: Prior = "units"


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class RankReorder:
    """Rank reorder, section 3 of CLIP-Dissect.

    Attributes:
      p: power of the deviations.
      top_fraction: share of the images that are ranked.
      scale_p: power of the baseline.
      permutations: random orders [U, R, N] of the baseline; drawn with `key` when None.
      key: a JAX random key; key 0 when None.
    """

    p: float = 3.0
    top_fraction: float = 0.05
    scale_p: float = 0.5
    permutations: "jax.Array | None" = None
    key: "jax.Array | None" = None


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation over images of activation and CLIP's cosine."""


@dataclass(frozen=True)
class Cosine:
    """Cosine over images of activation and CLIP's cosine, not centred."""


@dataclass(frozen=True)
class CosineCubed:
    """Cosine of the centred, cubed activations and CLIP cosines.

    Attributes:
      min_norm: norms are clipped there.
    """

    min_norm: float = 1e-3


WITH_PRIOR = ("consensus", "soft_wpmi", "wpmi")  # the functions that have SoftWpmi's options
Options = Correlation | SoftWpmi | Wpmi | RankReorder | Cosine | CosineCubed


class Hyperparameters(TypedDict, total=False):
    """Hyperparameters of all functions by their official names; None is the function's default."""

    top_k: int | None
    a: float | None
    lam: float | None
    min_prob: float | None
    prior: Prior | None
    p_start: float | None
    p_end: float | None
    p: float | None
    top_fraction: float | None
    scale_p: float | None
    permutations: "jax.Array | None"
    key: "jax.Array | None"
    min_norm: float | None


_DEFAULTS: dict[str, Options] = {
    "consensus": Consensus(),
    "correlation": Correlation(),
    "soft_wpmi": SoftWpmi(),
    "wpmi": Wpmi(),
    "rank_reorder": RankReorder(),
    "cos_similarity": Cosine(),
    "cos_similarity_cubed": CosineCubed(),
}


def method(similarity: str, prior: str | None) -> str:
    """Similarity function and prior, as tables and pages name them; the default is `consensus`."""
    if prior is None or (similarity, prior) == (DEFAULT, DEFAULT_PRIOR):
        return similarity
    return f"{similarity}, no prior" if prior == "none" else f"{similarity}, prior over {prior}"


def options_of(similarity: str, hyperparameters: Hyperparameters) -> Options:
    """The options of a similarity function with these hyperparameters.

    Raises:
      InputError: there is no such function.
      TypeError: the function does not have one of the hyperparameters.
    """
    if similarity not in _DEFAULTS:
        raise InputError(
            f"no similarity function {similarity!r}; known: {', '.join(Similarity.__args__)}"
        )
    given = {name: value for name, value in hyperparameters.items() if value is not None}
    return replace(_DEFAULTS[similarity], **given)


def wpmi_options(
    similarity: Similarity,
    top_k: int | None = None,
    a: float | None = None,
    lam: float | None = None,
    prior: Prior | None = None,
) -> SoftWpmi | Wpmi | None:
    """The options of a WPMI function from settings, whose None is the function's default.

    None for a function that has none of them.

    Raises:
      InputError: such a function was given one.
    """
    hyperparameters = Hyperparameters(top_k=top_k, a=a, lam=lam)
    if similarity in WITH_PRIOR:
        options = options_of(similarity, {**hyperparameters, "prior": prior})
        assert isinstance(options, SoftWpmi | Wpmi)
        return options
    # A prior is not refused: the settings always name one.
    for name, value in hyperparameters.items():
        if value is not None:
            flag = name.replace("_", "-")
            raise InputError(f"--dissect.{flag} is not a setting of {similarity}")
    return None
