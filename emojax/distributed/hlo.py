"""What a compiled program costs, read from its optimized HLO text as the TPU's compiler writes it.

Most operations there carry the compiler's estimate of their cycles. They are summed over the entry
computation; the body of a loop counts as often as it runs. What has no estimate (gathers, sorts)
and loops whose count nobody knows are listed, not hidden. `plan` makes tables of this.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

# Collective operations; the compiler may split one into a start and an end, which is the same once.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Operations that take no time of their own, or run beside others while data is fetched ahead.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "copy-start", "copy-done", "slice-start"),
    *("slice-done", "async-start", "async-update", "async-done", "domain", "add-dependency"),
}
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "token": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SCOPE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Operation:
    """One line of a computation.

    Attributes:
      name: unique in the module.
      kind: its opcode.
      result: its type, as text.
      scope: the path of named scopes and primitives that it was made from.
      cycles: the compiler's estimate, None without one.
      line: all of it.
    """

    name: str
    kind: str
    result: str
    scope: str
    cycles: int | None
    line: str

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute (`body`, `condition`, `to_apply`) names."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.line)
        return None if match is None else match[1]

    @property
    def operands(self) -> list[str]:
        """Names of what it is computed from."""
        start = self.line.index(f" {self.kind}(") + len(self.kind) + 1
        return re.findall(r"%([\w.\-]+)", _balanced(self.line[start:]))


@dataclass(frozen=True)
class Module:
    """A program: its computations by name, and which of them is the entry."""

    computations: Mapping[str, list[Operation]]
    entry: str


@dataclass
class Cost:
    """What one run of a program costs on one device, as far as the compiler says.

    Attributes:
      cycles: by part, in the order in which parts first come.
      exchanged: bytes of the results of collectives, by kind.
      unknown_loops: scopes of loops whose count is not known; their bodies are counted once.
      without_estimate: runs of operations that carry no estimate, by kind and scope.
    """

    cycles: dict[str, float] = field(default_factory=dict)
    exchanged: dict[str, int] = field(default_factory=dict)
    unknown_loops: list[str] = field(default_factory=list)
    without_estimate: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Cycles of all parts."""
        return sum(self.cycles.values())


def parse(text: str) -> Module:
    """Reads HLO text.

    Raises:
      ValueError: there is no entry computation in it.
    """
    computations: dict[str, list[Operation]] = {}
    entry = None
    current: list[Operation] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif (operation := _operation(line)) is not None:
            current.append(operation)
    if entry is None:
        raise ValueError("this is no HLO text: it has no ENTRY computation")
    return Module(computations, entry)


def _operation(line: str) -> Operation | None:
    name = _NAME.match(line)
    if name is None:
        return None
    rest = line[name.end() :]
    result = _balanced(rest) if rest.startswith("(") else rest.partition(" ")[0]
    kind = _OPCODE.match(rest, len(result))
    if kind is None:
        return None
    scope = _SCOPE.search(line)
    cycles = _CYCLES.search(line)
    return Operation(
        name=name[1],
        kind=kind[1],
        result=result,
        scope="" if scope is None else scope[1],
        cycles=None if cycles is None else int(cycles[1]),
        line=line,
    )


def _balanced(text: str) -> str:
    """The text up to the parenthesis that closes its first character."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: at + 1]
    return text


def array_bytes(result: str) -> int:
    """Bytes of the arrays in a type, of all of a tuple's."""
    total = 0
    for kind, sides in _ARRAY.findall(result):
        elements = 1
        for side in filter(None, sides.split(",")):
            elements *= int(side)
        digits = re.search(r"\d+", kind)
        width = _BYTES.get(kind, int(digits[0]) / 8 if digits else 0)
        total += int(elements * width)
    return total


def cost(
    module: Module,
    part_of: Callable[[str], str],
    loops: Mapping[str, int] | None = None,
) -> Cost:
    """Adds up what a program costs.

    Args:
      module: the program.
      part_of: an operation's scope → the part that its cycles are counted for.
      loops: runs of loops that the program itself does not tell, by a named scope around them.
    """
    total = Cost()
    for operation, runs in _executed(module, module.entry, 1, loops or {}, total):
        if operation.cycles is not None:
            part = part_of(operation.scope)
            total.cycles[part] = total.cycles.get(part, 0.0) + runs * operation.cycles
        collective = _collective(module, operation)
        if collective is not None:
            kind = collective.kind.removesuffix("-start")
            total.exchanged[kind] = total.exchanged.get(kind, 0) + runs * _received(collective)
        elif operation.cycles is None and not _is_free(operation):
            name = f"{_kind_of(module, operation)} ({part_of(operation.scope)})"
            total.without_estimate[name] = total.without_estimate.get(name, 0) + runs
    return total


