"""`emojax report` and `emojax compare`: what they refuse."""

import json

import pytest
from hostile_run import copy_of, page_data
from refusals import table

from emojax import cli, store
from emojax.commands import report as reporting
from emojax.report.results import read_page


def refusal(capsys, *args) -> str:
    code = cli.main([str(arg) for arg in args])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1), err
    return err


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    table(
        ("no JSON", "manifest.json", b"{", "not JSON"),
        (
            "a run of train",
            "manifest.json",
            b'{"verb": "train", "settings": {}}',
            "is a run of `train`, which has no page",
        ),
        ("a list", "manifest.json", b"[]", "not an object"),
        (
            "settings of a word",
            "manifest.json",
            b'{"verb": "run", "settings": {"data": 3}}',
            "settings.data: Input should be a valid dictionary",
        ),
        ("an empty summary", "summary.json", b"{}", "images: Field required"),
        (
            "a word for a number",
            "summary.json",
            b'{"images": "many"}',
            "images: Input should be a valid integer",
        ),
        (
            "a setting that is a number",
            "summary.json",
            {"edit": {"setting": 3}},
            "edit.setting: Input should be",
        ),
        (
            "a confidence that is a list",
            "summary.json",
            {"confidence": []},
            "confidence: Input should be",
        ),
        (
            "a truth without units",
            "summary.json",
            {"truth": {"units": {"wpmi": {"best": None}}}},
            "truth.units.wpmi.units: Field required",
        ),
        (
            "a page of numbers",
            "manifest.json",
            {"page": {"images": 3}},
            "page.images: Input should be",
        ),
        ("no dissection", "dissection.csv", None, "is half a run: dissection.csv missing"),
        ("a column missing", "dissection.csv", b"layer,unit\n", "no column concept"),
        (
            "a value missing",
            "dissection.csv",
            b"layer,unit,concept,similarity\nlin2,0,a\n",
            "line 2: 3 values for 4 columns",
        ),
        (
            "a word for a similarity",
            "dissection.csv",
            b"layer,unit,concept,similarity\nlin2,0,a,b\n",
            "column similarity",
        ),
        ("half a zip", "units.npz", b"PK", "units.npz: "),
        ("evidence without counts", "evidence.json", b'{"verdict": 3}', "gained: Field required"),
        (
            "networks that are a number",
            "evidence.json",
            {"gained": 1, "lost": 2, "total": 3, "networks": 4},
            "networks: Input should be",
        ),
        (
            "more gained than there are",
            "evidence.json",
            {"gained": 3, "lost": 2, "total": 1},
            "evidence.json: Value error, 3 gained and 2 lost of 1",
        ),
    ),
)
def test_damaged_runs_are_refused(capsys, hostile, tmp_path, name, damage, message):
    """`damage` is the file's new content; entries that join a sound one; or None: no file."""
    folder = copy_of(hostile[0], tmp_path)
    before, path = (folder / "report.html").read_bytes(), folder / name
    if isinstance(damage, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    elif damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert message in refusal(capsys, "report", folder)
    assert (folder / "report.html").read_bytes() == before


def test_what_is_no_run_is_refused(capsys, tmp_path):
    assert "name a run folder" in refusal(capsys, "report")
    assert "no run folder 'nowhere'" in refusal(capsys, "report", "nowhere")
    (tmp_path / "foreign").mkdir()
    assert "is not an emojax run" in refusal(capsys, "report", tmp_path / "foreign")


def test_refusals(capsys, hostile, tmp_path):
    assert "cannot be shown" in refusal(capsys, "report", hostile[0], "--images", "thumbnails")
    assert "compare takes two or more" in refusal(
        capsys, "compare", hostile[0], "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_page_made_anew_keeps_what_it_showed(capsys, monkeypatch, hostile, tmp_path):
    """Images and an audit stay though the second command does not name them."""
    folder = copy_of(hostile[0], tmp_path)
    monkeypatch.setattr(reporting, "_probe_set_of", lambda run: hostile[1])
    found = tmp_path / "found" / "audit.csv"
    found.parent.mkdir()
    header = ["file", "split", "label", "reason", "detail"]
    store.write_csv(found, header, [[hostile[1].ids[3], "training", "happy", "blank", ""]])
    pages = []
    for flags in (("--audit", found), ()):
        assert cli.main([str(arg) for arg in ("report", folder, *flags)]) == 0
        pages.append((folder / "report.html").read_text("utf-8"))
    for text in pages:
        assert page_data(text)["thumbs"]["shown"] == 16
        assert "Flagged images" in text
    assert pages[0] == pages[1]
    found.unlink()
    assert cli.main(["report", str(folder), "--images", "none"]) == 0
    assert f"the audit of {found}, which is gone" in capsys.readouterr().err
    text = (folder / "report.html").read_text("utf-8")
    assert page_data(text)["thumbs"] is None
    assert "Flagged images" not in text
    assert read_page(folder).images == "none"
