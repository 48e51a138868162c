from pathlib import Path

import pytest

from emojax.distributed import hlo

# What the TPU's compiler writes, cut to the operations that matter: a loop over four tiles whose
# condition tells its count, a loop whose count is known at run time, a collective in two halves,
# one in one, a gather inside a fusion, a sort, and a branch.
MODULE = (Path(__file__).parent / "small.hlo").read_text("utf-8")


def part(scope: str) -> str:
    return next((name for name in ("clip", "sums", "lists") if name in scope.split("/")), "other")


def test_cycles_are_summed_over_what_runs_as_often_as_it_runs():
    cost = hlo.cost(hlo.parse(MODULE), part, {"sums": 16})
    # Four tiles, 16 sums, and of the branches the one that is taken.
    assert cost.cycles == {"clip": 4000.0, "sums": 160.0, "other": 7.0}
    assert cost.total == 4167.0
    assert cost.unknown_loops == []


def test_a_loop_of_unknown_count_is_counted_once_and_named():
    cost = hlo.cost(hlo.parse(MODULE), part)
    assert cost.cycles["sums"] == 10.0
    assert cost.unknown_loops == ["jit(local)/shard_map/sums/while"]


def test_collectives_are_counted_by_the_bytes_of_their_results():
    assert hlo.cost(hlo.parse(MODULE), part).exchanged == {
        "all-reduce": 128 * 4,
        "all-gather": 64 * 128 * 2,
        "collective-permute": 8 * 4,
        "all-to-all": 32 * 2,
    }


def test_operations_without_an_estimate_are_listed_by_what_they_are():
    cost = hlo.cost(hlo.parse(MODULE), part)
    assert cost.without_estimate == {"gather (lists)": 1, "sort (lists)": 1}


def test_bytes_of_a_type():
    assert hlo.array_bytes("f32[4,16,128]{2,1,0:T(8,128)S(1)}") == 4 * 16 * 128 * 4
    assert hlo.array_bytes("(u8[3]{0}, pred[5]{0}, s32[]{:T(128)}, bf16[2,2]{1,0})") == 20


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("not a program")