def _kind_of(module: Module, operation: Operation) -> str:
    """An operation's kind; of a fusion, what in it keeps the compiler from an estimate; of a custom
    call, its target.
    """
    if operation.kind == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', operation.line)
        return "custom-call" if target is None else target[1]
    fused = operation.called("calls") if operation.kind == "fusion" else None
    kinds = {each.kind for each in module.computations.get(fused or "", ())}
    return next((kind for kind in ("gather", "scatter", "sort") if kind in kinds), operation.kind)


def _is_free(operation: Operation) -> bool:
    """Whether an operation takes no time worth naming: a name, a single number, a fetch ahead."""
    if operation.kind in _FREE or operation.kind.endswith("-done"):
        return True
    if operation.name.startswith("async-collective-done"):  # a fusion around the end of one
        return True
    if all(not sides for _, sides in _ARRAY.findall(operation.result)):
        return True
    return operation.kind == "custom-call" and any(
        f'"{target}"' in operation.line for target in ("AllocateBuffer", "ConcatBitcast")
    )


def _collective(module: Module, operation: Operation) -> Operation | None:
    """The collective that an operation is or starts, which may lie in a computation of its own."""
    if operation.kind.removesuffix("-start") in COLLECTIVES:
        return operation
    if operation.kind not in ("fusion", "async-start") or "done" in operation.name:
        return None
    inner = module.computations.get(operation.called("calls") or "", ())
    return next((each for each in inner if each.kind in COLLECTIVES), None)


def _received(operation: Operation) -> int:
    """Bytes of a collective's result; a start's is a tuple that holds its operands, too."""
    if operation.kind in COLLECTIVES or operation.kind == "all-reduce-start":
        return array_bytes(operation.result)
    # Behind operands and results may stand numbers that say how far it is.
    arrays = [(kind, sides) for kind, sides in _ARRAY.findall(operation.result) if sides]
    results = arrays[len(arrays) // 2 :]
    return array_bytes(" ".join(f"{kind}[{sides}]" for kind, sides in results))


def _executed(
    module: Module, computation: str, runs: int, loops: Mapping[str, int], total: Cost
) -> Iterator[tuple[Operation, int]]:
    """All operations that take part, each with how often it runs."""
    for operation in module.computations[computation]:
        if operation.kind == "while":
            count = _trips(module, operation, loops)
            if count is None:
                total.unknown_loops.append(operation.scope)
                count = 1
            body = operation.called("body")
            assert body is not None
            yield from _executed(module, body, runs * count, loops, total)
        elif operation.kind == "call":
            callee = operation.called("to_apply")
            assert callee is not None
            yield from _executed(module, callee, runs, loops, total)
        elif operation.kind == "conditional":
            yield from _executed(module, _first_branch(operation), runs, loops, total)
        else:
            yield operation, runs


def _first_branch(operation: Operation) -> str:
    """The branch that is taken to run: the one of `lax.cond`'s true, where branches are numbered
    the last."""
    match = re.search(r"branch_computations=\{([^}]*)\}", operation.line)
    if match is not None:
        return match[1].split(",")[-1].strip().lstrip("%")
    taken = operation.called("true_computation")
    assert taken is not None
    return taken


def _trips(module: Module, loop: Operation, loops: Mapping[str, int]) -> int | None:
    """How often a loop runs: as the caller knows, as it says, or as its condition compares."""
    for scope, count in loops.items():
        if scope in loop.scope.split("/"):
            return count
    known = _KNOWN_TRIPS.search(loop.line)
    if known is not None:
        return int(known[1])
    condition = loop.called("condition")
    assert condition is not None
    operations = {operation.name: operation for operation in module.computations[condition]}
    root = next((o for o in operations.values() if o.line.lstrip().startswith("ROOT")), None)
    if root is None or root.kind != "compare" or "direction=LT" not in root.line:
        return None
    # All loops of jax.lax count from 0 by 1.
    bound = operations.get(root.operands[-1])
    number = None if bound is None else re.search(r" constant\((\d+)\)", bound.line)
    return None if number is None else int(number[1])
