"""Results as data frames and parquet files."""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import some_record

import emojax
from emojax.dissection.explanation_files import Explanation, ExplanationFile
from emojax.dissection.judge import MEASURES, Judgement
from emojax.editing.study_result import ChosenSetting, Study, StudySummary
from emojax.errors import InputError
from emojax.tables import Tabular
from emojax.training.evaluate import Evaluation


class Mixed(Tabular):
    """Every type that a column has."""

    def columns(self):
        return {
            "name": np.array(["a", None], dtype=object),
            "value": np.array([0.5, np.nan], np.float32),
            "holds": np.array([True, False]),
            "unit": [3, 4],
        }


def dissection():
    texts = np.eye(3, 24, dtype=np.float32)
    names = ["smile", "frown", "tears"]
    record = some_record("0")
    return emojax.dissect(record, names, similarity="correlation", text_embeddings=texts)


def test_columns_of_a_dissection_are_its_arrays():
    found = dissection()
    table = found.columns()
    assert list(table)[:4] == ["layer", "unit", "concept", "similarity"]
    assert {len(column) for column in table.values()} == {20}
    assert table["unit"].tolist() == list(range(20))
    ranked = np.sort(found.scores, axis=1)
    np.testing.assert_array_equal(table["similarity"], ranked[:, -1])
    np.testing.assert_array_equal(table["runner_up_similarity"], ranked[:, -2])
    np.testing.assert_array_equal(table["margin"], found.margin)
    second = np.array(["smile", "frown", "tears"], object)[found.scores.argsort(axis=1)[:, -2]]
    assert table["runner_up"].tolist() == second.tolist()
    np.testing.assert_array_equal(table["labelled"], found.trusted)


def test_columns_of_an_evaluation():
    logits = np.log(np.array([[1, 3], [1, 1], [9, 1]], np.float32))
    table = Evaluation(logits, np.array([1, 1, 0]), ("sad", "happy")).columns()
    assert table["label"].tolist() == ["happy", "happy", "sad"]
    assert table["predicted"].tolist() == ["happy", "sad", "sad"]
    assert table["right"].tolist() == [True, False, True]
    np.testing.assert_allclose(table["p_happy"], [0.75, 0.5, 0.1], rtol=1e-6)
    np.testing.assert_allclose(table["loss"], -np.log([0.75, 0.5, 0.9]), rtol=1e-6)


def test_columns_of_a_judgement_and_of_a_study():
    explained = [Explanation("lin2", unit, ("a",), (1.0,), 0.0, linear=False) for unit in (4, 7)]
    scores = np.arange(10.0).reshape(5, 2)
    judged = Judgement(
        ExplanationFile("mine", Path("mine.csv"), tuple(explained)),
        scores,
        np.stack([scores - 1, scores + 1]),
        scores[None],
    )
    table = judged.columns()
    assert table["unit"] == [4, 7]
    for place, name in enumerate(MEASURES):
        assert [*table[name], *table[f"{name}_low"]] == [*scores[place], *scores[place] - 1]
    sweep = {"tau": [0.0, 1.0], "accuracy": [0.5, 0.6]}
    summary = StudySummary(ChosenSetting("lin2", "threshold"), "weights", False, None, {})
    assert Study(summary, None, sweep=sweep).columns() == sweep


def test_a_data_frame():
    pytest.importorskip("pandas", reason="the dataframe extra (pandas) is not installed")
    frame = Mixed().to_dataframe()
    assert frame.columns.tolist() == ["name", "value", "holds", "unit"]
    assert frame["holds"].tolist() == [True, False]
    assert frame.isna().sum().tolist() == [1, 1, 0, 0]
    assert dissection().to_dataframe().query("similarity > margin")["layer"].eq("lin2").all()


def test_parquet(tmp_path):
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="the dataframe extra (pyarrow) is not installed"
    )
    path = Mixed().to_parquet(tmp_path / "mixed.parquet")
    table = parquet.read_table(path)
    assert list(map(str, table.schema.types)) == ["string", "float", "bool", "int64"]
    assert table["name"].to_pylist() == ["a", None]
    found = dissection()
    read = parquet.read_table(found.to_parquet(tmp_path / "units.parquet"))
    np.testing.assert_array_equal(read["similarity"], found.best)
    assert read["concept"].to_pylist() == found.columns()["concept"].tolist()


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_what_is_missing_is_named(library, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library}: pip install 'emojax\[dataframe\]'"):
        Mixed().to_dataframe() if library == "pandas" else Mixed().to_parquet(tmp_path / "x")
