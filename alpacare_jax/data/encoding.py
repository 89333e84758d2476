"""Records to token ids: which tokens are the prompt, which are trained on, and what is left out."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from alpacare_jax.data.prompts import Template
from alpacare_jax.data.tokenizers import Tokenizer
from common.records import Example


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    path: str  # Examples: .jsonl or .json, .gz or not
    eval_path: str  # held-out Examples; "" takes eval_share of path instead
    eval_share: float  # share of path held out, 0 for none
    template: str  # key of prompts.TEMPLATES
    max_length: int  # longest example in tokens, BOS and EOS included
    overlong: str  # what to do with longer ones: truncate, drop or error
    row_multiple: int  # packed rows have a multiple of this many tokens
    max_row_length: int  # and are at most this long, or as long as max_length

    def __post_init__(self):
        if self.overlong not in ("truncate", "drop", "error"):
            raise ValueError(f"data.overlong is {self.overlong!r}; choose truncate, drop or error")
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"data.eval_share is {self.eval_share}; it must be in [0, 1)")
        if self.eval_share and self.eval_path:
            raise ValueError("set data.eval_path or data.eval_share, not both")
        if self.row_multiple < 1 or self.max_length < 2:
            raise ValueError("data.row_multiple must be at least 1, data.max_length at least 2")


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """Token ids of prompt, response and EOS; loss falls on ids[prompt_length:]."""

    ids: np.ndarray  # int32
    prompt_length: int

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.prompt_length


def encode_prompt(example: Example, tokenizer: Tokenizer, template: Template) -> list[int]:
    """BOS, where the tokenizer has the habit, and the prompt."""
    bos = [tokenizer.bos_id] if tokenizer.adds_bos else []
    return bos + tokenizer.encode(template.prompt(example.instruction, example.input))


def encode_example(example: Example, tokenizer: Tokenizer, template: Template) -> EncodedExample:
    """Prompt and response are tokenised apart, so no token straddles the boundary.

    ids           = [BOS, 10, 11, 12, 20, 21, EOS]
    prompt_length = 4
    """
    prompt = encode_prompt(example, tokenizer, template)
    response = tokenizer.encode(example.output, continuation=True)
    ids = np.array([*prompt, *response, tokenizer.eos_id], np.int32)
    return EncodedExample(ids, len(prompt))


def encode_all(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: Template,
    config: DataConfig,
    report: Callable[[str], None],
) -> list[EncodedExample]:
    """Encodes every example that can be trained on; `report` is told of each kind left out.

    Truncation cuts the end, EOS included, as the original does: a cut answer must not teach the
    model to stop there.

    Raises:
      ValueError: an example is over-long under `overlong="error"`, or none is left.
    """
    kept, empty, overlong, promptonly = [], 0, 0, 0
    for example in examples:
        if not example.output.strip():
            empty += 1
            continue
        encoded = encode_example(example, tokenizer, template)
        if len(encoded.ids) > config.max_length:
            if config.overlong == "error":
                raise ValueError(
                    f"example {example.id} is {len(encoded.ids):,} tokens, over data.max_length "
                    f"{config.max_length:,}; raise it or set data.overlong to truncate or drop"
                )
            overlong += 1
            encoded = EncodedExample(encoded.ids[: config.max_length], encoded.prompt_length)
            if config.overlong == "drop":
                continue
            if encoded.num_targets <= 0:
                promptonly += 1
                continue
        kept.append(encoded)
    done = {"truncate": "truncated", "drop": "dropped"}.get(config.overlong, "")
    for number, what in (
        (empty, "with an empty output dropped"),
        (overlong, f"over {config.max_length:,} tokens {done}"),
        (promptonly, "of those dropped: the prompt alone fills the length"),
    ):
        if number:
            report(f"{number:,} of {len(examples):,} examples {what}")
    if not kept:
        raise ValueError("no example is left to train on; see data.max_length and data.overlong")
    return kept
