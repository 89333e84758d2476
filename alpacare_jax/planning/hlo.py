"""Reads compiled XLA programs: what runs how often, and what moves to memory and back.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs: trip counts come from the loops' conditions or, where they depend on data, from the caller.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping

BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "c64": 8,
}
"""Bytes an element of HLO's dtypes; others (tokens, opaque) count nothing."""

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

CALLS = ("fusion", "call", "conditional", "async-start")
"""Opcodes that run other computations once; `to_apply` of a reduction is part of it instead."""

NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "iota", "opt-barrier"),
}
"""Opcodes that read and write nothing themselves."""

IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
"""Opcodes that change a part of their first operand, and which operand is the new part."""

_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool  # not in on-chip memory, which TPU layouts mark with S(1) and up

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # the result, a tuple flattened
    arguments: str  # between the brackets: operands, or the value of a constant
    attributes: str  # what follows them
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def attribute(self, name: str) -> str:
        """A computation that it names, as in `body=%region_3`; "" where there is none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        named = re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
        names = ("calls", "to_apply", "true_computation", "false_computation")
        return named + [called for name in names if (called := self.attribute(name))]

    @property
    def op_name(self) -> str:
        """Where in the source program it comes from: `jit(train_step)/accumulate/while/...`."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def num_bytes(self) -> int:
        return sum(array.num_bytes for array in self.arrays)

    @property
    def hbm_bytes(self) -> int:
        return sum(array.num_bytes for array in self.arrays if array.in_hbm)


@dataclasses.dataclass(frozen=True)
class Program:
    """A parsed module, and how often each computation runs in one execution."""

    computations: Mapping[str, tuple[Instruction, ...]]
    runs: Mapping[str, float]
    fused: frozenset[str]  # computations inside a fusion: they touch no memory of their own


def _balanced(text: str, start: int) -> int:
    """Index behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i + 1
    return len(text)


def _instruction(line: str) -> Instruction | None:
    start = _START.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _balanced(rest, 0) if rest.startswith("(") else rest.find(" ")
    arrays = tuple(
        Array(dtype, tuple(map(int, filter(None, dims.split(",")))), "S(" not in (layout or ""))
        for dtype, dims, layout in _SHAPE.findall(rest[:end])
    )
    rest = rest[end:].lstrip()
    bracket = rest.find("(")
    close = _balanced(rest, bracket)
    return Instruction(
        name=start[2],
        opcode=rest[:bracket],
        arrays=arrays,
        arguments=rest[bracket + 1 : close - 1],
        attributes=rest[close:],
        is_root=bool(start[1]),
    )


def parse(text: str, trips: Callable[[str], float | None]) -> Program:
    """Parses `compiled.as_text()`.

    Args:
      trips: given a loop's op_name, how often its body runs where data decide that; else None.

    Raises:
      ValueError: it is no HLO module, or a loop's number of trips is not known.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _instruction(line)):
            current.append(instruction)
    if not entry:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    runs: dict[str, float] = collections.Counter()
    fused = set()

    def visit(name: str, times: float) -> None:
        runs[name] += times
        for instruction in computations[name]:
            if instruction.opcode == "while":
                condition = computations[instruction.attribute("condition")]
                visit(instruction.attribute("body"), times * _trips(instruction, condition, trips))
            elif instruction.opcode in CALLS:
                for called in instruction.called:
                    if instruction.opcode == "fusion" or name in fused:
                        fused.add(called)
                    visit(called, times)

    visit(entry, 1.0)
    return Program({k: tuple(v) for k, v in computations.items()}, dict(runs), frozenset(fused))


def _trips(
    loop: Instruction, condition: list[Instruction], trips: Callable[[str], float | None]
) -> float:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return float(known[1])
    if (told := trips(loop.op_name)) is not None:
        return told
    constants = [
        i.arguments for i in condition if i.opcode == "constant" and i.arrays[0].shape == ()
    ]
    if len(constants) == 1 and constants[0].isdigit():
        return float(constants[0])  # counters start at 0
    raise ValueError(f"how often the loop {loop.op_name or loop.name!r} runs is not known")


def hbm_bytes(program: Program) -> float:
    """Bytes that one device reads from and writes to its main memory, an estimate.

    Every operand and result of an instruction outside a fusion counts once each time it runs; of an
    array that is only sliced or updated in place, the slice.
    """
    total = 0.0
    for name, times in program.runs.items():
        if name in program.fused:
            continue
        results = {i.name: i for i in program.computations[name]}
        for instruction in results.values():
            if instruction.opcode in NO_TRAFFIC or instruction.opcode.endswith("-done"):
                continue
            total += times * _traffic(instruction, results, program)
    return total


def _traffic(instruction: Instruction, results: Mapping[str, Instruction], program: Program) -> int:
    if instruction.opcode in ("copy-start", "slice-start"):
        # It results in source, destination and a flag; what moves is as large as the destination.
        ends = [array for array in instruction.arrays if array.shape]
        return min(array.num_bytes for array in ends) * sum(array.in_hbm for array in ends)
    sizes = [results[o].hbm_bytes if o in results else 0 for o in instruction.operands]
    written = instruction.hbm_bytes
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * written
    if instruction.opcode in IN_PLACE:
        return 2 * sizes[IN_PLACE[instruction.opcode]]
    if instruction.opcode == "send":  # to the host; it results in its operand
        return sum(sizes)
    if instruction.opcode == "fusion":
        body = program.computations[instruction.attribute("calls")]
        for i, size in enumerate(sizes):
            sizes[i] = min(size, _read_of(i, body, program))
        written = min(written, _written_by(body))
    return sum(sizes) + written


def _read_of(number: int, body: tuple[Instruction, ...], program: Program) -> float:
    """Bytes that a fused computation reads of a parameter: all, or the slices it takes.

    What only passes through, as the buffers of a collective under way do, is not read.
    """
    own = next((i for i in body if i.opcode == "parameter" and i.arguments == str(number)), None)
    if own is None:
        return math.inf
    total = 0.0
    for user in (i for i in body if own.name in i.operands):
        first = user.operands[0] == own.name
        if first and user.opcode in ("dynamic-slice", "gather"):
            total += user.num_bytes
        elif user.opcode == "fusion":
            inner = program.computations[user.attribute("calls")]
            places = [place for place, name in enumerate(user.operands) if name == own.name]
            total += sum(_read_of(place, inner, program) for place in places)
        elif not (first and user.opcode in IN_PLACE) and (
            user.opcode not in ("tuple", *COLLECTIVES)
        ):
            return math.inf
    return total


def _written_by(body: tuple[Instruction, ...]) -> float:
    """Bytes that a fused computation writes: of an update in place the update, else its results."""
    by_name = {i.name: i for i in body}
    root = next((i for i in body if i.is_root), None)
    if root is None:
        return math.inf
    outputs = [by_name.get(o, root) for o in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for output in outputs:
        update = output.operands[IN_PLACE[output.opcode]] if output.opcode in IN_PLACE else ""
        if update in by_name:
            total += by_name[update].num_bytes
        elif output.opcode not in ("parameter", *COLLECTIVES):
            total += output.num_bytes
    return total
