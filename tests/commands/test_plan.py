import importlib.util

from emojax import cli


def test_plan_without_the_compiler_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else found(name)
    )
    assert cli.main(["plan", "--out", str(tmp_path / "plan")]) == 2
    error = capsys.readouterr().err
    assert "libtpu" in error
    assert "pip install 'emojax[plan]'" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "plan").exists()
