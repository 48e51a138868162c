"""What a dissection gives: every unit's label, how sure it is, and how well it describes the unit.

A column of trust more is a field of `Confidence` (what scoring knows) or a property of `Dissection`
(what follows from scores and record). Shapes: U units of all layers side by side, C concepts.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from emojax.brief import brief
from emojax.data.concepts import ConceptSet
from emojax.dissection.options import Prior, Similarity, UnitRule, method
from emojax.dissection.trust import HeldOut, Hubs, hubs
from emojax.errors import InputError
from emojax.probing.record import ProbeRecord
from emojax.tables import Tabular, unit_columns

DESCRIBED_BY = 10  # top images that decide whether a label describes a unit (the paper's Table 1)


@brief
@dataclass(frozen=True)
class Confidence:
    """Whether the labels are more than chance, and whether they hold on either half of the images.

    Attributes:
      half_labels: labels from even and from odd images alone; None when a half has too few images.
      held_out: correlation with these labels on the half that did not choose; None without them.
      p_value: chance that a random list of as many images scores this high with its own best
        concept, for consensus by its soft_wpmi; None but for it and the two WPMI functions.
      q_value: p_value adjusted over all units (Benjamini–Hochberg); None likewise.
    """

    half_labels: Int[np.ndarray, "2 U"] | None
    held_out: HeldOut | None
    p_value: Float[np.ndarray, " U"] | None = None
    q_value: Float[np.ndarray, " U"] | None = None

    def holds(self, labels: Int[np.ndarray, " U"]) -> Bool[np.ndarray, " U"] | None:
        """Where both halves give the unit's label."""
        return None if self.half_labels is None else (self.half_labels == labels).all(axis=0)


@brief
@dataclass(frozen=True)
class Description:
    """How well labels describe units.

    Attributes:
      accuracy: share of each unit's top 10 images whose class its label speaks for; NaN for a label
        that speaks for no class.
      chance: that share for random images; NaN likewise.
    """

    accuracy: Float[np.ndarray, " U"]
    chance: Float[np.ndarray, " U"]


