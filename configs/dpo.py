"""Preference tuning (DPO) of a fine-tuned model, on pairs of answers: yours, or judged ones.

    python -m alpacare_jax.train --config=configs/dpo.py:models/mine,data=judged/judgements.jsonl \\
        --workdir=runs/mine-dpo

Arguments: the model directory, which is also the reference, and data=FILE: judgements.jsonl of
`evaluation.judge`, or records with chosen and rejected (docs/file_formats.md). Judge answers to
questions of their own for this: a test set that was trained on measures nothing.

The settings are those of the paper (arXiv:2305.18290, appendix B): beta 0.1, 64 pairs a step, rate
1e-6; its RMSprop and 150 steps of warm-up are AdamW and 10 % here. An adapter takes ten times the
rate. A pair takes the tokens of two examples, and memory as one of twice the length.
"""

from ml_collections import config_dict

from configs import common, finetune


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    args = common.parse_arg(
        arg, positional="checkpoint", checkpoint="models/mine", data="judged/judgements.jsonl"
    )
    config = finetune.get_config(f"{args.checkpoint},data={args.data}")
    config.update_from_flattened_dict(
        {
            "optimizer.learning_rate": 1e-6,
            "optimizer.warmup_ratio": 0.1,
            "train.batch_size": 64,
            "train.epochs": 1,
            "train.eval_every": 20,
            "preference.beta": 0.1,
            "checkpoint.every_steps": 20,
        }
    )
    return config


def sweep(add):
    """How closely the model is held to the reference; `add(**overrides)` queues one run."""
    for beta in (0.03, 0.1, 0.3):
        add(**{"preference.beta": beta})
