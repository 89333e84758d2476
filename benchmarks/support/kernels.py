"""Where a GPU's time goes: a trace of `jax.profiler`, summed by kind of kernel.

python -m benchmarks.support.kernels FOLDER
"""

import collections
import re
import sys
from collections.abc import Iterable
from pathlib import Path

KINDS = {
    "matrix products": r"gemm|nvjet|cutlass|cublas|xmma|triton.*dot|\bdot",
    "attention": r"fmha|flash|sdpa|cudnn",
    "copies": r"memcpy|memset|copy|transpose",
    "reductions": r"reduce",
    "elementwise": r"fusion|convert|add|multiply|select|scatter|gather|slice|broadcast|wrapped",
}
"""Kind of kernel -> pattern of its names; the first that matches counts."""


def kind_of(kernel: str) -> str:
    """The key of KINDS, or `other`."""
    matching = (kind for kind, names in KINDS.items() if re.search(names, kernel, re.IGNORECASE))
    return next(matching, "other")


def kernels(folder: Path) -> tuple[dict[str, tuple[float, int]], float]:
    """Kernel -> (seconds, calls) on the first GPU of a trace, and seconds from first to last.

    Raises:
      ValueError: the folder holds no trace of a GPU.
    """
    import jax

    found: dict[str, tuple[float, int]] = collections.defaultdict(lambda: (0.0, 0))
    first, last = float("inf"), 0.0
    for path in sorted(folder.rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if plane.name != "/device:GPU:0":
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    seconds, calls = found[event.name]
                    found[event.name] = seconds + event.duration_ns / 1e9, calls + 1
                    first = min(first, event.start_ns / 1e9)
                    last = max(last, event.start_ns / 1e9 + event.duration_ns / 1e9)
    if not found:
        raise ValueError(f"{folder} holds no trace of a GPU")
    return dict(found), last - first


def table(found: dict[str, tuple[float, int]], span: float, names: int = 4) -> Iterable[str]:
    """Lines: each kind's share of the time, with its longest kernels."""
    busy = sum(seconds for seconds, _ in found.values())
    yield f"{span * 1e3:,.1f} ms, busy {busy / span:.1%}"
    by_kind = collections.defaultdict(dict)
    for name, spent in found.items():
        by_kind[kind_of(name)][name] = spent
    sums = {k: sum(seconds for seconds, _ in each.values()) for k, each in by_kind.items()}
    for kind in sorted(sums, key=sums.__getitem__, reverse=True):
        yield f"{sums[kind] / busy:7.1%}  {kind}"
        longest = sorted(by_kind[kind].items(), key=lambda each: -each[1][0])[:names]
        for name, (seconds, calls) in longest:
            yield f"{seconds / busy:14.1%}  {calls:6,} x {name[:90]}"


if __name__ == "__main__":
    print("\n".join(table(*kernels(Path(sys.argv[1])))))
