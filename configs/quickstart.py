"""The quickstart: SmolLM2-135M on the starter set, in minutes on two CPU cores.

python -m alpacare_jax.train --config=configs/quickstart.py --workdir=quickstart/run
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    arg = common.parse_arg(arg, dir="quickstart")
    return config_dict.create(
        model=common.section(
            checkpoint=f"{arg.dir}/base",  # model directory from alpacare_jax.convert
            variant="smollm2-135m",  # the size that directory must have
            dtype="auto",  # compute dtype: bfloat16 on accelerators, float32 on CPU
            remat="full",  # kept for the backward pass: none (all), dots, full (nothing)
            attention="auto",  # kernel: auto, xla, splash (TPU) or cudnn (GPU)
            loss_tokens=256,  # tokens a device holds logits of at a time
        ),
        data=common.section(
            path="datagen/starter/train.jsonl",
            eval_path="datagen/starter/test.jsonl",  # held-out examples
            eval_share=0.0,  # share of path held out instead
            template="alpaca",  # key of prompts.TEMPLATES
            max_length=320,  # tokens an example, BOS and EOS included
            overlong="error",  # truncate, drop or error
            row_multiple=320,  # packed rows are a multiple of this
            max_row_length=320,  # and at most so long: one shape here
        ),
        optimizer=common.section(
            name="adamw",  # or adafactor: next to no moments; betas, epsilon and first_moment idle
            learning_rate=2e-4,  # peak; small models take more than 7B's 2e-5
            schedule="cosine",  # cosine, linear or constant
            warmup_ratio=0.1,  # share of steps, rounded up
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            weight_decay=0.0,  # on matrices only
            max_grad_norm=1.0,  # clip by global norm; 0: off
            first_moment="float32",  # or bfloat16: 2 bytes a weight less
            offload=False,  # moments in the host's memory: 8 bytes a weight less, slower steps
        ),
        train=common.section(
            batch_size=16,  # examples a step, over all devices
            epochs=1,
            microbatch_tokens=640,  # most tokens of one device at a time
            log_every=2,  # steps between progress lines
            eval_every=0,  # steps between evaluations; 0: start and end only
            seed=42,
            tensorboard=False,
        ),
        checkpoint=common.section(
            every_steps=0,  # steps between checkpoints; 0: at the end only
            keep=1,  # latest checkpoints kept, beside the best
        ),
        sharding=common.sharding(),
        profile="",  # "10,15" writes a trace of these steps to WORKDIR/profile
    )


def sweep(add):
    """Learning rates and schedules around the quickstart's; `add(**overrides)` queues one run."""
    for learning_rate in (1e-4, 2e-4, 4e-4):
        for schedule in ("cosine", "linear"):
            add(**{"optimizer.learning_rate": learning_rate, "optimizer.schedule": schedule})
