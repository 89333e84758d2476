"""From seed tasks to an instruction set, with the paper's settings where models still allow them.

    python -m datagen.tasks     --config=configs/datagen.py --workdir=D
    python -m datagen.responses --config=configs/datagen.py --workdir=D --input=D/tasks.jsonl

Arguments: a domain, medicine or a folder of configs/domains, such as law; then small, for a teacher
of your own that is too small for the rules of the full prompts.

    python -m datagen.tasks --config=configs/datagen.py:law,small --workdir=D

The paper's GPT-4 and GPT-3.5-turbo are retired, and most current models reject its temperature 1.0
and presence penalty 1.5. For a model that accepts them, such as your own behind vLLM:
--config.teacher.temperature=1.0 --config.teacher.presence_penalty=1.5.
"""

from pathlib import Path

from ml_collections import config_dict

from configs import common

DOMAINS = Path(__file__).with_name("domains")


def files(domain: str) -> tuple[str, str]:
    """Of a domain: the file of its seeds, and what stands before and after its prompts' names.

    Raises:
      ValueError: there is no such domain.
    """
    known = ["medicine", *sorted(path.parent.name for path in DOMAINS.glob("*/seeds.jsonl"))]
    if domain not in known:
        raise ValueError(f"unknown domain {domain!r}; choose from {', '.join(known)}")
    if domain == "medicine":
        return "datagen/starter/seeds.jsonl", "{}"  # the paper's 167 are not free for all uses
    return f"configs/domains/{domain}/seeds.jsonl", f"configs/domains/{domain}/{{}}.txt"


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    args = common.parse_arg(arg, positional="domain", domain="medicine", small=False)
    seeds, prompt = files(args.domain)
    config = config_dict.create(
        **common.limits(),
        tasks=common.section(
            num_tasks=52_002,  # the paper's number
            max_requests=0,
            seeds=seeds,
            prompt=prompt.format("tasks"),
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
            prompt=prompt.format("responses"),
            include="",
            min_rating=0.0,
            rating_prompt=prompt.format("rating"),
        ),
        responder=common.chat("openai", "gpt-6-luna", max_tokens=2_000),
        rater=common.chat("openai", "gpt-6-luna", max_tokens=2_000),
    )
    if args.small:
        config.update_from_flattened_dict(
            {
                "tasks.num_tasks": 8,
                "tasks.max_requests": 6,  # a small model may never write so many
                "tasks.prompt": prompt.format("small_tasks"),
                "tasks.tasks_per_request": 2,
                "tasks.seeds_per_request": 2,
                "teacher.max_tokens": 144,
                "responses.prompt": prompt.format("small_responses"),
                "responder.max_tokens": 96,
                "responder.temperature": 0.0,
                "responder.extra_body": '{"stop": ["\\n\\n"]}',  # it would ramble on
                # A rerun gets the same tasks, where the server keeps to the seed.
                "teacher.extra_body": '{"seed": 1}',
                "teacher.temperature": 0.7,
            }
        )
        for model in ("teacher", "responder"):
            config[model].concurrency = 8
    return config
