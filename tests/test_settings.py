"""Settings: files, flags over files over defaults, and what is refused."""

from pathlib import Path

import pytest
from refusals import table

from emojax import cli
from emojax.errors import InputError
from emojax.settings import Settings, read_settings


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("probe: {batch: 32, top_k: 50}\nedit: {tau: [-1.0, 0.5]}\n")
    settings = cli.parse(
        cli.COMMANDS["run"],
        ["--config", str(path), "--probe.batch", "64", "--edit.factor", "1.0", "2.5"],
    )
    assert (settings.probe.batch, settings.probe.top_k, settings.probe.pool) == (64, 50, "avg")
    assert (settings.edit.tau, settings.edit.factor) == ((-1.0, 0.5), (1.0, 2.5))
    with pytest.raises(ValueError, match="frozen"):
        settings.probe.batch = 3


def test_shipped_configs_are_valid():
    configs = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    assert configs
    for path in configs:
        assert isinstance(read_settings(path), Settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probe: {bach: 3}", "probe.bach is not a setting; did you mean 'batch'?"),
        ("prob: {}", "prob is not a setting; did you mean 'probe'?"),
        ("probe: {batch: 0}", "probe.batch is 0: Input should be greater than 0"),
        ("edit: {factor: [1, -2]}", "edit.factor.1 is -2"),
        ("probe: [", "not YAML"),
        ("- 3", "must map section names"),
    ],
)
def test_settings_file_refusals(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_settings(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    table(
        ("a list", "[1, 2]", "must map section names"),
        ("a number", "7", "must map section names"),
        ("a word", "probe", "must map section names"),
        ("tabs", "probe:\n\tbatch: 3\n", "not YAML"),
        ("an open bracket", "probe: {batch: 3", "not YAML"),
        ("two documents", "probe: {}\n---\nedit: {}\n", "not YAML"),
        ("a Python object", "probe: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("a Python name", "probe: !!python/name:os.system\n", "not YAML"),
        ("an unknown tag", "probe: !secret 3\n", "not YAML"),
        ("an unknown anchor", "probe: *nothing\n", "not YAML"),
        ("not UTF-8", b"probe: {pool: \xff}\n", "not YAML"),
        ("UTF-16", "probe: {}\n".encode("utf-16"), "s.yaml"),
        ("zero bytes", b"probe: \0\n", "not YAML"),
        ("a section that is a number", "probe: 3\n", "probe is 3"),
        ("an empty section", "probe:\n", "probe is None"),
        ("a list for a number", "probe: {batch: [1, 2]}\n", "probe.batch is [1, 2]"),
        ("a word for a number", "probe: {batch: many}\n", "probe.batch is 'many'"),
        ("a fraction for a number", "probe: {batch: 2.5}\n", "probe.batch is 2.5"),
        ("not a number", "dissect: {tau: .nan}\n", "dissect.tau is nan"),
        ("infinity", "dissect: {a: .inf}\n", "dissect.a is inf"),
        ("an unknown choice", "probe: {pool: sum}\n", "probe.pool is 'sum'"),
        ("no layers' list", "probe: {layers: lin2}\n", "probe.layers is 'lin2'"),
        ("numbers for names", "data: {test_splits: [1]}\n", "data.test_splits.0 is 1"),
        ("no test splits", "data: {test_splits: []}\n", "data.test_splits is []"),
        ("a number for a name", "3: {}\n", "the key '3' is not a text"),
        ("nothing for a name", "~: {}\n", "s.yaml"),
        ("a list for a name", "[a, b]: 3\n", "s.yaml"),
        ("a verb's own setting", "images: 300\n", "images is not a setting"),
        ("nested deep", "probe: " + "[" * 2000, "not YAML"),
        (
            "aliases that multiply",
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n"
                for i in range(8)
            ),
            "aliases are not read",
        ),
    ),
)
def test_settings_files_are_refused_in_one_line(inputs, content, message):
    inputs.refused(["run", "--config", inputs.put("s.yaml", content)], message)