@brief
@dataclass
class Dissection(Tabular):
    """Scores of every unit with every concept, and the record and concepts they came from.

    Attributes:
      record: the probe record.
      concepts: the concept set.
      similarity: name of the similarity function.
      scores: float32; comparable only within a layer, probe set and concept set. NaN where the
        function is undefined, as rank_reorder is for a mean cosine below 0: such a pair never
        wins.
      confidence: of the labels; None for rank_reorder and cos_similarity_cubed, and where it was
        left out.
      prior: what the two WPMI functions, and consensus, compare log-likelihoods with; None for the
        others.
    """

    record: ProbeRecord
    concepts: ConceptSet
    similarity: Similarity
    scores: Float[np.ndarray, "U C"]
    confidence: Confidence | None = None
    prior: Prior | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """A row per unit, as in `dissection.csv`: label, similarity, trust, description [U].

        What is not known is NaN, or None where a name or a yes is wanted.
        """
        names = np.array(self.concepts.concepts, dtype=object)
        second = self.labels if self.runner_up is None else self.runner_up
        score = self.scores[np.arange(len(self.scores)), second]
        if self.runner_up is None:
            score = np.full_like(score, np.nan)
        table = unit_columns(self.record.layers) | {
            "concept": names[self.labels],
            "similarity": self.best,
            "runner_up": np.where(np.isnan(score), np.array(None), names[second]),
            "runner_up_similarity": score,
            "margin": self.best - score,
        }
        table |= self._trust_columns()
        if self.description is not None:
            table |= {
                "description_accuracy": self.description.accuracy,
                "chance": self.description.chance,
            }
        return table

    def _trust_columns(self) -> dict[str, np.ndarray]:
        """What says how far a label can be trusted, by name."""
        confidence = self.confidence
        if confidence is None:
            return {}
        table = {}
        if confidence.p_value is not None and confidence.q_value is not None:
            table |= {"p_value": confidence.p_value, "q_value": confidence.q_value}
        holds = confidence.holds(self.labels)
        unknown = np.full(len(self.labels), None, dtype=object)
        table["halves_agree"] = unknown if holds is None else holds
        if confidence.held_out is not None:
            table |= {
                "held_out": confidence.held_out.correlation,
                "held_out_low": confidence.held_out.low,
                "held_out_high": confidence.held_out.high,
            }
        if self.trusted is not None:
            table["labelled"] = self.trusted
        return table

    @property
    def method(self) -> str:
        """Similarity function and prior, as the tables name them."""
        return method(self.similarity, self.prior)

    @cached_property
    def undefined(self) -> int:
        """Pairs of unit and concept without a score."""
        return int(np.isnan(self.scores).sum())

    @cached_property
    def ranked(self) -> Float[np.ndarray, "U C"]:
        """The scores, with undefined ones below all others (the least float32)."""
        return np.where(np.isnan(self.scores), np.finfo(np.float32).min, self.scores)

    @cached_property
    def labels(self) -> Int[np.ndarray, " U"]:
        """Index of each unit's best concept; ties to the earlier concept."""
        return self.ranked.argmax(axis=1)

    @cached_property
    def best(self) -> Float[np.ndarray, " U"]:
        """Each unit's maximum similarity."""
        return self.ranked.max(axis=1)

    @cached_property
    def runner_up(self) -> Int[np.ndarray, " U"] | None:
        """Index of each unit's second-best concept, whose score is NaN where only the best has one.

        None with a single concept.
        """
        if len(self.concepts) < 2:
            return None
        others = self.ranked.copy()
        others[np.arange(len(others)), self.labels] = -np.inf
        return others.argmax(axis=1)

    @cached_property
    def margin(self) -> Float[np.ndarray, " U"] | None:
        """Each unit's maximum similarity less its second-largest; None with a single concept."""
        if self.runner_up is None:
            return None
        return self.best - self.scores[np.arange(len(self.scores)), self.runner_up]

    @cached_property
    def trusted(self) -> Bool[np.ndarray, " U"] | None:
        """Whether a label stands, or `dissect` should rather give none.

        It stands if the unit varies, both halves of the images choose the label, and the 95 %
        interval of its correlation on the half that did not choose lies above 0. None where that is
        not known.
        """
        if self.confidence is None or self.confidence.held_out is None:
            return None
        holds = self.confidence.holds(self.labels)
        assert holds is not None  # `held_out` is of the halves' labels
        return holds & (self.confidence.held_out.low > 0) & ~self.record.constant

    @cached_property
    def hubs(self) -> Hubs:
        """How the labels spread over the concepts."""
        return hubs(self.labels)

    def layer_scores(self, layer: str) -> Float[np.ndarray, " units"]:
        """Maximum similarity of the units of one layer.

        Raises:
          InputError: the layer was not probed.
        """
        layers = list(self.record.layers)
        if layer not in layers:
            raise InputError(f"layer {layer!r} was not probed; probed: {', '.join(layers)}")
        return self.best[self.record.segment_ids == layers.index(layer)]

    def units(
        self, *concepts: str, rule: UnitRule = "label", least: float = 0.0
    ) -> dict[str, Bool[np.ndarray, " units"]]:
        """Which units of each layer stand for one of the concepts.

        Rules: `label`, the concept is the unit's best; `trusted`, and that label stands; `margin`,
        it is the best and its margin over the runner-up at least `least`; `score`, its similarity
        is at least `least`, whether best or not. `Explanations.units` has the fifth, `share`.

        Raises:
          InputError: a concept is not in the set, there is no such rule, or the labels' trust or
            margin that the rule asks for is not known.
        """
        wanted = self.concepts.indices(concepts)
        labelled = np.isin(self.labels, wanted)
        if rule == "label":
            return self.record.by_layer(labelled)
        if rule == "trusted" and self.trusted is not None:
            return self.record.by_layer(labelled & self.trusted)
        if rule == "margin" and self.margin is not None:
            return self.record.by_layer(labelled & (self.margin >= least))
        if rule == "score":
            similar = self.ranked[:, wanted].max(axis=1, initial=-np.inf)
            return self.record.by_layer(np.asarray(similar >= least))
        raise InputError(
            f"units cannot be chosen by the rule {rule!r} here: known are label, score, margin (of "
            "several concepts) and trusted (with a similarity whose labels are tested)"
        )

    @property
    def undescribed(self) -> str | None:
        """Why it is not known how well labels describe the units' images; None where it is."""
        if self.record.labels is None:
            return "the record has no classes of its images"
        if self.description is None or np.isnan(self.description.accuracy).all():
            return (
                "no label speaks for a class of the images; a csv of concepts with the columns "
                "concept,emotions says which of them each speaks for"
            )
        return None

    @cached_property
    def description(self) -> Description | None:
        """How well the labels describe the units; None without class labels or emotions."""
        classes = self.record.labels
        if classes is None:
            return None
        mask = self.concepts.class_mask(self.record.classes)
        if mask is None:
            return None
        described = mask[self.labels]  # [U, classes]: those that the unit's label speaks for
        top = self.record.top_k(min(DESCRIBED_BY, self.record.images)).indices
        hits = np.take_along_axis(described, classes[top], axis=1)
        # Random images show each class as often as the probe set does.
        share = np.bincount(classes, minlength=len(self.record.classes)) / self.record.images
        silent = ~described.any(axis=1)
        accuracy, chance = hits.mean(axis=1), described @ share
        accuracy[silent] = chance[silent] = np.nan
        return Description(accuracy, chance)
