"""What is concluded from an edit's test and its controls, in a word, in plain language and as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from emojax.editing.edit import Setting
from emojax.errors import InputError
from emojax.ops.stats import mcnemar_exact

Finding = Literal["helps", "helps whatever the scores", "harms", "no effect shown"]

_HEADLINES = {
    "helps": "The edit helps, and the scores are why.",
    "helps whatever the scores": "The edit helps, but nothing shows that the scores are why.",
    "harms": "The edit harms.",
    "no effect shown": "No effect is shown.",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of an edit's effect. Bare counts are enough for a verdict; `assess` fills in the rest.

    Attributes:
      gained: images of the test that the edit puts right, by more networks than it puts wrong.
      lost: those it puts wrong.
      total: images of the test.
      alpha: level of the tests.
      change: in correct images, mean over the networks; None takes gained − lost.
      selected_on_test: whether the setting was chosen on the images of the test.
      setting: the setting; None when it is not known.
      p_scores: of the whole procedure's outcome among those with permuted scores; None when not measured.
      selection: how the setting was chosen: images, settings, change, p_search (the chance that the best setting of
        permuted scores looks as good on the images of the choice), grid.
      networks: for each network, numbers before and after, wins, losses and McNemar's p.
      intervals: differences of accuracy, macro recall and NLL, with their bootstrap intervals at level 1 − alpha.
      per_class: wins and losses by true class.
      controls: what else changes: all units alike, inverted, weight sums, learned gains, random masks, permuted scores.
    """

    gained: int
    lost: int
    total: int
    alpha: float = 0.05
    change: float | None = None
    selected_on_test: bool = False
    setting: Setting | None = None
    p_scores: float | None = None
    selection: Mapping[str, Any] | None = None
    networks: Sequence[Mapping[str, Any]] = ()
    intervals: Mapping[str, Any] = field(default_factory=dict)
    per_class: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not (self.gained >= 0 and self.lost >= 0 and self.gained + self.lost <= self.total):
            raise InputError(
                f"{self.gained} gained and {self.lost} lost of {self.total} images cannot be; counts are of different images"
            )
        if self.change is None:
            object.__setattr__(self, "change", float(self.gained - self.lost))

    @property
    def p_value(self) -> float:
        """McNemar's exact p, two-sided; over images, by majority of the networks when there are several."""
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
        """The verdict in a word; see the module's first lines for what each needs."""
        if self.p_value > self.alpha or self.gained == self.lost:
            return "no effect shown"
        if self.gained < self.lost:
            return "harms"
        if self.p_scores is not None and self.p_scores <= self.alpha:
            return "helps"
        # The best of a search on the test's own images, and nothing that says how good a best of that search would be
        return "no effect shown" if self.selected_on_test else "helps whatever the scores"

    @property
    def verdict(self) -> str:
        """A paragraph in plain language, with its numbers."""
        return " ".join(_sentences(self))

    def summary(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON."""
        values = {name: value for name, value in asdict(self).items() if name != "setting"}
        setting = None if self.setting is None else self.setting._asdict()
        tests = {"p_value": self.p_value, "p_networks": self.p_networks}
        return values | tests | {"setting": setting, "finding": self.finding, "verdict": self.verdict}


def _signed(value: float) -> str:
    return f"{value:+,.4g}".replace("-", "−") if value else "±0"


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def _sentences(found: Evidence) -> list[str]:
    what = "The edit" if found.setting is None else f"The edit ({found.setting})"
    networks = len(found.networks)
    shown, share = _signed(found.change), f"{found.change / found.total * 100:+.2f}".replace("-", "−")
    counts = f"{found.gained:,} images gained and {found.lost:,} lost" + (
        f" by most of {networks} networks" * (networks > 1)
    )
    said = [
        _HEADLINES[found.finding],
        f"{what} changes correct predictions by {shown} of {found.total:,} ({share} points): {counts}.",
        _test(found, shown),
    ]
    if networks > 1:
        said.append(f"Over the {networks} networks the sign test gives {_p(found.p_networks)}.")
    if found.selection is not None:
        choice = found.selection
        line = f"The setting is the best of {choice['settings']} on {choice['name']} ({_signed(choice['change'])} there"
        if choice["p_search"] is not None:
            line += f"; the best of as many with permuted scores does as well with {_p(choice['p_search'])}"
        said.append(line + ").")
    if found.p_scores is not None and not found.selected_on_test:
        said.append(f"Choice and test repeated with permuted scores do as well with {_p(found.p_scores)}.")
    if found.intervals:
        said.append(f"Differences with {100 * (1 - found.alpha):g} % intervals: {_differences(found.intervals)}.")
    if found.controls:
        said.append(f"For comparison: {_compared(found.controls)}.")
    return said


def _test(found: Evidence, shown: str) -> str:
    """McNemar's test, and what a choice on the same images takes away from it."""
    test = f"McNemar's exact {_p(found.p_value)}"
    searched = "the setting was chosen on the very images of the test"
    if found.p_value > found.alpha:
        even = f"; and {searched}, which this p-value does not count" if found.selected_on_test else ""
        return f"{shown} of {found.total:,} is not distinguishable from no effect ({test}{even})."
    if found.selected_on_test:
        return f"{test} does not count that {searched}; only the comparison with permuted scores does."
    return f"That is more than chance would change ({test})."


def _differences(intervals: Mapping[str, Any]) -> str:
    def one(name: str, scale: float, unit: str) -> str:
        at = intervals[name]
        low, high = (f"{x * scale:+.3f}" for x in at["interval"])
        return f"{name.replace('_', ' ')} {at['difference'] * scale:+.3f}{unit} [{low}, {high}]".replace("-", "−")

    return "; ".join(
        [one("accuracy", 100, " points"), one("macro_recall", 100, " points"), one("nll", 1, "").replace("nll", "NLL")]
    )


def _compared(controls: Mapping[str, Any]) -> str:
    names = {
        "all_up": "all units up {}",
        "all_down": "all units down {}",
        "inverted": "the edit inverted {}",
        "weight_sum": "units of large weights instead {}",
        "learned": "gains learned from labels {}",
    }
    said = [text.format(_signed(controls[name]["change"])) for name, text in names.items() if name in controls]
    if "random_masks" in controls:
        at = controls["random_masks"]
        said.append(
            f"{at['draws']:,} random choices of units {_signed(at['mean'])} on average, 95 % between {_signed(at['low'])} "
            f"and {_signed(at['high'])}, as good as the edit with {_p(at['p_value'])}"
        )
    return "; ".join(said)
