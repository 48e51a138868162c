"""`emojax report` and `emojax compare`: what they refuse."""

import json
import shutil

from hostile_run import copy_of

from emojax import cli


def refusal(capsys, *args) -> str:
    code = cli.main([str(arg) for arg in args])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1), err
    return err


def test_refusals(capsys, hostile, tmp_path):
    assert "name a run folder" in refusal(capsys, "report")
    assert "no run folder 'nowhere'" in refusal(capsys, "report", "nowhere")
    (tmp_path / "foreign").mkdir()
    assert "is not an emojax run" in refusal(capsys, "report", tmp_path / "foreign")
    whole = json.loads((hostile[0] / "summary.json").read_text())
    for name, damage, message in (
        ("manifest.json", b"{", "not JSON"),
        (
            "manifest.json",
            b'{"verb": "train", "settings": {}}',
            "is a run of `train`, which has no page",
        ),
        ("manifest.json", b"[]", "not an object"),
        (
            "manifest.json",
            b'{"verb": "run", "settings": {"data": 3}}',
            "settings.data: Input should be a valid dictionary",
        ),
        ("summary.json", b"{}", "images: Field required"),
        ("summary.json", b'{"images": "many"}', "images: Input should be a valid integer"),
        ("summary.json", whole | {"edit": {"setting": 3}}, "edit.setting: Input should be"),
        ("summary.json", whole | {"confidence": []}, "confidence: Input should be"),
        (
            "summary.json",
            whole | {"truth": {"units": {"wpmi": {"best": None}}}},
            "truth.units.wpmi.units: Field required",
        ),
        ("dissection.csv", None, "is half a run: dissection.csv missing"),
        ("dissection.csv", b"layer,unit\n", "no column concept"),
        (
            "dissection.csv",
            b"layer,unit,concept,similarity\nlin2,0,a\n",
            "line 2: 3 values for 4 columns",
        ),
        ("dissection.csv", b"layer,unit,concept,similarity\nlin2,0,a,b\n", "column similarity"),
        ("units.npz", b"PK", "units.npz: "),
        ("evidence.json", b'{"verdict": 3}', "gained: Field required"),
        (
            "evidence.json",
            {"gained": 1, "lost": 2, "total": 3, "networks": 4},
            "networks: Input should be",
        ),
        (
            "evidence.json",
            {"gained": 3, "lost": 2, "total": 1},
            "evidence.json: Value error, 3 gained and 2 lost of 1",
        ),
    ):
        folder = copy_of(hostile[0], tmp_path)
        before = (folder / "report.html").read_bytes()
        (folder / name).unlink()
        if damage is not None:
            (folder / name).write_bytes(
                json.dumps(damage).encode() if isinstance(damage, dict) else damage
            )
        assert message in refusal(capsys, "report", folder)
        assert (folder / "report.html").read_bytes() == before
        shutil.rmtree(folder)
    assert "cannot be shown" in refusal(capsys, "report", hostile[0], "--images", "thumbnails")
    assert "compare takes two or more" in refusal(
        capsys, "compare", hostile[0], "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()
