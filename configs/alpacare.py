"""The paper's systems: AlpaCare, and Alpaca as its general-domain twin, with their exact recipes.

    python -m alpacare_jax.train --config=configs/alpacare.py:llama-7b --workdir=runs/alpacare-7b
    python -m alpacare_jax.train --config=configs/alpacare.py:llama2-13b,data=alpaca --workdir=...

Variants: llama-7b, llama-13b, llama2-7b, llama2-13b. Data: alpacare (MedInstruct-52k, max length
1,024) or alpaca (Alpaca-52k, 512). 52,002 examples give 1,218 steps at 7B and 2,030 at 13B.

PLANNED says which slices and hosts the recipes fit, by `alpacare_jax.plan`, and what makes room on
the smallest. On one H200 let JAX have the memory: XLA_CLIENT_MEM_FRACTION=0.95. Where some is left,
as on v5p, --config.model.remat=dots is faster.

Time to expect at 50 % MFU and 300 tokens an example: 7B about 64 min on one H200, 8 on eight H100,
20 on a v5e-16 slice (calculated, not measured). Score to expect: the loss of Stanford's own
LLaMA-7B log on Alpaca-52k is 1.09, 0.75 and 0.50 as epoch means (at batch 256).
"""

from ml_collections import config_dict

from configs import common

# The paper's two sizes, AlpaCare training/training-{7b,13b}.sh.
EPOCHS_AND_RATE = {"7b": (3, 2e-5), "13b": (5, 1e-5)}
OFFLOAD = {"optimizer.offload": True, "train.microbatch_tokens": 2048}
PLANNED = {
    "7b": {"v5e-16": {}, "v6e-8": {}, "v5p-8": {}, "v4-8": OFFLOAD, "h200-1": {}, "h100-8": {}},
    "13b": {"v5e-32": {}, "v6e-16": {}, "v4-16": OFFLOAD, "h100-8": {}},
}
VARIANTS = ("llama-7b", "llama-13b", "llama2-7b", "llama2-13b")
# Max length of each data set's recipe: AlpaCare's script, stanford_alpaca train.py.
MAX_LENGTH = {"alpacare": 1024, "alpaca": 512}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    arg = common.parse_arg(arg, positional="variant", variant="llama-7b", data="alpacare")
    if arg.variant not in VARIANTS:
        raise ValueError(f"unknown variant {arg.variant!r}; choose from {', '.join(VARIANTS)}")
    if arg.data not in MAX_LENGTH:
        raise ValueError(f"unknown data {arg.data!r}; choose from {', '.join(MAX_LENGTH)}")
    epochs, learning_rate = EPOCHS_AND_RATE[arg.variant.rsplit("-", 1)[1]]
    return config_dict.create(
        model=common.section(
            checkpoint=f"models/{arg.variant}",  # model directory from alpacare_jax.convert
            variant=arg.variant,  # the size that directory must have
            dtype="auto",  # compute dtype: bfloat16 on accelerators, float32 on CPU
            remat="full",  # kept for the backward pass: none (all), dots, full (nothing)
            attention="auto",  # kernel: auto, xla, splash (TPU) or cudnn (GPU)
            loss_tokens=2048,  # tokens a device holds logits of at a time
        ),
        data=common.section(
            path={"alpacare": "data/MedInstruct-52k.json", "alpaca": "data/alpaca_data.json"}[
                arg.data
            ],
            eval_path="",  # held-out examples; "" takes eval_share of path
            eval_share=0.0,  # the recipe trains on everything
            template="alpaca",  # key of prompts.TEMPLATES
            max_length=MAX_LENGTH[arg.data],  # tokens an example, BOS and EOS included
            overlong="truncate",  # truncate, drop or error
            row_multiple=128,  # packed rows are a multiple of so many tokens
            max_row_length=2048,  # and at most so long, whatever max_length is
        ),
        optimizer=common.section(
            name="adamw",  # or adafactor: next to no moments; betas, epsilon and first_moment idle
            learning_rate=learning_rate,  # peak
            schedule="cosine",  # cosine, linear or constant
            warmup_ratio=0.03,  # share of steps, rounded up
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            weight_decay=0.0,  # on matrices only
            max_grad_norm=1.0,  # clip by global norm; 0: off
            first_moment="float32",  # or bfloat16: 2 bytes a weight less
            offload=False,  # moments in the host's memory: 8 bytes a weight less, slower steps
        ),
        train=common.section(
            batch_size=128,  # examples a step, over all devices
            epochs=epochs,
            microbatch_tokens=4096,  # most tokens of one device at a time
            log_every=10,  # steps between progress lines
            eval_every=0,  # steps between evaluations; 0: start and end only
            seed=42,  # transformers' default seed
            tensorboard=False,
        ),
        checkpoint=common.section(
            every_steps=200,  # steps between checkpoints; 0: at the end only
            keep=1,  # latest checkpoints kept, beside the best
        ),
        sharding=common.sharding(),
        profile="",  # "10,15" writes a trace of these steps to WORKDIR/profile
    )


def sweep(add):
    """Learning rates around the recipe's; `add(**overrides)` queues one run."""
    for learning_rate in (5e-6, 1e-5, 2e-5, 4e-5):
        add(**{"optimizer.learning_rate": learning_rate})
