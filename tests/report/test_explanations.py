"""What the page takes from explanations and judgements, which may be anybody's files."""

import json

import numpy as np
import pytest

from emojax.errors import InputError
from emojax.report import explanations, judgement

LAYERS = {"lin2": 3}
HEADER = "layer,unit,weight0,concept0,weight1,concept1,bias,correlation,label,label_correlation\n"
ROWS = "lin2,0,1.5,Smile,-0.5,Frown,0.1,0.7,Smile,0.5\nlin2,2,0,0,0,0,0.1,nan,Smile,\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / explanations.TABLE).write_text(HEADER + ROWS)
    values = np.array([[0.0, 1], [2.0, 1], [4.0, 1]])
    np.savez_compressed(tmp_path / explanations.SAMPLE, real=values, simulated=values[::-1])
    return tmp_path


def test_page_data(folder):
    read = explanations.read(folder, LAYERS)
    data = explanations.page_data(read, {("lin2", 0): 7})
    assert data["concepts"] == ["Smile", "Frown"]
    assert data["units"] == {
        7: {
            "concepts": [0, 1],
            "weights": [1.5, -0.5],
            "bias": 0.1,
            "correlation": 0.7,
            "label": 0.5,
            "real": "Ag/",  # 32 of 63 steps is the middle
            "simulated": "/gA",
        }
    }
    both = explanations.page_data(read, {("lin2", 2): 0})["units"][0]
    assert both["correlation"] is both["label"] is None
    assert both["real"] == "AAA"


def test_none_without_the_table(tmp_path):
    assert explanations.read(tmp_path, LAYERS) is None


@pytest.mark.parametrize(
    "sample", [b"no", b"", {"real": np.zeros((2, 3))}, {"real": np.full((2, 2), np.nan)}]
)
def test_damaged_samples_are_refused(folder, sample):
    path = folder / explanations.SAMPLE
    if isinstance(sample, bytes):
        path.write_bytes(sample)
    else:
        np.savez_compressed(path, simulated=sample["real"], **sample)
    with pytest.raises(InputError, match=r"simulated\.npz: .*; explain again"):
        explanations.read(folder, LAYERS)


JUDGEMENT = {
    "files": {"<b>.csv": {"f1": [0.5, 0.4, 0.6]}, "b": {"f1": [-0.1, -0.2, 0.0]}},
    "units": {"<b>.csv": 1200, "b": 2},
    "differences": [
        {"first": "<b>.csv", "second": "b", "units": 2, "measures": {"f1": [0.1, 0.0, 0.2]}}
    ],
    "sanity": {"f1": {"missing": 1.0, "extra": 0.5, "passes": False, "sound": True}},
    "warnings": ["x" * 5000],
}


def test_judgement(tmp_path):
    (tmp_path / judgement.FILE).write_text(json.dumps(JUDGEMENT))
    section = judgement.section(judgement.read(tmp_path))
    assert section["head"] == ["explanations", "units", "f1"]
    assert section["rows"] == [
        ["<b>.csv", "1,200", "0.500 (0.400 … 0.600)"],
        ["b", "2", "−0.100 (−0.200 … 0.000)"],
        ["b less <b>.csv", "2", "0.100 (0.000 … 0.200)"],
    ]
    assert section["sanity"] == [["f1", "100.0%", "50.0%", "fails", "passes"]]
    assert len(section["warnings"][0]) == 1000


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps(JUDGEMENT | {"files": {"a": 1}})])
def test_damaged_judgements_are_refused(tmp_path, text):
    (tmp_path / judgement.FILE).write_text(text)
    with pytest.raises(InputError, match=r"judgement\.json: .*; judge again") as refusal:
        judgement.read(tmp_path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="no judgement at"):
        judgement.read(tmp_path / "none")
