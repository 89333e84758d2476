"""Rotary embedding's settings, as a Hugging Face `config.json` holds them, old and new."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

REQUIRED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""The implemented types of RoPE scaling, and what each requires."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are scaled for longer contexts.

    `linear` divides every frequency by `factor`, `llama3` only the low ones
    (Llama 3.1, `_compute_llama3_parameters` in transformers).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        require_numbers(self, "rope scaling ")
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"rope scaling has low_freq_factor {self.low_freq_factor}, which is not below its "
                f"high_freq_factor {self.high_freq_factor}"
            )


MAY_BE_ZERO = ("num_key_value_heads", "head_dim", "initializer_range", "rms_norm_eps")


def require_numbers(settings: Any, prefix: str) -> None:
    """Raises ValueError where a number or a flag of a dataclass is something else, or negative."""
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), field.type
        words = {int: "a positive whole number", float: "a positive number", bool: "true or false"}
        if kind not in words:
            continue
        fits = type(value) in ((int, float) if kind is float else (kind,)) and (
            kind is bool
            or (math.isfinite(value) and (value > 0 or (value == 0 and field.name in MAY_BE_ZERO)))
        )
        if not fits:
            raise ValueError(f"{prefix}{field.name} is {value!r:.80}, not {words[kind]}")


def read(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of a `config.json`, as transformers 5 reads them; None is no scaling.

    transformers 5 writes a group `rope_parameters`; 4 wrote `rope_theta` and a group
    `rope_scaling`. Where they contradict each other, different programs obey different ones.

    Raises:
      ValueError: there is such a contradiction, or a scaling is incomplete or not implemented.
    """
    groups = {key: hf[key] for key in ("rope_scaling", "rope_parameters") if hf.get(key)}
    found = [_read_group(name, group, hf) for name, group in groups.items()]
    if len(found) > 1 and found[0] != found[1]:
        raise ValueError(
            "config.json has both rope_scaling and rope_parameters, and they differ: transformers "
            "5 obeys rope_scaling, other programs rope_parameters; delete the wrong one"
        )
    for name, group in groups.items():
        for key in ("rope_theta", "original_max_position_embeddings"):
            inner, outer = group.get(key), hf.get(key)
            if None not in (inner, outer) and inner != outer:
                raise ValueError(
                    f"config.json has {key} {outer!r} and another one, {inner!r}, in {name}; "
                    "delete the wrong one"
                )
    return found[0] if found else _read_group("", {}, hf)


def _read_group(name: str, group: Any, hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """What the group `name` of a `config.json` says."""
    if not isinstance(group, Mapping):
        raise ValueError(f"config.json: {name} is {group!r:.80}, which must be an object")
    settings = {key: value for key, value in group.items() if value is not None}
    thetas = settings.pop("rope_theta", None), hf.get("rope_theta"), 10_000.0
    theta = next(value for value in thetas if value is not None)
    types = [settings.pop(key) for key in ("rope_type", "type") if key in settings]
    if types[1:] and types[0] != types[1]:
        raise ValueError(
            f"config.json: {name} has rope_type {types[0]!r} and type {types[1]!r}; delete the "
            "wrong one"
        )
    rope_type = types[0] if types else "default"
    if rope_type != "default" and rope_type not in tuple(REQUIRED):
        raise ValueError(
            f"rope scaling {rope_type!r:.80} is not implemented ({name} in config.json); choose a "
            f"model with {', '.join(REQUIRED)} or none"
        )
    if settings.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"config.json: {name} sets partial_rotary_factor: not implemented")
    length = settings.pop("original_max_position_embeddings", hf.get("max_position_embeddings"))
    if rope_type == "default":
        if settings.get("factor", 1) != 1 or settings.keys() - {"factor"}:
            raise ValueError(
                f"config.json: {name} sets {', '.join(settings)} "
                + ("but its type is default" if types else "but no rope_type")
                + f", so that nothing obeys it; set rope_type ({', '.join(REQUIRED)}) or "
                "delete it"
            )
        return theta, None
    if missing := [key for key in REQUIRED[rope_type] if key not in settings]:
        raise ValueError(f"rope scaling of type {rope_type} lacks {', '.join(missing)}")
    if unknown := settings.keys() - {field.name for field in dataclasses.fields(RopeScaling)}:
        raise ValueError(f"rope scaling sets {', '.join(sorted(unknown))}: not implemented")
    if rope_type == "linear":
        return theta, RopeScaling("linear", settings["factor"])
    length = hf.get("original_max_position_embeddings") or length  # as in transformers
    if length:
        settings["original_max_position_embeddings"] = length
    return theta, RopeScaling(rope_type, **settings)


def split_halves(array: np.ndarray, heads: int) -> np.ndarray:
    """q or k with Hugging Face's order of rows, from one where rotated pairs stand side by side.

    Meta's and llama.cpp's files have the latter. A head of 6 rows; RoPE rotates rows i and i + 3 of
    Hugging Face's order together:

        result = [0, 1, 2, 3, 4, 5]
        array  = [0, 3, 1, 4, 2, 5]
    """
    rows = array.shape[0]
    split = array.reshape(heads, rows // heads // 2, 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def paired(array: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `split_halves`."""
    rows = array.shape[0]
    split = array.reshape(heads, 2, rows // heads // 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)
