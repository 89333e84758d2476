"""Parses compiled XLA programs: execution counts of computations, and memory traffic.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs: trip counts come from the loops' conditions or, where they depend on data, from the caller.

The text format of HLO is undocumented and changes; see TESTED_WITH. Where parsing fails, a plan
falls back to memory and FLOPs (`roofline.measure`).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

TESTED_WITH = "0.10.2"
"""The jax version whose programs this and `collectives` were tested with."""

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

CALLING_OPCODES = ("fusion", "call", "conditional", "async-start")
"""Opcodes that run other computations once; a reduction's `to_apply` is part of the reduction."""

NO_TRAFFIC = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id iota opt-barrier".split()
)
"""Opcodes that read and write nothing themselves."""

IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
"""Opcodes that update part of their first operand -> position of the operand with the new part."""

_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    num_bytes: int  # tokens and opaque types count nothing
    is_scalar: bool
    in_hbm: bool  # else on-chip memory: S(1) and up in TPU layouts


def _array(dtype: str, dimensions: str, layout: str) -> Array:
    """The array `f32[4,100]{1,0:S(1)}`, of pred 1 byte per element, bf16 2, f8e4m3fn 1, c64 8."""
    bits = re.match(r"(?:s|u|f|bf|c)(\d+)", dtype)
    element_bytes = 1 if dtype == "pred" else int(bits[1]) // 8 if bits else 0
    shape = [int(length) for length in dimensions.split(",") if length]
    return Array(math.prod(shape) * element_bytes, not shape, "S(" not in layout)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # the result, a tuple flattened
    arguments: str  # in parentheses: operands, or the value of a constant
    attributes: str  # the rest of the line
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results this one takes."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def attribute(self, name: str) -> str:
        """The computation in an attribute such as `body=%region_3`; "" if it has none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """Computations that it runs once."""
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        found = re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
        names = "calls|to_apply|true_computation|false_computation"
        return found + re.findall(rf"\b(?:{names})=%?([\w.\-]+)", self.attributes)

    @property
    def op_name(self) -> str:
        """Its scope in the JAX program: `jit(train_step)/accumulate/while/...`."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def num_bytes(self) -> int:
        """Size of the result."""
        return sum(array.num_bytes for array in self.arrays)

    @property
    def hbm_bytes(self) -> int:
        """Size of the part of the result that is in main memory."""
        return sum(array.num_bytes for array in self.arrays if array.in_hbm)


@dataclasses.dataclass(frozen=True)
class Program:
    """A parsed module, and the execution counts of its computations."""

    computations: Mapping[str, tuple[Instruction, ...]]
    runs: Mapping[str, float]
    fused: frozenset[str]  # computations inside a fusion: no memory traffic of their own


def _balanced(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
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
    arrays = tuple(_array(*found) for found in _SHAPE.findall(rest[:end]))
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
      trips: maps a loop's op_name to its trip count, if that depends on data; else to None.

    Raises:
      ValueError: this is not an HLO module, or a loop's trip count is unknown.
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
        raise ValueError("not an HLO module: it has no ENTRY computation")
    runs: dict[str, float] = collections.defaultdict(float)
    fused = set()

    def visit(name: str, times: float) -> None:
        runs[name] += times
        for instruction in computations[name]:
            if instruction.opcode == "while":
                condition = computations[instruction.attribute("condition")]
                visit(instruction.attribute("body"), times * _trips(instruction, condition, trips))
            elif instruction.opcode in CALLING_OPCODES:
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
    if (caller_trips := trips(loop.op_name)) is not None:
        return caller_trips
    constants = [i.arguments for i in condition if i.opcode == "constant" and i.arrays[0].is_scalar]
    if len(constants) == 1 and constants[0].isdigit():
        return float(constants[0])  # counters start at 0
    raise ValueError(f"unknown trip count of the loop {loop.op_name or loop.name!r}")


def hbm_bytes(
    program: Program, kernels: Mapping[str, float] = MappingProxyType({}), scope: str = ""
) -> float:
    """Estimate of the bytes that one device reads from and writes to its main memory.

    Every operand and result of an instruction outside a fusion counts each time it runs; of an
    array that is only sliced or updated in place, only the slice counts.

    Args:
      kernels: bytes that a kernel moves, by its name, where it reads parts of its operands.
      scope: pattern of the op_names that count.
    """
    total = 0.0
    for name, times in program.runs.items():
        if name in program.fused:
            continue
        results = {i.name: i for i in program.computations[name]}
        for instruction in results.values():
            if instruction.opcode in NO_TRAFFIC or instruction.opcode.endswith("-done"):
                continue
            if re.search(scope, instruction.op_name):
                total += times * _traffic(instruction, results, program, kernels)
    return total


def _traffic(
    instruction: Instruction,
    results: Mapping[str, Instruction],
    program: Program,
    kernels: Mapping[str, float],
) -> float:
    if instruction.opcode == "custom-call":
        for name in kernels.keys() & set(instruction.op_name.split("/")):
            return kernels[name]
    if instruction.opcode in ("copy-start", "slice-start"):
        # Its result is source, destination and a flag; as much moves as the destination holds.
        ends = [array for array in instruction.arrays if not array.is_scalar]
        return min(array.num_bytes for array in ends) * sum(array.in_hbm for array in ends)
    sizes: list[float] = [results[o].hbm_bytes if o in results else 0 for o in instruction.operands]
    written: float = instruction.hbm_bytes
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * written
    if instruction.opcode in IN_PLACE:
        return 2 * sizes[IN_PLACE[instruction.opcode]]
    if instruction.opcode == "send":  # to the host; its result is its operand
        return sum(sizes)
    if instruction.opcode == "fusion":
        body = program.computations[instruction.attribute("calls")]
        for i, size in enumerate(sizes):
            sizes[i] = min(size, _bytes_read(i, body, program))
        written = min(written, _bytes_written(body))
    return sum(sizes) + written


def _bytes_read(number: int, body: tuple[Instruction, ...], program: Program) -> float:
    """Bytes that a fused computation reads of a parameter: all, or the slices it takes.

    A parameter that only passes through, as a collective's buffer may, is not read.
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
            total += sum(_bytes_read(place, inner, program) for place in places)
        elif not (first and user.opcode in IN_PLACE) and (
            user.opcode not in ("tuple", *COLLECTIVES)
        ):
            return math.inf
    return total


def _bytes_written(body: tuple[Instruction, ...]) -> float:
    """Bytes that a fused computation writes: an in-place update's new part, else its results."""
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
