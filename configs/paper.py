"""The paper from its data to its tables, for launch/paper.sh: which systems, test sets and judges.

    bash launch/paper.sh --workdir=runs/paper --dry_run

The paper's LLaMA-1 systems of 7B and 13B and AlpaCare and Alpaca on LLaMA 2, on its three test
sets. AlpaCare's own four are trained here; the answers of all others are those that it published.
`trained` takes every row of configs/baselines.py, with the data that the row names.

The paper's four references are no longer served: their published answers are used. Of AlpacaFarm's
set only text-davinci-003's are in AlpaCare/data; put those of alpaca_eval into
references/NAME/alpaca_farm.json there, and name them in benchmarks.alpaca_farm.references. Its
judges, gpt-3.5-turbo and claude-2, are not served either: two current models judge here.

Expected price: `--dry_run` prints it. Expected score: not known for these judges.
"""

from ml_collections import config_dict

from configs import common, datagen, evaluation

REFERENCES = "gpt-4,gpt-3.5-turbo,text-davinci-003,claude-2"
PUBLISHED = (
    "alpaca,alpaca-13b,alpaca-7b-llama-2,alpaca-13b-llama-2,ChatDoctor_weights,medalpaca-7b,"
    "medalpaca-13b,PMC_LLAMA_7B,PMC_LLaMA_13B,baize-h-7b"
)


def judge(model: str, provider: str = "openai") -> config_dict.ConfigDict:
    """The settings of configs/evaluation.py for one model."""
    config = evaluation.get_config()
    config.update_from_flattened_dict({"chat.model": model, "chat.provider": provider})
    return config


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    common.parse_arg(arg)
    return config_dict.create(
        published="AlpaCare/data",
        examples="",
        datagen=datagen.get_config(),
        trained="alpacare-7b,alpacare-13b,alpacare-7b-llama-2,alpacare-13b-llama-2",
        mode="paper",
        benchmarks=common.section(
            medinstruct=common.section(file="", references=REFERENCES, imported=PUBLISHED),
            icliniq=common.section(file="", references=REFERENCES, imported=PUBLISHED),
            alpaca_farm=common.section(file="", references="text-davinci-003", imported=PUBLISHED),
        ),
        live=common.section(),
        judges=common.section(
            luna=judge("gpt-6-luna"),
            haiku=judge("claude-haiku-5-5", "anthropic"),
        ),
        choices="",
        rubric="",
        flags=common.section(train="", generate="", choices="", rubric="", serve="", report=""),
        devices=common.section(
            train_launcher="",
            generate_launcher="",
            folder="",
            topology="v6e-16",
            price=config_dict.placeholder(float),
            example_tokens=300,
            new_tokens=300,
            slots=64,
            generate="--config.sharding.fsdp=1 --config.sharding.data=2 --config.sharding.tensor=8",
        ),
    )
