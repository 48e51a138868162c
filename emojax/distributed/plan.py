"""What a jitted step would cost on accelerators that are not there: compile it for them and read.

`plan_step` takes a step as the library runs it, with shapes in place of arrays, compiles it for the
mesh (`topology`) and reads memory, collectives and the compiler's cycles (`hlo`). All of it is the
compiler's estimate, not a measurement. `emojax.planning` makes such steps.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.sharding import Mesh
from jaxtyping import PyTree

from emojax.distributed import hlo
from emojax.distributed.topology import Chip, chip_of

OTHER = "other"  # the part of what lies in no named scope


class PlannedStep(NamedTuple):
    """A step to plan.

    Attributes:
      step: the jitted function.
      arguments: shapes with shardings in place of its arrays.
      images: how many it takes, on all devices together; what they are of for a score or a sweep is
        `of`.
      parts: named scopes in it, and what their work is called; of several the first counts.
      loops: runs of the loops whose count is known at run time only, by a named scope around them.
      runs: how often it runs where it follows another step.
      then: steps that follow it, on one device.
    """

    step: Any  # what jax.jit gives, which has no type of its own
    arguments: tuple[PyTree, ...]
    images: int
    parts: Mapping[str, str]
    loops: Mapping[str, int] = {}
    runs: int = 1
    then: "tuple[PlannedStep, ...]" = ()


@dataclass(frozen=True)
class StepPlan:
    """What the compiler says of a step, of each chip but where it says otherwise.

    Attributes:
      seconds: estimated, of one step.
      images_per_second_per_chip: from them.
      peak_share: share of the matrix units' time that products take at the data sheet's speed; a
        float32 product at full precision is six passes of theirs, three with a mask.
      operations: of the products in a step, each counted once.
      parts: seconds by named part.
      bytes_exchanged: results of collectives in a step, by kind.
      memory_bytes: arguments, results that reuse no argument, working memory, the program; and
        `total`. Of several steps, those of the largest.
      fits: whether the total is below the chip's memory.
      unknown_loops: where loops are whose count nobody knows; their bodies are counted once.
      without_estimate: operations without an estimate that run in a step, and how often.
    """

    seconds: float
    images_per_second_per_chip: float
    peak_share: float
    operations: float
    parts: dict[str, float]
    bytes_exchanged: dict[str, int]
    memory_bytes: dict[str, int]
    fits: bool
    unknown_loops: list[str]
    without_estimate: dict[str, int]


class Work(NamedTuple):
    """Operations of the products of a program, and the matrix units' passes that they take."""

    operations: float
    passes: float  # operations, times the passes of each

    def times(self, count: float) -> "Work":
        """So often."""
        return Work(self.operations * count, self.passes * count)

    def plus(self, other: "Work") -> "Work":
        """Both."""
        return Work(self.operations + other.operations, self.passes + other.passes)


def one_device(mesh: Mesh) -> Mesh:
    """A mesh of a mesh's first device."""
    return Mesh(mesh.devices.flat[:1], mesh.axis_names, axis_types=mesh.axis_types)


def plan_step(planned: PlannedStep, mesh: Mesh) -> StepPlan:
    """Compiles a step, and those that follow it, for a mesh and reads what they cost; takes seconds
    to minutes.
    """
    plan = _plan_one(planned, mesh)
    for following in planned.then:
        plan = _followed(plan, _plan_one(following, one_device(mesh)), following.runs)
    return plan


