"""What is concluded from an edit's test and its controls: a word, plain language, plain values.

`evidence/assess.py` makes an `Evidence`; `evidence.json` holds its `summary`, which the page reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from emojax.brief import brief
from emojax.editing.search import Setting
from emojax.errors import InputError
from emojax.ops.stats import mcnemar_exact

Finding = Literal["helps", "no effect of the scores shown", "harms", "no effect shown"]
RENAMED: dict[str, Finding] = {"helps whatever the scores": "no effect of the scores shown"}
"""Words of older versions, which run folders may hold, and what they are called now."""

Tone = Literal["good", "bad", "mixed", "neutral"]


class Measured(NamedTuple):
    """One measure before and after an edit, on the images of the test, as text for a table.

    Attributes:
      title: the measure's name.
      before: mean over the networks, a dash where it is not known; `after` likewise.
      change: their difference, and `interval` that of a bootstrap over images.
      found: better, worse or no difference shown.
    """

    title: str
    before: str
    after: str
    change: str
    interval: str
    found: str


_HEADLINES: dict[Finding, str] = {
    "helps": "The edit helps, and the scores are why.",
    "no effect of the scores shown": "No effect of the scores is shown.",
    "harms": "The edit harms.",
    "no effect shown": "No effect is shown.",
}


@brief
@dataclass(frozen=True)
class Evidence:
    """What is known of an edit's effect. Bare counts are enough for a verdict.

    Attributes:
      gained: images of the test that the edit puts right, by more networks than it puts wrong.
      lost: those it puts wrong.
      total: images of the test.
      alpha: level of the tests.
      change: in correct images, mean over the networks; None takes gained − lost.
      selected_on_test: whether the setting was selected on the images of the test.
      setting: the setting; None when it is not known.
      named: of an edit by named concepts, what it does, in words. Nothing was selected then, and
        the labels take the scores' part: `p_scores` compares with as many random units, or with
        random directions where the concepts are erased.
      p_scores: of the whole procedure's outcome among those with permuted scores; None when not
        measured.
      selection: how the setting was selected: images, settings, change, grid, and p_search, the
        chance that the best setting of permuted scores looks as good on the same images.
      networks: for each network, numbers before and after, wins, losses and McNemar's p.
      intervals: differences of accuracy, macro recall, NLL and calibration error, with their
        bootstrap intervals at level 1 − alpha.
      per_class: wins and losses by true class.
      controls: what else changes: all units alike, inverted, weight sums, learned gains, random
        masks, permuted scores.
    """

    gained: int
    lost: int
    total: int
    alpha: float = 0.05
    change: float | None = None
    selected_on_test: bool = False
    setting: Setting | None = None
    named: str | None = None
    p_scores: float | None = None
    selection: Mapping[str, Any] | None = None
    networks: Sequence[Mapping[str, Any]] = ()
    intervals: Mapping[str, Any] = field(default_factory=dict)
    per_class: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not (self.gained >= 0 and self.lost >= 0 and self.gained + self.lost <= self.total):
            raise InputError(
                f"{self.gained} gained and {self.lost} lost of {self.total} images cannot be; "
                "counts are of different images"
            )
        if self.change is None:
            object.__setattr__(self, "change", float(self.gained - self.lost))

    @property
    def net_change(self) -> float:
        """`change`, which is known once the object exists."""
        return float(self.gained - self.lost) if self.change is None else self.change

    @property
    def p_value(self) -> float:
        """McNemar's exact p over images, two-sided; of several networks the majority counts."""
        return mcnemar_exact(self.gained, self.lost)

    @property
    def p_networks(self) -> float | None:
        """Sign test over networks, two-sided; None for a single one."""
        if len(self.networks) < 2:
            return None
        signs = [np.sign(n["gained"] - n["lost"]) for n in self.networks]
        return mcnemar_exact(signs.count(1), signs.count(-1))

    @property
    def finding(self) -> Finding:
        """The verdict in a word; see `evidence/assess.py` for what each needs."""
        if self.p_value > self.alpha or self.gained == self.lost:
            return "no effect shown"
        if self.gained < self.lost:
            return "harms"
        if self.p_scores is not None and self.p_scores <= self.alpha:
            return "helps"
        # The best of a search on the test's own images is expected to look good; without permuted
        # scores nothing says how good.
        return "no effect shown" if self.selected_on_test else "no effect of the scores shown"

    @property
    def by_measure(self) -> dict[str, str]:
        """Accuracy, macro recall, NLL and calibration error (ECE): better, worse, or no difference
        shown by the interval.
        """
        findings = {}
        for name, (_, _, _, sign) in _MEASURES.items():
            if name in self.intervals:
                low, high = (sign * edge for edge in self.intervals[name]["interval"])
                better, worse = min(low, high) > 0, max(low, high) < 0
                findings[name] = "better" if better else "worse" if worse else "no difference shown"
        return findings

    @property
    def measured(self) -> list[Measured]:
        """A line of each measure that has an interval."""
        return [_measured(self, name, finding) for name, finding in self.by_measure.items()]

    @property
    def tone(self) -> Tone:
        """Good where something is better and nothing worse, and so on.

        An edit counts as better for correct predictions only if it `helps`: else the scores have no
        part in it. What it was selected by on the test's own images does not make it better.
        """
        others = {name: word for name, word in self.by_measure.items() if name != "accuracy"}
        worse = self.finding == "harms" or "worse" in others.values()
        better = "better" in others.values() and not self.selected_on_test
        better = better or self.finding == "helps"
        if better:
            return "mixed" if worse else "good"
        return "bad" if worse else "neutral"

    @property
    def sentence(self) -> str:
        """The verdict in a sentence, for under the table of `measured`."""
        besides = _besides(self)
        headline = " ".join([_HEADLINES[self.finding], *([besides] if besides else [])])
        counts = f"{_counts(self)} of {self.total:,} (McNemar's exact {_p(self.p_value)})."
        selected = " The setting was chosen on these very images." if self.selected_on_test else ""
        return f"{headline} {counts}{selected}"

    @property
    def verdict(self) -> str:
        """A paragraph in plain language, with its numbers."""
        return " ".join(_sentences(self))

    def summary(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON."""
        values = {name: value for name, value in asdict(self).items() if name != "setting"}
        return values | {
            "p_value": self.p_value,
            "p_networks": self.p_networks,
            "setting": None if self.setting is None else self.setting._asdict(),
            "finding": self.finding,
            "by_measure": self.by_measure,
            "verdict": self.verdict,
        }


# Title, scale and unit of each measure that has an interval, and the sign of what is better. Shares
# are shown in per cent, their differences in points.
_MEASURES = {
    "accuracy": ("accuracy", 100, " points", 1),
    "macro_recall": ("macro recall", 100, " points", 1),
    "nll": ("NLL", 1, "", -1),
    "ece": ("calibration error", 100, " points", -1),
}
TITLES = {name: title for name, (title, *_) in _MEASURES.items()}
"""What tables and sentences call the measures."""


def _measured(evidence: Evidence, name: str, finding: str) -> Measured:
    title, scale, unit, _ = _MEASURES[name]
    low, high = (f"{edge * scale:+.3f}" for edge in evidence.intervals[name]["interval"])
    sides = []
    for side in ("before", "after"):
        values = [network[side][name] for network in evidence.networks]
        shown = float(np.mean(values)) * scale if values else None
        text = "–" if shown is None else f"{shown:.2f} %" if unit else f"{shown:.4f}"
        sides.append(text)
    change = f"{evidence.intervals[name]['difference'] * scale:+.3f}{unit}"
    texts = [*sides, change, f"{low} to {high}", finding]
    return Measured(title, *(text.replace("-", "−") for text in texts))


def _counts(evidence: Evidence) -> str:
    """How many images the edit gains and loses."""
    images = "image" if evidence.gained == 1 else "images"
    counts = f"{evidence.gained:,} {images} gained and {evidence.lost:,} lost"
    if len(evidence.networks) > 1:
        counts += f" by most of {len(evidence.networks)} networks"
    return counts


def _signed(value: float) -> str:
    return f"{value:+,.4g}".replace("-", "−") if value else "±0"


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def _sentences(evidence: Evidence) -> list[str]:
    which = evidence.named or evidence.setting
    edit = "The edit" if which is None else f"The edit ({which})"
    change = evidence.net_change
    shown = _signed(change)
    points = f"{change / evidence.total * 100:+.2f}".replace("-", "−")
    sentences = [
        _of_labels(_HEADLINES[evidence.finding], evidence),
        *filter(None, [_besides(evidence)]),
        f"{edit} changes correct predictions by {shown} of {evidence.total:,} ({points} points): "
        f"{_counts(evidence)}.",
        _test(evidence, shown),
    ]
    if evidence.p_networks is not None:
        sign_test = _p(evidence.p_networks)
        sentences.append(
            f"Over the {len(evidence.networks)} networks the sign test gives {sign_test}."
        )
    if evidence.selection is not None:
        sentences.append(_selected(evidence.selection))
    if evidence.named is not None and evidence.p_scores is not None:
        others = _random_controls(evidence)
        sentences.append(f"{others.capitalize()} do as well with {_p(evidence.p_scores)}.")
    elif evidence.p_scores is not None and not evidence.selected_on_test:
        p_scores = _p(evidence.p_scores)
        sentences.append(
            f"Choice and test repeated with permuted scores do as well with {p_scores}."
        )
    if evidence.intervals:
        level = 100 * (1 - evidence.alpha)
        differences = _differences(evidence)
        sentences.append(f"Differences with {level:g} % intervals: {differences}.")
    if evidence.controls:
        sentences.append(f"For comparison: {_compared(evidence.controls)}.")
    return sentences


def _of_labels(sentence: str, evidence: Evidence) -> str:
    """The sentence, about labels where the edit names concepts and about scores otherwise."""
    return sentence if evidence.named is None else sentence.replace("scores", "labels")


def _random_controls(evidence: Evidence) -> str:
    """What an edit by named concepts is compared with."""
    directions = "random_directions" in evidence.controls
    return "random directions" if directions else "as many random units"


def _selected(selection: Mapping[str, Any]) -> str:
    """Which of how many settings this is, and how good a best of as many would look by chance."""
    change = _signed(selection["change"])
    line = (
        f"The setting is the best of {selection['settings']} on {selection['name']} ({change} there"
    )
    if selection["p_search"] is not None:
        p_search = _p(selection["p_search"])
        line += f"; the best of as many with permuted scores does as well with {p_search}"
    return line + ")."


def _test(evidence: Evidence, shown: str) -> str:
    """McNemar's test, and what a selection on the same images takes away from it."""
    test = f"McNemar's exact {_p(evidence.p_value)}"
    searched = "the setting was chosen on the very images of the test"
    if evidence.p_value > evidence.alpha:
        uncounted = ""
        if evidence.selected_on_test:
            uncounted = f"; and {searched}, which this p-value does not count"
        total = f"{evidence.total:,}"
        return f"{shown} of {total} is not distinguishable from no effect ({test}{uncounted})."
    if evidence.selected_on_test:
        return (
            f"{test} does not count that {searched}; only the comparison with permuted scores does."
        )
    line = f"That is more than chance would change ({test})"
    if evidence.finding != "no effect of the scores shown":
        return f"{line}."
    # Many networks gain a little from any scaling: with random scores this is no rare result.
    if evidence.p_scores is None:
        unknown = f"{line}; whether the scores have a part in it was not tested."
        return _of_labels(unknown, evidence)
    if evidence.named is not None:
        others = _random_controls(evidence)
        return f"{line}, but {others} do as well: it does not speak for the labels."
    return f"{line}, but edits by permuted scores do as well: it does not speak for the scores."


def _differences(evidence: Evidence) -> str:
    lines = []
    for name, finding in evidence.by_measure.items():
        title, scale, unit, _ = _MEASURES[name]
        difference = evidence.intervals[name]["difference"] * scale
        low, high = (f"{edge * scale:+.3f}" for edge in evidence.intervals[name]["interval"])
        line = f"{title} {difference:+.3f}{unit} [{low}, {high}]".replace("-", "−")
        lines.append(line if finding == "no difference shown" else f"{line}, {finding}")
    return "; ".join(lines)


def _besides(evidence: Evidence) -> str | None:
    """What else changes than the finding says: an edit without an effect need not be harmless."""
    silent = evidence.finding.startswith("no effect")
    expected = "better" if evidence.finding == "helps" else "worse"
    changed = [
        f"{_MEASURES[name][0]} is {finding}"
        for name, finding in evidence.by_measure.items()
        if finding != "no difference shown" and (silent or finding != expected)
    ]
    return f"But {' and '.join(changed)}." if changed else None


def _compared(controls: Mapping[str, Any]) -> str:
    texts = {
        "all_up": "all units up {}",
        "all_down": "all units down {}",
        "inverted": "the edit inverted {}",
        "weight_sum": "units of large weights instead {}",
        "learned": "gains learned from labels {}",
    }
    lines = [
        text.format(_signed(controls[name]["change"]))
        for name, text in texts.items()
        if name in controls
    ]
    drawn = {"random_masks": "choices of units", "random_directions": "directions"}
    for name, kind in drawn.items():
        if name not in controls:
            continue
        random = controls[name]
        mean = _signed(random["mean"])
        low = _signed(random["low"])
        high = _signed(random["high"])
        lines.append(
            f"{random['draws']:,} random {kind} {mean} on average, "
            f"95 % between {low} and {high}, as good as the edit with {_p(random['p_value'])}"
        )
    return "; ".join(lines)
