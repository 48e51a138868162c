"""What a study of edits found: `Study`, its tables and the summary that `summary.json` holds."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from emojax.brief import brief
from emojax.data.image_set import ImageSet
from emojax.editing.search import Kind, Scope
from emojax.evidence.verdict import Evidence, Finding
from emojax.models.classifier import Editable
from emojax.tables import Tabular
from emojax.training.evaluate import Evaluation, join

Table = dict[str, Sequence[Any] | np.ndarray]  # columns by name


@dataclass(frozen=True)
class SplitResult:
    """A network's results on one test split, as `Evaluation.summary` gives them."""

    images: int
    correct: int
    top1: float
    top2: float
    macro_recall: float
    nll: float
    recall: dict[str, float | None]
    correct_per_class: dict[str, int]
    confusion: list[list[int]]
    classes: list[str] = field(default_factory=list)


def results_by_split(
    names: Sequence[str], evaluations: Sequence[Evaluation]
) -> dict[str, SplitResult]:
    """Each split alone and, when there are several, all pooled."""
    by_name = dict(zip(names, evaluations, strict=True))
    if len(by_name) > 1:
        by_name["all"] = join(*evaluations)
    return {name: SplitResult(**result.summary()) for name, result in by_name.items()}


def pooled(splits: Mapping[str, SplitResult] | None) -> SplitResult | None:
    """Results on all test splits together, or on the only one."""
    return splits.get("all", next(iter(splits.values()))) if splits else None


@dataclass(frozen=True)
class ChosenSetting:
    """The setting that was selected; of gains from a file, the layer alone is known.

    `concepts` says in words what an edit by named concepts does.
    """

    layer: str
    kind: Kind | Literal["file", "concepts", "erased"]
    tau: float | None = None
    factor: float | None = None
    concepts: str | None = None


@dataclass(frozen=True)
class Tested:
    """The test: names of its image sets, its images, those that the edit gained and lost."""

    on: list[str]
    images: int
    gained: int
    lost: int


@brief
@dataclass(frozen=True)
class StudySummary:
    """The study in `summary.json`, under `edit`.

    Attributes:
      setting: of the edit.
      scope: what its gains scale.
      selected_on_test: whether it was selected on the images of the test.
      baseline: results of the unedited network by split; `all` are all of them. None where the
        sweep did not try it.
      edited: those of the edited network.
      layer_chosen: what chose the layer.
      limited: what was left out to stay within `--edit.minutes`.
      tested: where, and with what result.
      finding: the verdict in a word.
      p_value: McNemar's.
      verdict: in plain language.
      by_measure: accuracy, macro recall, NLL and calibration error: better, worse or no difference
        shown.

    The last seven are None where there was no such choice or test.
    """

    setting: ChosenSetting
    scope: Scope
    selected_on_test: bool
    baseline: dict[str, SplitResult] | None
    edited: dict[str, SplitResult]
    layer_chosen: str | None = None
    limited: str | None = None
    tested: Tested | None = None
    finding: Finding | None = None
    p_value: float | None = None
    verdict: str | None = None
    by_measure: dict[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, without what does not apply."""
        values = dataclasses.asdict(self).items()
        return {name: x for name, x in values if x is not None or name == "baseline"}


@brief
@dataclass(frozen=True)
class Study(Tabular):
    """What a study found; tables are empty where they do not apply.

    Attributes:
      summary: as numbers and words.
      edited: the edited network.
      selected_on: image sets that the edit was selected on.
      sweep: every setting of the grid, on all test splits together.
      thresholds: every threshold that changes anything, for layers where all of them are cheap.
      bands: accuracy with the setting's factor on random units, at sizes along all thresholds.
      edited_units: of an edit by named concepts, its units, their gains, and what each of them
        changes by itself, by class.
      evidence: None for ten crops.
    """

    summary: StudySummary
    edited: Editable
    selected_on: tuple[ImageSet, ...] = ()
    sweep: Table = field(default_factory=dict)
    thresholds: Table = field(default_factory=dict)
    bands: Table = field(default_factory=dict)
    edited_units: Table = field(default_factory=dict)
    evidence: Evidence | None = None

    def columns(self) -> Table:
        """The sweep: a row per setting."""
        return self.sweep
