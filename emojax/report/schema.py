"""What the page reads of a run folder's JSON files, as types: a file that passed through other
hands may hold anything.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from emojax.editing.study_result import StudySummary


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Settings(_Part):
    data: dict[str, Any] = {}
    target: dict[str, Any] = {}
    clip: dict[str, Any] = {}
    concepts: dict[str, Any] = {}
    dissect: dict[str, Any] = {}
    effective: "_Settings | None" = None


class Page(_Part):
    """What a run's page shows beside the run, so that the page made anew shows it too.

    Folders and files of other runs are given by their absolute paths.
    """

    images: Literal["none", "thumbnails"]
    audit: str | None = None
    explanations: str | None = None
    judgement: str | None = None


class Manifest(_Part):
    """`manifest.json`."""

    format: Literal["emojax run 1"] | None = None  # runs of older versions have none
    verb: str
    settings: _Settings
    started: str = ""
    versions: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    devices: list[Any] = []
    inputs: dict[str, str] = {}
    page: Page | None = None  # of the last page, where one was made


class _Confidence(_Part):
    significant_at_q05: int | None = None
    halves_agree: int | None = None
    trusted: int | None = None


class _Agreement(_Part):
    units: int
    attributes: int
    best: float
    among_three: float
    auroc_of_label: float
    auroc_of_random: float
    auroc_of_best: float
    rank_correlation: float


class _Labelled(_Part):
    labelled: float
    right: float


class _ZeroShot(_Part):
    images: int
    accuracy: float
    chance: float
    kappa: float = 0.0
    weak: bool


class _Encoder(_Part):
    name: str
    trained_on: str | None = None
    zero_shot: _ZeroShot | None = None


@dataclass(frozen=True)
class EditOnly:
    """The study in the `summary.json` of a sweep."""

    edit: StudySummary


@dataclass(frozen=True)
class MaybeEdit:
    """The study in the `summary.json` of a dissection, or of a run that edits."""

    edit: StudySummary | None = None


class Summary(_Part):
    """`summary.json` of a dissection, and of a run that edits."""

    images: int
    concepts: int
    similarity: str
    prior: str | None = None
    tau: float
    antialias: bool | None = None  # of the probe's resize; runs of older versions do not say
    encoder: _Encoder | None = None
    pool: str | None = None
    tokens: str | None = None
    network: str | None = None  # what the record calls them; older versions do not say
    clip: str | None = None
    image_set: str | None = None
    concept_set: str | None = None
    undescribed: str | None = None  # why there are no description accuracies
    confidence: _Confidence | None = None
    truth: dict[str, dict[str, _Agreement]] | None = None
    certainty: list[_Labelled] | None = None
    abstaining: _Labelled | None = None
