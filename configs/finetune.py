"""Any LLaMA on your own file: the recipe of configs/alpacare.py, on one device.

    python -m alpacare_jax.train --config=configs/finetune.py:models/mine,data=data/mine.jsonl \\
        --workdir=runs/mine

Arguments: the model directory, and data=FILE; rank=16 for LoRA, with base=nf4 or int8 on a base of
4 or 8 bits a weight (docs/lora.md). The shape is that of the checkpoint's config.json. Of
the data 2 % are held out, and examples over the maximum length are dropped, and counted. Learning
rate and batch size by the size of model and data: docs/your_model_and_data.md.
"""

from ml_collections import config_dict

from configs import alpacare, common


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    args = common.parse_arg(
        arg,
        positional="checkpoint",
        checkpoint="models/mine",
        data="data/mine.jsonl",
        rank=0,
        base="auto",
    )
    config = alpacare.get_config()
    config.update_from_flattened_dict(
        {
            "model.checkpoint": args.checkpoint,
            "model.variant": "",
            "lora.rank": args.rank,
            "lora.base": args.base,
            "optimizer.learning_rate": 2e-4 if args.rank else 2e-5,  # QLoRA's for 7B; the paper's
            "data.path": args.data,
            "data.eval_share": 0.02,
            "data.overlong": "drop",  # a truncated answer teaches the model to stop anywhere
            "train.batch_size": 32,
            "train.eval_every": 100,
            "checkpoint.every_steps": 100,  # as eval_every: the step that is best is kept
        }
    )
    return config


def sweep(add):
    """Learning rates around the default; `add(**overrides)` queues one run."""
    for learning_rate in (1e-5, 2e-5, 5e-5, 1e-4):
        add(**{"optimizer.learning_rate": learning_rate})
