"""The runs that `def sweep(add)` of a config file queues: their overrides and names."""

import dataclasses
import inspect
import json
import math
import runpy
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from hashlib import sha256
from typing import Any

from etils import epath

from common.messages import suggestion

MAX_NAME = 100
"""Characters; file systems allow 255 bytes, and a checkpoint's files add to some of them."""


@dataclasses.dataclass(frozen=True)
class Run:
    name: str  # of its folder: the packed overrides
    workdir: epath.Path
    flags: tuple[str, ...]  # of alpacare_jax.train
    config: dict[str, Any]  # every dotted key, overrides applied


def load_function(path: str, name: str) -> Callable[..., None]:
    """The function `name(add)` of a config file."""
    sweeps = {
        key: value
        for key, value in runpy.run_path(path).items()
        if inspect.isfunction(value) and list(inspect.signature(value).parameters) == ["add"]
    }
    if name not in sweeps:
        raise ValueError(f"{path} has no `def {name}(add)`; it has {', '.join(sweeps) or 'none'}")
    return sweeps[name]


def check_value(where: str, key: str, value: Any, config: Mapping[str, Any]) -> Any:
    """The override, converted to the type of the config's value.

    Raises:
      ValueError: the config has no such key, or the value is not of its type.
    """
    if key not in config:
        hint = suggestion(key, config, otherwise="keys are dotted: 'train.epochs'")
        raise ValueError(f"{where}: config has no key {key!r}; {hint}")
    if hasattr(value, "item"):
        value = value.item()  # a NumPy scalar
    kind = type(config[key])
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{where}: {key} must be {kind.__name__}, not {value!r}")
    return value


def as_text(value: Any) -> str:
    """The shortest text that a flag parses as this value: 0.0002 -> "2e-4"."""
    if not isinstance(value, float):
        return str(value)
    scientific = f"{Decimal(repr(value)).normalize():e}".replace("e+", "e")
    return min(repr(value), scientific, key=len)


def pack(overrides: Mapping[str, Any], keys: Collection[str]) -> str:
    """The folder name of a run; different overrides have different names.

    >>> pack({"optimizer.schedule": "cosine", "optimizer.learning_rate": 2e-4}, config)
    'learning_rate=2e-4,schedule=cosine'

    A key is shortened to its last part where that is unique among `keys`. Characters other than
    letters, digits and _.-~ are written as %XX.
    """
    last = [key.rsplit(".", 1)[-1] for key in keys]
    items = []
    for key, value in sorted(overrides.items()):
        short = key.rsplit(".", 1)[-1]
        value = urllib.parse.quote(as_text(value), safe="")
        items.append(f"{short if last.count(short) == 1 else key}={value}")
    name = ",".join(items) or "unchanged"
    if len(name) > MAX_NAME:
        digest = sha256(name.encode()).hexdigest()[:16]
        name = f"{name[: MAX_NAME - 17]}+{digest}"  # no shorter name has a +
    return name


def make(
    where: str,
    sweep: Callable[..., None],
    config: Mapping[str, Any],
    common: Mapping[str, Any],
    workdir: epath.Path,
) -> list[Run]:
    """The queued runs, in order; the overrides in `common` apply to all of them.

    Raises:
      ValueError: no run, a duplicate run, or an override of a key that the config lacks.
    """
    queued: list[dict[str, Any]] = []
    sweep(lambda **overrides: queued.append(overrides))
    if not queued:
        raise ValueError(f"{where} queues no run")
    runs, names = [], {}
    for overrides in queued:
        overrides = {k: check_value(where, k, v, config) for k, v in sorted(overrides.items())}
        if both := overrides.keys() & common.keys():
            raise ValueError(f"{where} sets {min(both)} itself; leave out --config.{min(both)}")
        name, content = pack(overrides, config), {**config, **overrides}
        same = names.setdefault(json.dumps(content, sort_keys=True), name)
        if len(names) == len(runs):
            raise ValueError(f"{where} queues the same run twice: {same} and {name}")
        given = [f"--config.{k}={as_text(v)}" for k, v in {**common, **overrides}.items()]
        runs.append(Run(name, workdir / name, (*given, f"--workdir={workdir / name}"), content))
    return runs
