"""`emojax explain` and `emojax judge` from end to end, on small inputs."""

import csv
import json

import pytest

from emojax import cli
from emojax.data.opening import open_split


@pytest.fixture(scope="module")
def explained(sound, tmp_path_factory):
    out = tmp_path_factory.mktemp("explain") / "run"
    args = ["--record", sound / "record", "--clip.path", sound / "clip", "--out", out]
    assert cli.main(["explain", *map(str, args), "--explain.most", "3"]) == 0
    return out


def judged(sound, *files, out, **further):
    args = ["judge", *files, "--data.path", sound / "fer", "--clip.path", sound / "clip"]
    args += ["--target.weights", sound / "vgg.safetensors", "--out", out, "--judge.alpha", "0.2"]
    args += [part for name, value in further.items() for part in (f"--{name}", value)]
    return cli.main([*map(str, args), "--judge.resamples", "20"])


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_explain(explained):
    rows = rows_of(explained / "explanations.csv")
    assert [row["unit"] for row in rows] == [str(unit) for unit in range(20)]
    assert list(rows[0])[-4:] == ["bias", "correlation", "label", "label_correlation"]
    means = json.loads((explained / "explanations.json").read_text())
    assert means["units"] == 20
    assert means["concepts"] == 25
    assert not (explained / "simulated.npz").exists()  # the record has no activations


@pytest.mark.long
def test_judge_files_of_four_forms(sound, explained, tmp_path, capsys):
    plain = tmp_path / "plain.csv"
    plain.write_text("layer,unit,description\nlin2,3,=1+1\nlin1,0,Smile\n")
    theirs = tmp_path / "theirs.csv"
    theirs.write_text("layer,unit,description,similarity\nlin2,3,Smile,0.4\nlin2,4,Frown,0.3\n")
    linear = tmp_path / "linear.csv"
    linear.write_text(
        "layer,unit,val correlation,weight0,concept0,weight1,concept1,bias,sim correlation\n"
        "lin2,3,0.4,0.5,Smile,-0.2,Frown,0.1,0.3\n"
    )
    files = (explained / "explanations.csv", plain, theirs, linear)
    assert judged(sound, *files, out=tmp_path / "run") == 0
    said = capsys.readouterr()
    flagged = " ".join(said.err.split())
    assert "explanations.csv was made with the encoder that judges it" in flagged
    assert "plain.csv does not say which images made it" in flagged
    rows = rows_of(tmp_path / "run" / "judgement.csv")
    assert len(rows) == 25
    assert rows[20]["explanation"] == "'=1+1"  # no formula for a spreadsheet
    assert rows[0]["explanation"].startswith("'") or not rows[0]["explanation"].startswith("+")
    for row in rows:
        assert float(row["f1_low"]) <= float(row["f1"]) + 1e-6
        assert -1 <= float(row["correlation"]) <= 1
    judgement = json.loads((tmp_path / "run" / "judgement.json").read_text())
    assert sorted(judgement["files"]) == sorted(file.name for file in files)
    assert [each["units"] for each in judgement["differences"]] == [1, 2, 1]
    assert rows[24]["explanation"] == "'+0.5·Smile -0.2·Frown +0.1"
    assert len(judgement["sanity"]) == 18


def test_images_that_made_a_file_are_refused(sound, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "labels.csv").write_text("layer,unit,description\nlin2,3,Smile\n")
    key = open_split(sound / "fer", "private_test").key
    (folder / "manifest.json").write_text(json.dumps({"inputs": {"images": key}}))
    assert judged(sound, folder / "labels.csv", out=tmp_path / "judge") == 2
    assert (
        "was made on FER2013 private_test, which it would be judged on" in capsys.readouterr().err
    )
    assert not (tmp_path / "judge").exists()


BAD = [
    ("layer,unit,description\nlin9,3,Smile\n", "line 2: no layer 'lin9'"),
    ("layer,unit,description\nlin2,20,Smile\n", "unit '20' is not one of 0…19 of lin2"),
    (f"layer,unit,description\nlin2,3,{'x' * 10_000}\n", "a concept of 10000 characters"),
    (f"layer,unit,description\nlin2,3,{'x ' * 400}\n", "tokens long"),
    ("unit,description\n3,Smile\n", "not layer,unit,description or"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_hostile_files_are_refused_in_one_line(sound, tmp_path, capsys, text, message):
    path = tmp_path / "file.csv"
    path.write_text(text)
    assert judged(sound, path, out=tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("emojax: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert not (tmp_path / "run").exists()


def test_nothing_to_judge(sound, tmp_path, capsys):
    assert judged(sound, out=tmp_path / "run") == 2
    assert "name a file of explanations: emojax judge FILE" in capsys.readouterr().err
    assert judged(sound, "a.csv", "a.csv", out=tmp_path / "run") == 2
    assert "named twice" in capsys.readouterr().err
    calibrated = {"calibration.a": 1.0}
    assert judged(sound, "a.csv", out=tmp_path / "run", **calibrated) == 2
    assert "a and b are needed together" in capsys.readouterr().err
