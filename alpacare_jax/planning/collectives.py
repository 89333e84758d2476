"""Communication of a compiled program: bytes and counts of collectives, and their mesh axes.

TPU slices are compiled as one program each. Inside a slice devices communicate by XLA's
collectives. Between slices the TPU compiler emits a `send` and a `recv` to the host, and the hosts
run the collective over the data-center network (DCN), each chip with its counterparts in the other
slices.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from alpacare_jax.planning.hlo import COLLECTIVES, Instruction, Program


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective over one group of devices, summed over an execution."""

    kind: str
    axes: str  # its mesh axes, joined by "+"
    group: int  # participating devices; between slices: slices
    count: float  # executions
    num_bytes: float  # sent by one device
    between_slices: bool = False  # over the data-centre network

    def scaled(self, times: float) -> "Collective":
        """As much for `times` executions of what this is for one."""
        return dataclasses.replace(self, count=times * self.count, num_bytes=times * self.num_bytes)


def find(program: Program, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
    """The collectives of a program, largest first.

    Args:
      mesh: axis -> size, in the order of the devices.
      slices: number of slices; the first mesh axis spans them.

    Raises:
      ValueError: an unknown kind of transfer between slices.
    """
    total: dict[tuple[str, str, int, bool], Collective] = {}
    # One collective may be fused into several computations, on one channel.
    seen: dict[str, float] = {}
    for name, runs in program.runs.items():
        for instruction in program.computations[name]:
            one = _between_slices(instruction, mesh, slices) or _within_slice(
                instruction, name, program, mesh, slices
            )
            if one is None or one.group == 1:
                continue
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            own = f"{name} {instruction.name}"
            key = f"{one.kind} {one.between_slices} {channel[1]}" if channel else own
            times = runs - seen.get(key, 0.0)
            if times <= 0:
                continue
            seen[key] = runs
            alike = (one.kind, one.axes, one.group, one.between_slices)
            before = total.get(alike, one.scaled(0))
            total[alike] = dataclasses.replace(
                one,
                count=before.count + times,
                num_bytes=before.num_bytes + times * one.num_bytes,
            )
    return sorted(total.values(), key=lambda c: -c.num_bytes)


def _sent_share(kind: str, n: int) -> float:
    """What one of n devices in a ring sends, as a share of the full array."""
    if kind == "collective-permute":
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (n - 1) / n


def _within_slice(
    instruction: Instruction, name: str, program: Program, mesh: Mapping[str, int], slices: int
) -> Collective | None:
    """One execution of a collective within a slice."""
    kind = next((k for k in COLLECTIVES if instruction.opcode in (k, f"{k}-start")), None)
    if kind is None:
        return None
    body = program.computations[name]
    devices = _devices(instruction, math.prod(mesh.values()) // slices)
    n = len(devices)
    size = instruction.num_bytes
    if instruction.opcode != kind:  # the result of a -start includes its operands
        size -= sum(i.num_bytes for i in body if i.name in instruction.operands)
    if kind == "reduce-scatter":
        size *= n  # its result is one shard
    elif kind == "all-reduce" and name in program.fused and _is_scattered(instruction.name, body):
        kind = "reduce-scatter"
    return Collective(kind, _axes(devices, mesh), n, 1.0, _sent_share(kind, n) * size)


def _is_scattered(name: str, body: tuple[Instruction, ...]) -> bool:
    """Whether only slices of a result are used: how the TPU compiler writes a reduce-scatter."""
    users = [i for i in body if name in i.operands]
    return bool(users) and all(
        user.opcode == "dynamic-slice"
        or (user.opcode == "get-tuple-element" and _is_scattered(user.name, body))
        for user in users
    )


def _between_slices(
    instruction: Instruction, mesh: Mapping[str, int], slices: int
) -> Collective | None:
    """One execution of a collective that the hosts run: its part between slices."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if instruction.opcode != "send" or not found:
        return None
    named = "COLLECTIVE_PERMUTE" if found[1] == "ONE_TO_ONE" else found[1]
    kind = named.lower().replace("_", "-")
    if kind not in COLLECTIVES:
        raise ValueError(f"unknown transfer between slices: {found[1]!r}")
    size = instruction.arrays[0].num_bytes
    if kind == "all-gather":
        size *= slices  # what is sent is one shard
    sent = _sent_share(kind, slices) * size
    return Collective(kind, next(iter(mesh)), slices, 1.0, sent, between_slices=True)


def _devices(instruction: Instruction, count: int) -> list[int]:
    """The devices of a collective's first group; for a permute all that its pairs connect."""
    text = instruction.attributes
    if instruction.opcode.startswith("collective-permute"):
        listed = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
        found = re.findall(r"\{(\d+),(\d+)\}", listed[1] if listed else "")
        pairs = [{int(source), int(target)} for source, target in found]
        group = set(pairs[0]) if pairs else {0}
        while more := {device for pair in pairs if pair & group for device in pair - group}:
            group |= more
        return sorted(group)
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return [int(i) for i in found[1].split(",")]
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        ids = _iota(count, found[3], found[4])
        return ids.reshape(int(found[1]), int(found[2]))[0].tolist()
    order = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    if found := re.search(rf"replica_groups=mesh\[([^\]]*)\]{order} \{{([^}}]*)\}}", text):
        sizes = {k: int(v) for k, v in re.findall(r"'(\w+)'=(\d+)", found[1])}
        moving = re.findall(r"'(\w+)'", found[4])
        ids = _iota(count, found[2] or str(count), found[3]).reshape(list(sizes.values()))
        index = tuple(slice(None) if name in moving else 0 for name in sizes)
        return ids[index].ravel().tolist()
    return list(range(count))


def _iota(count: int, shape: str, order: str | None) -> np.ndarray:
    """0, 1, 2 ... in a shape such as "2,4", transposed by an order such as "1,0"."""
    ids = np.arange(count).reshape([int(size) for size in shape.split(",")])
    return ids.transpose([int(axis) for axis in order.split(",")]) if order else ids


def _axes(devices: list[int], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which these devices differ."""
    places = np.unravel_index(devices, tuple(mesh.values()))
    return "+".join(
        name for name, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1
    )
