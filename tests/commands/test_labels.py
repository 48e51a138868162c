"""`emojax labels`: all settings of a record in one run folder."""

import csv

import pytest

from emojax import cli
from emojax.dissection import label_settings


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(sound, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels") / "out"
    given = ["--record", sound / "record", "--clip.path", sound / "clip", "--concepts.path"]
    # Short for --labels.…: the same settings have these names in other commands.
    tried = ["--dissect.similarity", "soft_wpmi", "correlation", "--dissect.a", "2", "10"]
    tried += ["--dissect.top-k", "5", "--dissect.lam", "0.6", "1", "--dissect.prior", "images"]
    folders = ["--out", out, "--cache", out.parent / "cache"]
    args = map(str, ["labels", *given, "classes7", *tried, *folders])
    assert cli.main(list(args)) == 0
    return out


@pytest.mark.slow
def test_a_row_for_every_setting(folder):
    settings = rows_of(folder / "settings.csv")
    grid = label_settings.grid(
        ("soft_wpmi", "correlation"), a=(2.0, 10.0), lam=(0.6, 1.0), top_k=(5,), prior=("images",)
    )
    assert len(settings) == len(grid) == 5
    assert {row["similarity"] for row in settings} == {"soft_wpmi", "correlation"}
    assert all(0 <= float(row["same_as_default"]) <= 1 for row in settings)
    assert all(float(row["effective_labels"]) <= 7 for row in settings)
    assert len(rows_of(folder / "interpretability.csv")) == 5


@pytest.mark.slow
def test_a_share_for_every_unit(folder):
    units = rows_of(folder / "units.csv")
    assert len(units) == 20
    assert all(0 <= float(row["share_of_settings"]) <= 1 for row in units)
    assert (folder / "figures" / "label_settings.png").stat().st_size > 1000
