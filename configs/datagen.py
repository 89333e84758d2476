"""From seed tasks to an instruction set, with the settings of the paper where there are any today.

python -m datagen.tasks     --config=configs/datagen.py --workdir=D
python -m datagen.responses --config=configs/datagen.py --workdir=D --input=D/tasks.jsonl

The paper's GPT-4 and GPT-3.5-turbo are retired, and its temperature 1.0 and presence penalty 1.5
are refused by most models of today; for one that takes them, such as a model of your own behind
vLLM: --config.teacher.temperature=1.0 --config.teacher.presence_penalty=1.5.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    common.parse_arg(arg)
    return config_dict.create(
        **common.limits(),  # budget_usd, budget_tokens, offline
        tasks=common.section(
            num_tasks=52_002,  # that are kept; the paper's number
            seeds="datagen/starter/seeds.jsonl",  # the paper's 167 are not free for all uses
            prompt="tasks",  # name in datagen/prompts, or a .txt file of your own
            reply="text",  # or json, for models that can be held to a JSON schema
            tasks_per_request=12,  # that one request asks for
            seeds_per_request=3,  # that it shows as examples
            machine_tasks_per_request=0,  # and tasks of the teacher's own, once there are any
            machine_lag=200,  # requests after which a task may be shown; as many go out at once
            seed=42,  # of the choice of examples
            threshold=0.7,  # ROUGE-L F above which a task is a near-duplicate; 0: no such filter
            tokenizer="rouge",  # or unicode, which sees more than a to z
            against="",  # files, besides the seeds, that no task may be near to: "test.jsonl,..."
        ),
        filters=common.section(  # all off, as in the paper
            min_words=0,  # of the instruction; Alpaca: 4
            max_words=0,  # of the instruction; 0: no limit; Alpaca: 150
            min_input_words=0,  # of an input that is not empty; the prompt asks for 50
            max_input_words=0,  # the prompt asks for 200
            blacklist="",  # "image, plot, video": words that no instruction may hold
            domain_words="",  # datagen/prompts/medical_words.txt: a task must hold one of these
            language="",  # "en": a task must be written in it
        ),
        teacher=common.chat("openai", "gpt-6.1-sol", max_tokens=8_000),
        responses=common.section(
            prompt="responses",  # name in datagen/prompts, or a .txt file of your own
            include="",  # "truncated,refused": answers to be trained on all the same
            min_rating=0.0,  # of 5, by the rater: AlpaGasus keeps 4.5; 0: nobody is asked
            rating_prompt="rating",
        ),
        responder=common.chat("openai", "gpt-6-luna", max_tokens=2_000),
        rater=common.chat("openai", "gpt-6-luna", max_tokens=2_000),
    )
