"""Settings of data as flags: draws, other class names, shipped settings files, file rights."""

import os
import stat

import pytest
from PIL import Image

from emojax.cli import COMMANDS, parse
from emojax.commands.opening import open_probe_set
from emojax.data.weights import save_vgg
from emojax.errors import InputError
from emojax.settings import Data, read_settings


def test_a_probe_set_of_a_single_class_is_warned_of(tmp_path, capfd):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("L", (8, 8), number).save(tmp_path / name / f"{number}.png")
    data = Data(path=tmp_path, probe_split="all", limit=2, draw="first")
    assert len(open_probe_set(data)) == 2
    assert "all 2 images of" in capfd.readouterr().err
    open_probe_set(Data(path=tmp_path, probe_split="all", limit=2))
    assert capfd.readouterr().err == ""


def test_a_class_map_is_of_pairs(tmp_path):
    args = ["--data.class-map", "anger=angry", "--data.draw", "first", "--data.limit", "5"]
    settings = parse(COMMANDS["probe"], args)
    assert settings.data.class_map == ("anger=angry",)
    with pytest.raises(InputError, match="'anger' is not of the form OLD=NEW"):
        parse(COMMANDS["probe"], ["--data.class-map", "anger"])


def test_shipped_settings_go_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_settings("paper").edit.choose_on == "all_splits"
    (tmp_path / "paper").write_text("probe: {top_k: 3}")  # a file of that name comes first
    assert read_settings("paper").probe.top_k == 3
    with pytest.raises(InputError, match=r"paperr: No such file.*shipped by name: .*paper"):
        read_settings("paperr")


def test_files_and_folders_have_the_rights_of_the_umask(tiny_vgg, tmp_path):
    from emojax.outputs import fresh_folder

    before = os.umask(0o027)
    try:
        save_vgg(tiny_vgg, tmp_path / "model.safetensors")
        with fresh_folder(tmp_path, ".new.") as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o640
