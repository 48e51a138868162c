"""Several processes as one: the same results, an end for all when one is killed, and going on with
another number.

`scripts/check_hosts.py` does the same with more processes and devices, and with sweeps.
"""

import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from emojax import cli
from emojax.distributed import processes as hosts
from emojax.distributed.mesh import local_rows, make_mesh
from emojax.errors import InputError

CHECK = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "check_hosts.py"))
ARGS = [
    *(
        "dissect",
        "--data.kind",
        "faces",
        "--data.limit",
        "480",
        *CHECK["NETWORKS"],
        "--concepts.path",
        "classes7",
    ),
    *(
        "--probe.layers",
        "lin1",
        "lin2",
        "--probe.batch",
        "32",
        "--probe.save-every",
        "0",
        "--probe.top-k",
        "40",
    ),
    *("--dissect.top-k", "40", "--dissect.null-sets", "50"),
]


@pytest.fixture(scope="module")
def compiled():
    return Path(jax.config.jax_compilation_cache_dir)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_killed_processes_go_on_and_end_with_what_one_gives(tmp_path, compiled, capsys):
    out, cache = tmp_path / "two", tmp_path / "cache-two"
    args = [*ARGS, "--out", str(out), "--cache", str(cache)]
    (rest,) = CHECK["kill_one"](args, 2, 2, compiled, cache, 1)
    assert rest.code == hosts.LOST
    assert rest.error == (
        "emojax: process 0: process 1 of 2 ended before the work was done; the same command, with "
        "any number of processes, "
        "resumes from the last snapshot\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cache-two"]
    assert [path.suffix for path in (cache / "probes").iterdir()] == [".partial"]
    CHECK["run"](args, 2, 2, compiled)

    one = ["--out", str(tmp_path / "one"), "--cache", str(tmp_path / "cache-one")]
    assert cli.main([*ARGS, *one]) == 0  # in this process, with eight devices
    assert CHECK["differences"](tmp_path / "one", out) == []
    records = [next((tmp_path / f"cache-{name}" / "probes").iterdir()) for name in ("one", "two")]
    assert CHECK["differences"](*records) == []


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(tmp_path, compiled):
    args = ["concepts", "paper25", "--out", str(tmp_path / "out")]
    job = ["--coordinator", f"127.0.0.1:{CHECK['free_port']()}", "--processes", "2", "--index"]
    each = [[*args, *job, "0"], [*args, "--synonym", "0.5", *job, "1"]]
    first, second = CHECK["wait"](
        [CHECK["start"](one, 1, 1, compiled)[0] for one in each], timeout=100
    )
    assert {first.code, second.code} <= {2, hosts.LOST}, (first, second)
    assert (
        first.error == "emojax: process 0: process 1 has other settings than process 0; "
        "give all processes the same\n"
    )
    assert second.error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--coordinator", "--coordinator needs a value"),
        ("--processes 2 --index 0", "a job needs --coordinator HOST:PORT --processes N --index I"),
        ("--coordinator auto --index 0", "or --coordinator auto alone"),
        ("--coordinator here:1 --processes 2", "a job needs"),
        (
            "--coordinator here --processes 2 --index 0",
            "--coordinator is 'here', not HOST:PORT or auto",
        ),
        ("--coordinator here:x --processes 2 --index 0", "not HOST:PORT"),
        ("--coordinator=here:1 --processes=2 --index=2", "--index 2 is not below --processes 2"),
        ("--coordinator here:1 --processes 2 --index -1", "--index is '-1', not a number"),
    ],
)
def test_refusals(capsys, flags, message):
    assert cli.main(["evaluate", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_auto_outside_a_cluster_is_refused():
    """In a process of its own: whatever jax finds there, this one must not become part of it."""
    command = [sys.executable, "-m", "emojax", "evaluate", "--coordinator", "auto"]
    got = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert got.returncode == 2
    assert re.fullmatch(
        r"emojax: --coordinator auto: the processes did not find each other \(.*\)\n", got.stderr
    )


def test_alone_nothing_is_asked_of_others():
    assert hosts.is_main_process()
    assert hosts.count() == 1
    mapped = np.zeros(3)
    assert hosts.broadcast_from_main(lambda: {"a": mapped})["a"] is mapped
    assert hosts.broadcast_from_main(lambda: None) is None
    assert hosts.map_in_shares(str, [1, 2]) == ["1", "2"]
    hosts.check_same_everywhere({"a": 1}, "settings")
    assert local_rows(make_mesh(4), 64) == slice(0, 64)


def test_words_on_a_connection():
    """Four bytes, or the end, also where it comes in the middle of a word."""
    one, other = socket.socketpair()
    with one, other:
        other.sendall(b"\xff\xff\xff\xff\x00\x00")
        other.close()
        assert hosts._word(one) == hosts._DONE
        assert hosts._word(one) is None


def test_errors_before_the_job_are_as_ever(capsys):
    with pytest.raises(InputError, match="needs a value"):
        cli.parse_job(["--index"])
    job, rest = cli.parse_job(
        ["--a", "--coordinator", "h:1", "--processes", "2", "--index", "1", "b"]
    )
    assert (job, rest) == (hosts.Job("h:1", 2, 1), ["--a", "b"])


def test_start_scripts_pass_arguments_on(tmp_path):
    """With stand-ins for the programs of a cluster, which print what they are given."""
    scripts = Path(__file__).parents[2] / "scripts"
    for name in ("srun", "gcloud"):
        (tmp_path / name).write_text('#!/bin/bash\nprintf "%s|" "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TPU": "pod", "ZONE": "here"}
    given = ["probe", "--out", "a b"]

    def printed(script: str) -> str:
        return subprocess.run(
            ["bash", scripts / script, *given], env=env, capture_output=True, text=True, check=True
        ).stdout

    assert printed("slurm.sbatch").endswith("|emojax|probe|--out|a b|--coordinator|auto|")
    assert printed("tpu_pod.sh").endswith(
        r"--command=emojax-venv/bin/emojax probe --out a\ b  --coordinator auto|"
    )
