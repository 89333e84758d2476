"""Adapters on disk: workdirs of LoRA training, and peft's folders, which are read and written.

    WORKDIR/run.json, checkpoints/STEP/params   what `train` saves: the adapter, not its base
    FOLDER/adapter_config.json                  what peft saves
    FOLDER/adapter_model.safetensors            its weights; of old versions adapter_model.bin

A base is known by the digest of its weights, which peft's own folders lack.
"""

import dataclasses
import re
from pathlib import Path, PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from jax.typing import DTypeLike

from alpacare_jax.checkpoints import checkpoint, finite, identity
from alpacare_jax.formats import safetensors_file, torch_file
from alpacare_jax.formats.safetensors_file import Tensor
from alpacare_jax.model import params as params_lib
from alpacare_jax.model import quantised
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from alpacare_jax.model.lora import LoraConfig
from alpacare_jax.model.params import FACTORS, Adapter, WeightSpec
from common import paths, provenance

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_WEIGHTS_BEFORE = "adapter_model.bin"

WITHOUT_EFFECT = frozenset(
    "auto_mapping base_model_name_or_path bias corda_config eva_config exclude_modules "
    "inference_mode init_lora_weights layers_pattern loftq_config lora_alpha lora_dropout "
    "lora_ga_config megatron_core peft_type peft_version qalora_group_size r revision "
    "runtime_config target_modules task_type use_rslora".split()
)
"""Keys of adapter_config.json that are read below, or that change nothing once it is trained."""

PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is; others, such as pissa, change it."""


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
    """An adapter on disk, of which only the settings have been read."""

    directory: epath.Path
    step: int | None  # None: a folder of peft's, which has none
    lora: LoraConfig
    base: str  # digest of the weights it was trained on, "" if that is not known

    def identity(self) -> dict[str, Any]:
        """Digest of the weights, and what else determines the answers."""
        if self.step is None:
            weights = provenance.sha256(_weights(self.directory))
        else:
            weights = checkpoint.weights_digest(self.directory, self.step)
        return {"weights": weights, "scaling": self.lora.scaling}

    def require_base(self, base: str | PurePath) -> None:
        """Raises ValueError if the adapter was trained on other weights than the best of `base`."""
        if self.base and self.base != identity.of_model(base)["weights"]:
            raise ValueError(
                f"{self.directory} is an adapter of another model than {base}: their run.json "
                "files have different digests of its weights; give the base it was trained on"
            )

    def load(self, model: LlamaConfig, dtype: DTypeLike, shardings: Params | None = None) -> Params:
        """The weights, cast to `dtype`; without `shardings` on the first device.

        Raises:
          ValueError: they do not fit the model, or one is NaN or infinite; it is named.
        """
        config = self.lora.adapter(model)
        if self.step is not None:
            step, dtype = str(self.step), jnp.dtype(dtype)
            return checkpoint.load_params(
                self.directory, config, step=step, dtype=dtype, shardings=shardings
            )
        arrays = _read(_weights(self.directory), config)
        params = params_lib.build_tree(config, lambda w: arrays[w.path].astype(dtype))
        params = jax.device_put(params, shardings or jax.devices()[0])
        if unusable := finite.unusable(params):
            raise ValueError(f"{self.directory}: weight {unusable}; {finite.TAKE_ANOTHER}")
        return params


class Update:
    """What an adapter adds to each weight of its base."""

    def __init__(self, lora: LoraConfig, factors: Params):
        self._lora = lora
        self._factors = {p: np.asarray(array) for p, array in params_lib.flatten(factors).items()}

    def added(self, weight: WeightSpec, layer: int | None, array: np.ndarray) -> np.ndarray:
        """One layer of a weight with the update, W + scaling A B in float32, in its own dtype.

        A base that was trained on in 8 or 4 bits is taken as training saw it: dequantised.
        """
        form = self._lora.quantised
        if not weight.path.endswith("_proj") or layer is None:
            return array
        whole = array.astype(np.float32)
        if form:
            inputs = params_lib.input_axes(weight)
            held = quantised.quantise(jnp.asarray(whole[None]), inputs, form)
            whole = np.asarray(jax.tree.map(lambda part: part[0], held).astype(jnp.float32))
        a, b = (weight.path.replace("_proj", f"_lora_{part}") for part in "ab")
        if a in self._factors:
            product = np.tensordot(self._factors[a][layer], self._factors[b][layer], 1)
            whole = whole + np.float32(self._lora.scaling) * product
        return whole.astype(array.dtype)


def open_adapter(directory: str | PurePath, step: str = "best") -> StoredAdapter:
    """What a folder of peft's holds, or a workdir at a step; see `checkpoint.find_step`.

    Raises:
      FileNotFoundError: it holds no adapter, or no step is saved.
      ValueError: a setting of peft's is not implemented; it is named.
    """
    paths.require(directory)
    folder = epath.Path(directory)
    record = provenance.read_record(folder / "run.json")
    if (folder / PEFT_CONFIG).is_file():
        base = {"weights": "", "held_in": "auto"} | record.get("base", {})
        lora = dataclasses.replace(_read_config(folder), base=base["held_in"])
        return StoredAdapter(folder, None, lora, base["weights"])
    lora = record.get("config", {}).get("lora", {})
    if not lora.get("rank"):
        raise FileNotFoundError(
            f"{directory} holds no adapter: it has neither peft's {PEFT_CONFIG} nor the run.json "
            "of a training run with LoRA"
        )
    base = record["inputs"]["model"]["weights"]
    return StoredAdapter(folder, checkpoint.find_step(folder, step), LoraConfig(**lora), base)


def _read_config(folder: epath.Path) -> LoraConfig:
    """The settings in peft's adapter_config.json; the targets are those that have weights."""
    path, weights = folder / PEFT_CONFIG, _weights(folder)
    content = provenance.read_json(path)
    if (kind := content.get("peft_type")) != "LORA":
        raise ValueError(f"{path} has peft_type {kind!r:.80}; only 'LORA' is implemented")
    unknown = {
        key: value
        for key, value in content.items()
        if value not in (None, False, [], {}, "", "none") and key not in WITHOUT_EFFECT
    }
    if content.get("init_lora_weights", True) not in PLAIN_STARTS:
        unknown["init_lora_weights"] = content["init_lora_weights"]
    if content.get("bias", "none") != "none":
        unknown["bias"] = content["bias"]
    for key, value in unknown.items():
        raise ValueError(f"{path} sets {key}={value!r:.80}, which is not implemented")
    keys = [tensor.key for tensor in _tensors(weights)]
    found = {match[1] for key in keys if (match := re.search(r"(\w+)\.lora_A\.weight$", key))}
    if odd := sorted(found - FACTORS.keys()):
        raise ValueError(f"{weights} adapts {', '.join(odd)}; only {', '.join(FACTORS)} are known")
    try:
        return LoraConfig(
            rank=int(content["r"]),
            alpha=float(content["lora_alpha"]),
            rslora=bool(content.get("use_rslora")),
            dropout=float(content.get("lora_dropout") or 0),
            targets=",".join(name for name in FACTORS if name in found),
            base="auto",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or empty: {error}; download it again") from None


def _weights(folder: epath.Path) -> Path:
    """The file of peft's weights that peft reads. Raises FileNotFoundError if there is none."""
    for name in (PEFT_WEIGHTS, PEFT_WEIGHTS_BEFORE):
        if (folder / name).is_file():
            return Path(folder / name)
    raise FileNotFoundError(f"{folder} lacks {PEFT_WEIGHTS}; download it again")


def _tensors(path: Path) -> list[Tensor]:
    return (torch_file if path.suffix == ".bin" else safetensors_file).tensors(path)


def _read(path: Path, config: Adapter) -> dict[str, np.ndarray]:
    """Weight path -> array of peft's file, stacked.

    Raises:
      ValueError: a tensor is missing, misshapen or not of this adapter; it is named.
    """
    tensors = {tensor.key: tensor for tensor in _tensors(path)}
    arrays: dict[str, np.ndarray] = {}
    for weight in params_lib.weight_specs(config):
        layers = []
        for layer in range(config.sizes["L"]):
            key, shape = weight.hf_key.format(layer), params_lib.hf_shape(weight, config)
            if key not in tensors:
                raise ValueError(f"{path} lacks {key}: it is an adapter of another model, or cut")
            if (tensor := tensors.pop(key)).shape != shape:
                raise ValueError(
                    f"{path}: {key} has shape {tensor.shape}, rank {config.rank} of this model "
                    f"requires {shape}: it is an adapter of another model"
                )
            layers.append(params_lib.from_hf_layout(weight, tensor.read(), config))
        arrays[weight.path] = np.stack(layers)
    for key in tensors:
        raise ValueError(f"{path} has {key}, which this model has not, or which is not LoRA's")
    return arrays


def write_peft(folder: Path, lora: LoraConfig, config: Adapter, params: Params, base: str) -> None:
    """Writes peft's two files; `base` is the name of the base model in them, "" for none."""
    flat, tensors = params_lib.flatten(params), {}
    for weight in params_lib.weight_specs(config):
        for layer, array in enumerate(np.asarray(flat[weight.path])):
            tensor = params_lib.to_hf_layout(weight, array, config)
            tensors[weight.hf_key.format(layer)] = np.ascontiguousarray(tensor)
    safetensors.numpy.save_file(tensors, folder / PEFT_WEIGHTS, {"format": "pt"})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": list(config.targets),
        "bias": "none",
        "inference_mode": True,
    }
    provenance.write_json(folder / PEFT_CONFIG, content)
