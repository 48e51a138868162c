import importlib.util
import json

import jax
import pytest
from flax import nnx

from emojax import cli
from emojax.commands import plan as planning
from emojax.distributed import topology
from emojax.distributed.mesh import make_mesh
from emojax.planning import as_shapes
from emojax.settings import Plan


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


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install libtpu (the extra plan)",
)
@pytest.mark.slow
def test_plan_writes_what_a_step_would_cost(tmp_path, capsys):
    out = tmp_path / "plan"
    flags = ["--topology", "v5e:2x2", "--plan.steps", "sweep", "--plan.network", "compact"]
    assert cli.main(["plan", *flags, "--plan.tests", "2000", "--out", str(out)]) == 0
    plan = json.loads((out / "plan.json").read_text("utf-8"))
    assert (plan["topology"], plan["devices"], plan["hosts"]) == ("v5e:2x2", 4, 1)
    assert "estimates" in plan["note"]
    # Tiles of a tower with 197 tokens, and the least batch of whole tiles of sums.
    assert plan["chosen"] == {"tile": 16, "batch": 1024}
    sweep = plan["steps"]["sweep"]
    named = {"seconds", "images_per_second_per_chip", "peak_share", "bytes_exchanged"}
    assert named | {"memory_bytes"} <= set(sweep)
    assert sweep["fits"]
    assert sum(sweep["memory_bytes"].values()) == 2 * sweep["memory_bytes"]["total"]
    printed = capsys.readouterr().out
    assert "nothing was run, nothing measured" in " ".join(printed.split())
    assert "process 0 takes in" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--dissect.similarity", "correlation"], "leave score out of --plan.steps"),
        (["--target.factory", "a:b"], "--target.factory gives none"),
        (["--plan.steps", "train", "--train.task", "clip"], "leave train out of --plan.steps"),
    ],
)
def test_what_cannot_be_planned_is_refused(tmp_path, monkeypatch, capsys, flags, reason):
    """Before any compilation: the mesh is this machine's, as if its devices were TPUs."""
    monkeypatch.setattr(topology, "topology_mesh", lambda name: make_mesh(4))
    monkeypatch.setattr(topology, "chip_of", lambda mesh: topology.CHIPS["TPU v5 lite"])
    flags = ["--plan.network", "compact", "--plan.steps", "score", *flags]
    assert cli.main(["plan", *flags, "--out", str(tmp_path / "p")]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights"), [("resnet50", 25_557_032), ("vit_b16", 86_567_656)])
def test_networks_of_published_sizes(name, weights):
    """As torchvision counts their parameters."""
    settings = planning.PlanSettings(plan=Plan(network=name))
    params = nnx.state(as_shapes(planning._network(settings)), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == weights
