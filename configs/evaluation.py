"""Dual-sided judging, and reference answers, by any model with an API.

    python -m evaluation.judge --config=configs/evaluation.py --benchmark=medinstruct \\
        --outputs=alpacare-7b=outputs.jsonl --references=gpt-4,claude-2 --workdir=judged/luna \\
        --config.judges=alpacare,medical --config.chat.model=gpt-6-luna

Another provider: --config.chat.provider=anthropic --config.chat.model=claude-haiku-5-5. Your own
server (vLLM, Ollama, ours): --config.chat.base_url=http://localhost:8000/v1. Models that accept
sampling parameters judge more consistently at --config.chat.temperature=0.

Your own server with a model too small for the full prompts: --config=configs/evaluation.py:small.

Expected price for one model on MedInstruct-test (216 items, 4 references, both orders): 1,728
requests of about 1,000 input tokens, some $0.20 with gpt-6-luna and $4 with gpt-6.1-sol if the
judge does not explain; --dry_run estimates it for your files.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    args = common.parse_arg(arg, small=False)
    config = config_dict.create(
        **common.limits(),
        judges="alpacare",
        reasks=2,
        # A judge's reasoning counts among its tokens, so there is room for it: a reply that is cut
        # off has no verdict.
        chat=common.chat(provider="openai", model="gpt-6-luna", max_tokens=4096),
    )
    if args.small:
        config.update_from_flattened_dict(
            {
                "judges": "published=small",
                "reasks": 0,
                "chat.max_tokens": 32,
                "chat.temperature": 0.0,
                "chat.extra_body": '{"stop": [".", " than"]}',  # before it contradicts itself
                "chat.concurrency": 8,
            }
        )
    return config
