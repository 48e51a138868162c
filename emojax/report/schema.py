"""What the page reads of a run folder's JSON files, as types: a file that passed through other
hands may hold anything.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Settings(_Part):
    data: dict[str, Any] = {}
    target: dict[str, Any] = {}
    clip: dict[str, Any] = {}
    concepts: dict[str, Any] = {}
    dissect: dict[str, Any] = {}
    effective: "_Settings | None" = None


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


class _Setting(_Part):
    layer: str
    kind: str
    tau: float | None = None
    factor: float | None = None


class _Scores(_Part):
    images: int
    correct: int
    top1: float
    macro_recall: float
    nll: float


class _Tested(_Part):
    on: list[str]


class _Edit(_Part):
    setting: _Setting
    scope: str
    selected_on_test: bool = False
    tested: _Tested | None = None
    baseline: dict[str, _Scores] = {}
    edited: dict[str, _Scores] = {}
    verdict: str | None = None
    finding: str | None = None


class _Confidence(_Part):
    significant_at_q05: int
    halves_agree: int | None = None


class _Agreement(_Part):
    units: int
    attributes: int
    best: float
    among_three: float
    auroc_of_label: float
    auroc_of_random: float
    auroc_of_best: float
    rank_correlation: float


class EditOnly(_Part):
    """`summary.json` of a sweep."""

    edit: _Edit


class Summary(_Part):
    """`summary.json` of a dissection, and of a run that edits."""

    images: int
    concepts: int
    similarity: str
    tau: float
    confidence: _Confidence | None = None
    edit: _Edit | None = None
    truth: dict[str, dict[str, _Agreement]] | None = None
