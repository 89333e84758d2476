"""From seed tasks to an instruction set, with the paper's settings where models still allow them.

    python -m datagen.tasks     --config=configs/datagen.py --workdir=D
    python -m datagen.responses --config=configs/datagen.py --workdir=D --input=D/tasks.jsonl

The paper's GPT-4 and GPT-3.5-turbo are retired, and most current models reject its temperature 1.0
and presence penalty 1.5. For a model that accepts them, such as your own behind vLLM:
--config.teacher.temperature=1.0 --config.teacher.presence_penalty=1.5.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    common.parse_arg(arg)
    return config_dict.create(
        **common.limits(),
        tasks=common.section(
            num_tasks=52_002,  # the paper's number
            seeds="datagen/starter/seeds.jsonl",  # the paper's 167 are not free for all uses
            prompt="tasks",
            reply="text",
            tasks_per_request=12,
            seeds_per_request=3,
            machine_tasks_per_request=0,
            machine_lag=200,
            seed=42,
            threshold=0.7,
            tokenizer="rouge",
            against="",
        ),
        filters=common.section(  # all off, as in the paper
            min_words=0,
            max_words=0,
            min_input_words=0,
            max_input_words=0,
            blacklist="",
            domain_words="",
            language="",
        ),
        teacher=common.chat("openai", "gpt-6.1-sol", max_tokens=8_000),
        responses=common.section(
            prompt="responses",
            include="",
            min_rating=0.0,
            rating_prompt="rating",
        ),
        responder=common.chat("openai", "gpt-6-luna", max_tokens=2_000),
        rater=common.chat("openai", "gpt-6-luna", max_tokens=2_000),
    )
