"""The command line: commands, flags, help, and what it refuses before any work."""

import pytest
from commands_in_process import run
from refusals import table

from emojax import cli
from emojax.settings import Settings


def test_home_folder_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().cache == tmp_path / ".cache" / "emojax"
    assert cli.parse(cli.COMMANDS["run"], ["--cache", "~/mine"]).cache == tmp_path / "mine"
    assert cli.parse(cli.COMMANDS["run"], ["--out=~/runs"]).out == tmp_path / "runs"
    assert cli.parse(cli.COMMANDS["train"], ["--task=clip"]).train.task == "clip"


def test_help_lists_the_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"  {command} " in out for command in cli.COMMANDS)
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        assert "default" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prob"], "no command 'prob'; did you mean 'probe'?"),
        (["run", "--probe.bach", "3"], "--probe.batch"),
        (["run", "--probe.batch", "x"], "--probe.batch: invalid literal"),
        (["run", "--probe.batch", "-1"], "batch Input should be greater than 0"),
        (["run", "--probe.pool", "sum"], "invalid choice 'sum'"),
        (["run", "--config"], "--config needs a file"),
        (["run", "--config", "none.yaml"], "cannot read the settings file none.yaml"),
        (["run"], "--target.weights is needed"),
        (
            ["evaluate", "--target.weights", "none.safetensors"],
            "no weights file 'none.safetensors'",
        ),
        (["prepare"], "--source is needed"),
        (["prepare", "--source", "nowhere"], "no FER2013 at 'nowhere'"),
        (["run", "--concepts.path", "none.txt"], "no concept file 'none.txt'"),
    ],
)
def test_refusals_are_one_line_and_exit_2(capsys, tmp_path, args, message):
    if args[0] in cli.COMMANDS:
        args = [*args, *(["--out", str(tmp_path / "out")] if args[-1] != "--config" else [])]
    code, _, err = run(capsys, *args)
    assert code == 2
    assert message in err
    assert err.startswith("emojax: ")
    assert err.count("\n") == 1
    assert "http" not in err
    assert not (tmp_path / "out").exists()


def test_a_bug_is_told_with_what_its_report_needs(capsys, monkeypatch):
    def fails(settings):
        raise KeyError("a\x1b]0;owned\x07\udcff")

    command = cli.COMMANDS["concepts"]._replace(run=fails)
    monkeypatch.setitem(cli.COMMANDS, "concepts", command)
    code, out, err = run(capsys, "concepts", "paper25", "--out", "a b\x1b[2J")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert all(c.isprintable() or c == "\n" for c in err)
    error, told, command, about = err.splitlines()[-4:]
    assert error.startswith("KeyError: 'a\\x1b]0;owned")
    assert told == "emojax: this is a bug; please report it with the lines above and these:"
    assert command == "  command: emojax concepts paper25 --out 'a b\\x1b[2J'"
    assert about.startswith("  versions: python 3.")
    assert ", jax " in about


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_unknown_flags_are_refused(inputs, command):
    inputs.refused([command, "--nothing.here", "3"], "nrecognized options: --nothing.here")


# The others take some.
@pytest.mark.parametrize(
    "command", sorted(cli.COMMANDS.keys() - {"compare", "judge", "predict", "report"})
)
def test_arguments_without_a_flag_are_refused(inputs, command):
    named = ["paper25"] if command == "concepts" else []
    inputs.refused([command, *named, "stray"], "nrecognized")


@pytest.mark.parametrize(
    ("command", "message"),
    table(
        ("in capitals", "Probe", "did you mean 'probe'"),
        ("that is a path", "/etc/passwd", "no command"),
        ("with control characters", "\x1b[2J\n", "no command"),
    ),
)
def test_unknown_commands_are_refused(inputs, command, message):
    inputs.refused([command], message)


def test_a_folder_is_no_settings_file(inputs):
    inputs.refused(["run", "--config", inputs.here], "it is a folder, not a regular file")
