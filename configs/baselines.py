"""Every system that the paper compares, trained as its authors published it.

    python -m alpacare_jax.train --config=configs/baselines.py:medalpaca-7b --workdir=runs/medalpaca

`ROWS` has their hyper-parameters, the source of each, and what cannot be reproduced, most often
because data was never released. Put the data under `data/`, or name it: medalpaca-7b,data=FILE.
ChatDoctor's second stage continues from runs/alpaca-7b, its first: checkpoint=DIR names another.
LLaMA 3 is not in the paper: its rows are AlpaCare's recipe on a newer base.

Expected time: as in configs/alpacare.py, by the number of tokens. Expected score: that of the
published answers, docs/templates.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from configs import alpacare, common


@dataclasses.dataclass(frozen=True)
class Row:
    """How one system was trained, as changes of AlpaCare's recipe on `base`."""

    base: str  # a variant
    changes: Mapping[str, Any]
    source: str
    unknown: str = ""  # what cannot be reproduced


ALPACA = {"data.path": "data/alpaca_data.json", "data.max_length": 512}
ALPACA_SOURCE = "stanford_alpaca README and train.py"
OWN = "AlpaCare training/training-7b.sh and -13b.sh; the length of its own Alpaca is not stated"

CHATDOCTOR = {
    "model.checkpoint": "runs/alpaca-7b",
    "data.path": "data/HealthCareMagic-100k.json",
    "data.max_length": 512,
    "optimizer.learning_rate": 2e-6,
    "train.epochs": 1,
}
MEDALPACA = {
    "data.path": "data/medical_meadow.json",
    "data.eval_share": 0.1,
    "data.template": "medalpaca",
    "data.max_length": 256,
    "optimizer.learning_rate": 2e-5,
    "optimizer.warmup_steps": 100,
    "train.epochs": 3,
}
MEADOW = (
    "Medical Meadow is public in parts only; batch (128 or 256) and length of the released weights "
    "are not stated"
)
PMC = {
    "model.checkpoint": "models/medllama-13b",
    "data.path": "data/pmc_llama_instructions.jsonl",
    "data.max_length": 512,
    "optimizer.learning_rate": 2e-5,
    "train.epochs": 3,
}
BAIZE = {
    "lora.rank": 8,
    "lora.alpha": 16.0,
    "lora.dropout": 0.05,
    "lora.targets": "q_proj,k_proj,v_proj,gate_proj,up_proj,down_proj",
    "lora.base": "int8",
    "data.path": "data/baize_medical.jsonl",
    "data.template": "baize-dialogue",
    "data.max_length": 512,
    "optimizer.learning_rate": 2e-4,
    "optimizer.schedule": "linear",  # transformers' default
    "optimizer.warmup_steps": 100,
    "train.batch_size": 64,
    "train.epochs": 1,
}
LLAMA3 = {"data.template": "llama3", "optimizer.learning_rate": 2e-5}
LLAMA3_SOURCE = "ours: AlpaCare's recipe, the template of LLaMA 3's instruction models"

ROWS: dict[str, Row] = {
    "alpacare-7b": Row("llama-7b", {}, OWN),
    "alpacare-13b": Row("llama-13b", {}, OWN),
    "alpacare-7b-llama-2": Row("llama2-7b", {}, OWN),
    "alpacare-13b-llama-2": Row("llama2-13b", {}, OWN),
    "alpaca-7b": Row("llama-7b", ALPACA, ALPACA_SOURCE),
    "alpaca-13b": Row("llama-13b", ALPACA, ALPACA_SOURCE, OWN),
    "alpaca-7b-llama-2": Row("llama2-7b", ALPACA, OWN, OWN),
    "alpaca-13b-llama-2": Row("llama2-13b", ALPACA, OWN, OWN),
    "chatdoctor": Row(
        "llama-7b",
        CHATDOCTOR,
        "ChatDoctor README: HealthCareMagic-100k after Alpaca-52k, 4 GPUs x 4 x 8",
        "the data is on Google Drive only; its own stage 1 used a batch of 256",
    ),
    "medalpaca-7b": Row("llama-7b", MEDALPACA, "medAlpaca README and train.py", MEADOW),
    "medalpaca-13b": Row("llama-13b", MEDALPACA, "medAlpaca README and train.py", MEADOW),
    "pmc-llama-13b": Row(
        "llama-13b",
        PMC,
        "PMC-LLaMA Pretrain/training.sh (its first stage), data axiong/pmc_llama_instructions on "
        "chaoyi-wu/MedLLaMA_13B",
        "the settings of the second stage were never published: batch, rate and warm-up are the "
        "first stage's, epochs Alpaca's",
    ),
    "baize-healthcare": Row(
        "llama-7b",
        BAIZE,
        "baize-chatbot finetune.py; its card says all linear layers, its script leaves out o_proj",
        "float16 and its int8 kernels are bfloat16 here",
    ),
    "llama3-8b": Row("llama3-8b", LLAMA3, LLAMA3_SOURCE),
    "llama3.2-1b": Row("llama3.2-1b", LLAMA3 | {"optimizer.learning_rate": 5e-5}, LLAMA3_SOURCE),
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    args = common.parse_arg(arg, positional="system", system="alpacare-7b", data="", checkpoint="")
    if args.system not in ROWS:
        raise ValueError(f"unknown system {args.system!r}; choose from {', '.join(ROWS)}")
    row = ROWS[args.system]
    in_paper = row.base in alpacare.VARIANTS
    config = alpacare.get_config(row.base if in_paper else None)
    config.update_from_flattened_dict(
        {"model.variant": row.base, "model.checkpoint": f"models/{row.base}", **row.changes}
    )
    named = {"data.path": args.data, "model.checkpoint": args.checkpoint}
    config.update_from_flattened_dict({key: value for key, value in named.items() if value})
    return config
