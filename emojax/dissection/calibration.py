"""From cosines to concept probabilities: sigmoid(a · (cosine + b)), as encoders are calibrated.

Explanations and the judge take a pair (a, b) for their encoder. Importing this module loads no JAX.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from emojax.section import Factor, Section

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

# From the published code of Linear Explanations (Oikarinen and Weng, ICML 2024) and Neuron_Eval
# (ICML 2025), which fitted them on ImageNet's classes and superclasses.
PUBLISHED = {
    "ViT-SO400M-14-SigLIP-384": (58.0, -0.13),
    "ViT-L-16-SigLIP-384": (60.0, -0.09),
    "ViT-L-14-336": (58.0, -0.25),
}


class Calibration(Section):
    """Whether and how cosines become probabilities; without any, cosines are taken as they are."""

    encoder: Literal["ViT-SO400M-14-SigLIP-384", "ViT-L-16-SigLIP-384", "ViT-L-14-336"] | None = (
        Field(default=None, description="the encoder whose published a and b are taken")
    )
    a: Factor | None = Field(default=None, description="slope of the sigmoid")
    b: float | None = Field(
        default=None, ge=-1e3, le=1e3, description="offset that is added to the cosine"
    )

    @model_validator(mode="after")
    def _check_pair(self) -> "Calibration":
        given = (self.a is not None, self.b is not None)
        if given[0] != given[1]:
            raise ValueError("a and b are needed together")
        if given[0] and self.encoder is not None:
            raise ValueError("give either an encoder or a and b")
        return self

    @property
    def pair(self) -> tuple[float, float] | None:
        """a and b, or None for plain cosines."""
        if self.encoder is not None:
            return PUBLISHED[self.encoder]
        return None if self.a is None or self.b is None else (self.a, self.b)

    def __call__(self, cosines: "Float[np.ndarray, '...']") -> "Float[np.ndarray, '...']":
        """Probabilities, or the cosines where there is no pair."""
        from scipy.special import expit

        return cosines if self.pair is None else expit(self.pair[0] * (cosines + self.pair[1]))
