"""The quickstart: SmolLM2-135M on the starter set, in minutes on two CPU cores.

    python -m alpacare_jax.train --config=configs/quickstart.py --workdir=quickstart/run

The recipe of configs/alpacare.py, except for the overrides below. launch/quickstart.sh trains with
`:short`: an adapter, shorter rows and smaller steps, a seventh of the work.
"""

from ml_collections import config_dict

from configs import alpacare, common


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    args = common.parse_arg(arg, dir="quickstart", short=False)
    config = alpacare.get_config()
    config.update_from_flattened_dict(
        {
            "model.checkpoint": f"{args.dir}/base",
            "model.variant": "smollm2-135m",
            "model.remat": "full",  # as measured; auto would take more memory
            "model.loss_tokens": 256,
            "data.path": "datagen/starter/train.jsonl",
            "data.eval_path": "datagen/starter/test.jsonl",
            "data.max_length": 320,
            "data.overlong": "error",
            "data.row_multiple": 320,  # with max_row_length: rows of one shape, one compilation
            "data.max_row_length": 320,
            "optimizer.learning_rate": 2e-4,  # small models take more than 7B's 2e-5
            "optimizer.warmup_ratio": 0.1,
            "train.batch_size": 16,
            "train.epochs": 1,
            "train.microbatch_tokens": 640,
            "train.log_every": 2,
            "checkpoint.every_steps": 0,
        }
    )
    if args.short:
        config.update_from_flattened_dict(
            {
                "data.path": f"{args.dir}/data/train.jsonl",
                "data.eval_path": f"{args.dir}/data/test.jsonl",
                "model.variant": "",
                "lora.rank": 16,
                "model.remat": "none",
                "optimizer.learning_rate": 2e-3,
                "train.batch_size": 4,
            }
        )
    return config


def sweep(add):
    """Learning rates and schedules around the quickstart's; `add(**overrides)` queues one run."""
    for learning_rate in (1e-4, 2e-4, 4e-4):
        for schedule in ("cosine", "linear"):
            add(**{"optimizer.learning_rate": learning_rate, "optimizer.schedule": schedule})