def _followed(first: StepPlan, second: StepPlan, runs: int) -> StepPlan:
    """A step and the runs of one that follows it; images are the first's."""

    def added(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        names = dict.fromkeys([*ours, *theirs])
        return {name: ours.get(name, 0) + runs * theirs.get(name, 0) for name in names}

    seconds = first.seconds + runs * second.seconds
    peak_seconds = first.peak_share * first.seconds + runs * second.peak_share * second.seconds
    return StepPlan(
        seconds=seconds,
        images_per_second_per_chip=first.images_per_second_per_chip * first.seconds / seconds,
        peak_share=peak_seconds / seconds,
        operations=first.operations + runs * second.operations,
        parts=added(first.parts, second.parts),
        bytes_exchanged=added(first.bytes_exchanged, second.bytes_exchanged),
        memory_bytes=max(first.memory_bytes, second.memory_bytes, key=lambda kinds: kinds["total"]),
        fits=first.fits and second.fits,
        unknown_loops=sorted({*first.unknown_loops, *second.unknown_loops}),
        without_estimate=added(first.without_estimate, second.without_estimate),
    )


def _plan_one(planned: PlannedStep, mesh: Mesh) -> StepPlan:
    traced = planned.step.trace(*planned.arguments)
    chip = chip_of(mesh)
    work = products(traced.jaxpr.jaxpr, planned.loops, mesh.size).times(1 / mesh.size)
    compiled = traced.lower().compile()
    module = hlo.parse(compiled.as_text())
    cost = hlo.cost(module, lambda scope: part_of(scope, planned.parts), planned.loops)
    seconds = cost.total / chip.clock
    memory = _memory(compiled.memory_analysis())
    shown = [part for part in (*planned.parts.values(), OTHER) if part in cost.cycles]
    return StepPlan(
        seconds=seconds,
        images_per_second_per_chip=planned.images / mesh.size / seconds,
        peak_share=work.passes / seconds / chip.operations,
        operations=work.operations,
        parts={part: cost.cycles[part] / chip.clock for part in shown},
        bytes_exchanged=cost.exchanged,
        memory_bytes=memory,
        fits=memory["total"] <= chip.memory,
        unknown_loops=sorted(set(cost.unknown_loops)),
        without_estimate=cost.without_estimate,
    )


def part_of(scope: str, parts: Mapping[str, str]) -> str:
    """The part that an operation's scope lies in: the first whose named scope is in it."""
    names = re.split("[/()]", scope)
    return next((part for name, part in parts.items() if name in names), OTHER)


def _memory(analysis: Any) -> dict[str, int]:
    kinds = {
        "arguments": analysis.argument_size_in_bytes,
        "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "working": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }
    return kinds | {"total": sum(kinds.values())}


def products(jaxpr: Any, loops: Mapping[str, int], devices: int) -> Work:
    """The floating-point products of a program, on all devices together.

    Args:
      jaxpr: of the program; what lies in a `shard_map` runs on every device.
      loops: runs of loops that count at run time, by a named scope around them; others of that
        kind are counted once.
      devices: of the mesh.
    """
    total = Work(0.0, 0.0)
    made_by = {made: equation for equation in jaxpr.eqns for made in equation.outvars}
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            total = total.plus(_product(equation, made_by))
        else:
            total = total.plus(_products_within(equation, loops, devices))
    return total


def _products_within(equation: Any, loops: Mapping[str, int], devices: int) -> Work:
    """Of the programs that an operation runs."""
    name, params = equation.primitive.name, equation.params
    if name == "cond":  # branches compute the same in other ways
        branches = [products(branch.jaxpr, loops, devices) for branch in params["branches"]]
        return max(branches, key=lambda work: work.passes)
    count = 1.0
    if name == "scan":
        count = params["length"]
    elif name == "while":
        scopes = str(equation.source_info.name_stack).split("/")
        count = next((runs for scope, runs in loops.items() if scope in scopes), 1)
    elif name == "shard_map":
        count = devices
    inner = Work(0.0, 0.0)
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                inner = inner.plus(products(part.jaxpr, loops, devices))
            elif isinstance(part, core.Jaxpr):
                inner = inner.plus(products(part, loops, devices))
    return inner.times(count)


# Passes of a float32 product, by its precision and how many of its factors are whole in bfloat16.
# In full precision a number is three of bfloat16, and of their nine products six count.
_PASSES = {jax.lax.Precision.HIGHEST: (6, 3, 1), jax.lax.Precision.HIGH: (3, 2, 1)}
_MOVES = ("transpose", "reshape", "broadcast_in_dim", "slice", "squeeze", "rev")
_WHOLE = ("bool", "int8", "uint8", "bfloat16")  # every value is one of bfloat16


def _is_whole(array: Any, made_by: Mapping[Any, Any]) -> bool:
    """Whether the compiler sees that a float32 array holds numbers of bfloat16, as masks do."""
    while not isinstance(array, core.Literal) and array in made_by:
        equation = made_by[array]
        name = equation.primitive.name
        if name not in (*_MOVES, "convert_element_type"):
            return False
        array = equation.invars[0]
        if name == "convert_element_type" and array.aval.dtype.name in _WHOLE:
            return True
    return False


def _product(equation: Any, made_by: Mapping[Any, Any]) -> Work:
    """Of one matrix product or convolution, `made_by` being what the arrays around it come from."""
    left, right = (operand.aval for operand in equation.invars[:2])
    elements = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(left.shape[axis] for axis in contracted)
    else:
        units = right.shape[equation.params["dimension_numbers"].rhs_spec[0]]
        terms = math.prod(right.shape) / units
    operations = 2.0 * elements * terms
    if left.dtype.kind != "f" and left.dtype.name != "bfloat16":
        return Work(0.0, 0.0)  # whole numbers are no work for the matrix units
    passes = 1
    precision = equation.params["precision"]
    if left.dtype.name == "float32" and isinstance(precision, tuple):
        whole = sum(_is_whole(operand, made_by) for operand in equation.invars[:2])
        passes = _PASSES.get(precision[0], (1, 1, 1))[whole]
    return Work(operations, operations * passes)


def of_chip(plan: StepPlan, chip: Chip) -> str:
    """Whether a step fits a chip's memory, in words."""
    used = plan.memory_bytes["total"] / 1e9
    return f"{used:.2f} of {chip.memory / 1e9:.0f} GB" + ("" if plan.fits else ": does not fit")
