"""Which edits are tried: one edit (`Setting`), the grid (`Search`), a whole study (`Edit`).

The classes are sections of the settings file and of the command line. Importing this module loads
no JAX; what a setting does to scores is in `editing/edit.py`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from emojax.dissection.options import UnitRule
from emojax.section import Count, Factors, Section, Threshold, UserPath

AUTO = "auto"
Kind = Literal["threshold", "top_fraction", "continuous"]
Scope = Literal["weights", "weights_and_bias"]  # as in `ops/gains.py`, which loads JAX
Fractions = tuple[Annotated[float, Field(gt=0, lt=1)], ...]


# What an edit of each kind does, in a sentence for readers.
MEANING = {
    "threshold": "An edit scales the units of a layer: units whose maximum similarity is above tau "
    "are multiplied by the factor, all others are divided by it.",
    "top_fraction": "An edit scales the units of a layer: the given share of them, those of the "
    "largest maximum similarities, are multiplied by the factor, all others are divided by it.",
    "continuous": "An edit scales the units of a layer: they are multiplied by numbers from 0, for "
    "the least maximum similarity, to the factor, for the largest, in proportion between.",
    "concepts": "An edit by name scales the units of a layer that stand for the named concepts.",
    "erased": "An edit by name: what goes with CLIP's similarity to the named concepts, within the "
    "classes, is taken out of the last layer's weights, and its biases are fitted anew.",
}


class Setting(NamedTuple):
    """An edit of the units of one layer by their scores.

    Attributes:
      layer: its name.
      kind: of gain.
      tau: the threshold, or the fraction of units; None for a continuous gain.
      factor: by which units in the mask are multiplied and the others divided; the largest gain of
        a continuous edit.
    """

    layer: str
    kind: Kind
    tau: float | None
    factor: float

    def __str__(self) -> str:
        tau = ""
        if self.tau is not None:
            percent = f", best {100 * self.tau:g} %"
            tau = f", tau {self.tau:g}" if self.kind == "threshold" else percent
        return f"{self.layer}, {self.kind.replace('_', ' ')}{tau}, factor {self.factor:g}"


class Search(Section):
    """The settings that one is selected from, for every layer; by default the paper's grid."""

    scope: Scope = Field(default="weights", description="what the gain scales")
    tau: tuple[Threshold, ...] = Field(
        default=tuple(x / 4 for x in range(-4, 8)),
        description="thresholds of the grid: units with a maximum similarity above are multiplied "
        "by the factor, all others divided by it",
        min_length=1,
    )
    factor: Factors = Field(
        default=(1.0, 1.5, 2.0, 2.5, 3.0, 3.5), description="factors of the grid", min_length=1
    )
    top_fraction: Fractions = Field(
        default=(), description="also ×factor for these shares of the units, the highest scores"
    )
    continuous: Factors = Field(
        default=(), description="also factor·(s − min)/(max − min), for these factors"
    )

    def settings(self, layers: Sequence[str]) -> list[Setting]:
        """All settings, in the order in which the first of equals is selected.

        Factor 1 is left out: it edits nothing.
        """
        factors = [factor for factor in self.factor if factor != 1]
        settings = []
        for layer in layers:
            settings += [Setting(layer, "threshold", tau, by) for tau in self.tau for by in factors]
            for fraction in self.top_fraction:
                settings += [Setting(layer, "top_fraction", fraction, by) for by in factors]
            settings += [Setting(layer, "continuous", None, by) for by in self.continuous]
        return settings

    def grid(self, layers: Sequence[str]) -> list[Setting]:
        """The paper's table, factor 1 included, then the search's other kinds of gain."""
        table = [
            Setting(layer, "threshold", tau, factor)
            for layer in layers
            for tau in self.tau
            for factor in self.factor
        ]
        return table + [setting for setting in self.settings(layers) if setting.kind != "threshold"]


class Edit(Search):
    """Edits by labels: the settings to try, how one is selected, and the evidence for it."""

    layers: tuple[str, ...] = Field(
        default=(AUTO,),
        description="layers to edit, by name or pattern; auto takes the one with the most "
        "interpretable units",
    )
    gains: UserPath | None = Field(
        default=None,
        description="instead of a search, test these gains of one layer: a file of one number per "
        "unit (.npy or text)",
    )
    suppress: tuple[str, ...] = Field(
        default=(),
        description="instead of a search, take these concepts out of the network, by the method",
    )
    amplify: tuple[str, ...] = Field(
        default=(),
        description="scale the units that stand for these concepts by amplify-factor; may be given "
        "with suppress",
    )
    suppress_factor: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="of the suppressed units; 0 silences: the unit is the same for all images",
    )
    amplify_factor: float = Field(default=2.0, gt=1, description="of the amplified units")
    method: Literal["auto", "erase", "units"] = Field(
        default="auto",
        description="erase the suppressed concepts from the last layer's weights, with CLIP and "
        "the probe images' classes; or scale the units that stand for the concepts, in the last "
        "hidden layer that has some; auto erases where that can be done and nothing else that is "
        "given is of units",
    )
    rule: UnitRule = Field(
        default="label",
        description="which units stand for a concept: those that it labels; whose label also "
        "stands (trusted); or has this margin; those of this similarity with it (score); or those "
        "with this share of a linear explanation's weights on it",
    )
    least: float = Field(
        default=0.0, description="least margin, similarity (score) or share for the rule"
    )
    choose_on: Literal["first_split", "all_splits"] = Field(
        default="first_split",
        description="select on the first test split and test on the others; or select and test on "
        "all",
    )
    alpha: float = Field(
        default=0.05, ge=1e-6, lt=1, description="level of the tests and the intervals"
    )
    permutations: Count = Field(
        default=199, description="permuted scores that selection and test are repeated with"
    )
    masks: Count = Field(
        default=1000, description="random choices of as many units to compare with"
    )
    minutes: float = Field(
        default=15.0,
        gt=0,
        le=1e7,
        description="time for layers that do not feed the logits: with too little for all "
        "permutations and masks there are fewer, with too little for the fewest that reach alpha "
        "`auto` takes a layer that feeds them",
    )
    learned: bool = Field(
        default=False, description="also fit gains on the probe split by gradient, as a yardstick"
    )

    @property
    def by_concept(self) -> bool:
        """Whether concepts are named, and so nothing is searched."""
        return bool(self.suppress or self.amplify)


PAPER = Search()
PAPER_STUDY = Edit()
