"""AlpaCare's ablations, as sweeps: how much data, how diverse, on which base model.

    python -m launch.paper.subsets --input=data/MedInstruct-52k.json --output=data/ablations
    python launch/sweep.py --config=configs/ablations.py --sweep=data_size --workdir=runs/data-size

Sweeps: data_size, diversity and backbones, each with the recipe of configs/alpacare.py but for what
it varies; all are compared on the same held-out examples. docs/paper.md has what to do with them.

Expected time: as in configs/alpacare.py, by the number of examples. Expected score: not known.
"""

from ml_collections import config_dict

from configs import alpacare, baselines, common

FOLDER = "data/ablations"
"""Where launch/paper/subsets.py writes."""

SIZES = (1_000, 5_000, 10_000, 25_000)
TOPICS = (10, 50, 100)  # percent
BACKBONES = (
    *("alpacare-7b", "alpacare-13b", "alpacare-7b-llama-2", "alpacare-13b-llama-2"),
    *("llama3.2-1b", "llama3-8b"),
)
"""Rows of configs/baselines.py with AlpaCare's data and recipe."""

OF_BACKBONE = (
    *("model.variant", "model.checkpoint", "data.template"),
    *("optimizer.learning_rate", "train.epochs"),
)


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    common.parse_arg(arg)
    config = alpacare.get_config()
    config.update_from_flattened_dict(
        {"data.path": f"{FOLDER}/all.jsonl", "data.eval_path": f"{FOLDER}/heldout.jsonl"}
    )
    return config


def data_size(add):
    """So many examples, drawn at random, and all; `add(**overrides)` queues one run."""
    for name in (*(f"size-{size}" for size in SIZES), "all"):
        add(**{"data.path": f"{FOLDER}/{name}.jsonl"})


def diversity(add):
    """The same number of examples from a share of the topics."""
    for percent in TOPICS:
        add(**{"data.path": f"{FOLDER}/topics-{percent}.jsonl"})


def backbones(add):
    """Every base model with the learning rate, epochs and template of its row."""
    for row in BACKBONES:
        config = baselines.get_config(row).to_dict()
        named = [key.split(".") for key in OF_BACKBONE]
        add(**{f"{section}.{key}": config[section][key] for section, key in named})
