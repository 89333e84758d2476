"""The paper's systems: AlpaCare, and its general-domain twin Alpaca, with their exact recipes.

    python -m alpacare_jax.train --config=configs/alpacare.py:llama-7b --workdir=runs/alpacare-7b
    python -m alpacare_jax.train --config=configs/alpacare.py:llama2-13b,data=alpaca --workdir=...

Variants: llama-7b, llama-13b, llama2-7b, llama2-13b. Data: alpacare (MedInstruct-52k, max length
1,024) or alpaca (Alpaca-52k, 512). 52,002 examples give 1,218 steps at 7B and 2,030 at 13B.

PLANNED lists the slices and hosts that the recipes fit, by `alpacare_jax.plan`, with the overrides
that the smallest require. On one H200 let JAX allocate the memory: XLA_CLIENT_MEM_FRACTION=0.95.

Expected time at 50 % MFU and 300 tokens per example: 7B about 64 min on one H200, 8 on eight H100,
20 on a v5e-16 slice (calculated, not measured). Expected score: the loss of Stanford's own
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
# File and max length of each data set's recipe: AlpaCare's script, stanford_alpaca train.py.
DATA = {
    "alpacare": ("data/MedInstruct-52k.json", 1024),
    "alpaca": ("data/alpaca_data.json", 512),
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    args = common.parse_arg(arg, positional="variant", variant="llama-7b", data="alpacare")
    if args.variant not in VARIANTS:
        raise ValueError(f"unknown variant {args.variant!r}; choose from {', '.join(VARIANTS)}")
    if args.data not in DATA:
        raise ValueError(f"unknown data {args.data!r}; choose from {', '.join(DATA)}")
    path, max_length = DATA[args.data]
    epochs, learning_rate = EPOCHS_AND_RATE[args.variant.rsplit("-", 1)[1]]
    return config_dict.create(
        model=common.section(
            checkpoint=f"models/{args.variant}",
            variant=args.variant,
            dtype="auto",
            remat="auto",
            attention="auto",
            loss_tokens=2048,
        ),
        lora=common.lora(),
        data=common.section(
            path=path,
            eval_path="",
            eval_share=0.0,  # the recipe trains on everything
            template="alpaca",
            loss="template",
            max_length=max_length,
            overlong="truncate",
            row_multiple=128,
            max_row_length=2048,
        ),
        optimizer=common.section(
            name="adamw",
            learning_rate=learning_rate,
            schedule="cosine",
            warmup_ratio=0.03,
            warmup_steps=0,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            weight_decay=0.0,
            max_grad_norm=1.0,
            first_moment="float32",
            offload=False,
        ),
        train=common.section(
            batch_size=128,
            epochs=epochs,
            microbatch_tokens=4096,
            log_every=10,
            eval_every=0,
            fp8=False,
            seed=42,  # transformers' default
            samples=0,
            check_kernel=True,
            tensorboard=False,
            wandb=False,
        ),
        preference=common.section(beta=0.0, sft_weight=0.0),
        checkpoint=common.section(every_steps=200, keep=1),
        sharding=common.sharding(),
        profile="",
    )


def sweep(add):
    """Learning rates around the recipe's; `add(**overrides)` queues one run."""
    for learning_rate in (5e-6, 1e-5, 2e-5, 4e-5):
        add(**{"optimizer.learning_rate": learning_rate})
