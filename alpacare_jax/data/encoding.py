"""Records to token ids: which tokens are prompt, which are targets, and what is left out."""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from alpacare_jax.data import prompts
from alpacare_jax.data.chat_template import ChatTemplate
from alpacare_jax.data.prompts import Template
from alpacare_jax.data.tokenizers import Tokenizer
from common import sections
from common.records import Example

MAX_ROW_LENGTH = 2**20
"""Tokens; attention over a longer row fits on no device."""


MAX_ROW_LENGTHS = 2048
"""Different lengths of rows, of which packing tries every one before the first step."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training data."""

    path: str  # Examples: JSON lines, a JSON array, CSV or Parquet, gzipped or not
    eval_path: str  # held-out Examples; "" holds out eval_share of path instead
    eval_share: float  # share of path held out, 0 for none
    template: str  # a name, such as alpaca; chat is the tokenizer's own (docs/templates.md)
    loss: str  # tokens that carry it: template (as its authors did), responses, last or all
    max_length: int  # of an example in tokens, including BOS and EOS
    overlong: str  # action for longer ones: truncate, drop or error
    row_multiple: int  # packed rows are padded to a multiple of this many tokens
    max_row_length: int  # of packed rows in tokens; max_length if that is more

    def __post_init__(self):
        if not self.path:
            raise ValueError("data.path is empty; give the file of the training data")
        prompts.check_name(self.template)
        sections.choice("data.loss", self.loss, prompts.LOSSES)
        sections.choice("data.overlong", self.overlong, ("truncate", "drop", "error"))
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"data.eval_share is {self.eval_share}; it must be in [0, 1)")
        if self.eval_share and self.eval_path:
            raise ValueError("set data.eval_path or data.eval_share, not both")
        if self.row_multiple < 1 or self.max_length < 2:
            raise ValueError("data.row_multiple must be at least 1, data.max_length at least 2")
        for name in ("row_multiple", "max_row_length"):
            if not 0 <= getattr(self, name) <= MAX_ROW_LENGTH:
                raise ValueError(
                    f"data.{name} is {getattr(self, name):,}; rows have 1 to {MAX_ROW_LENGTH:,} "
                    "tokens"
                )
        if max(self.max_length, self.max_row_length) > MAX_ROW_LENGTHS * self.row_multiple:
            raise ValueError(
                f"data.row_multiple is {self.row_multiple:,}: too small for rows of "
                f"{max(self.max_length, self.max_row_length):,} tokens, whose lengths would be "
                f"more than {MAX_ROW_LENGTHS:,}; raise it"
            )


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """Token ids of prompt, response and EOS, and which of them carry loss.

    By default those of the response do: ids[prompt_length:].
    """

    ids: np.ndarray  # int32
    prompt_length: int
    loss: np.ndarray = None  # pyright: ignore[reportAssignmentType] - bool, as long as ids

    def __post_init__(self):
        if self.loss is None:
            object.__setattr__(self, "loss", np.arange(len(self.ids)) >= self.prompt_length)

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return int(self.loss.sum())

    def truncated(self, length: int) -> "EncodedExample":
        """Its first `length` tokens."""
        return EncodedExample(self.ids[:length], self.prompt_length, self.loss[:length])


def encode_prompt(
    example: Example, tokenizer: Tokenizer, template: Template | ChatTemplate
) -> list[int]:
    """The ids of the prompt, after BOS where tokenizer and template add one."""
    adds_bos = template.bos and tokenizer.adds_bos
    bos = [tokenizer.bos_id] if adds_bos and tokenizer.bos_id is not None else []
    texts = map(tokenizer.guard, (example.instruction, example.input))
    return bos + tokenizer.encode_template(template.prompt(*texts))


def encode_example(
    example: Example,
    tokenizer: Tokenizer,
    template: Template | ChatTemplate,
    loss: str = "template",
) -> EncodedExample:
    """Prompt and response are tokenised separately, so no token straddles the boundary.

    ids           = [BOS, 10, 11, 12, 20, 21, EOS]
    prompt_length = 4
    loss          = [  0,  0,  0,  0,  1,  1,   1]    all: [0, 1, 1, 1, 1, 1, 1]

    Where the template ends an answer with a control token, it takes the place of EOS. Nothing
    predicts the first token.

    Args:
      loss: one of prompts.LOSSES.
    """
    prompt = encode_prompt(example, tokenizer, template)
    texts = map(tokenizer.guard, (example.instruction, example.input, example.output))
    response = tokenizer.encode_template(template.response(*texts), continuation=True)
    controls = [i for i, token_id in enumerate(response) if token_id in tokenizer.control_ids]
    # A template may write a newline behind its control token; the answer has ended there.
    response = response[: controls[-1] + 1] if controls else [*response, tokenizer.eos_id]
    ids = np.array([*prompt, *response], np.int32)
    everything = (template.loss if loss == "template" else loss) == "all"
    first = 1 if everything else len(prompt)
    return EncodedExample(ids, len(prompt), np.arange(len(ids)) >= first)


def end_id(tokenizer: Tokenizer, template: Template | ChatTemplate) -> int:
    """The token that ends an answer in training: EOS, or a control token of the template."""
    return int(encode_example(Example("", "a", "", "b"), tokenizer, template).ids[-1])


NOUNS = {1: "examples", 2: "pairs"}
"""Answers of a record -> what messages call such records."""


def encode_all(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: Template | ChatTemplate,
    config: DataConfig,
    report: Callable[[str], None],
    answers: int = 1,
) -> list[EncodedExample]:
    """Encodes every usable record; `report` receives one line per kind of change or omission.

    Truncation removes the end, EOS included, as in the original: the model must not learn to stop
    where an answer was cut. An answer that is not usable takes the other one of its pair with it.

    Args:
      answers: consecutive examples that make a record: 2 for pairs.

    Raises:
      ValueError: an example is too long and `overlong` is "error", or no example is left.
    """
    kept, counts = [], collections.Counter()
    action = {"truncate": "truncated", "drop": "dropped"}.get(config.overlong, "")
    overlong = f"{action}: over {config.max_length:,} tokens"
    for start in range(0, len(examples), answers):
        record = examples[start : start + answers]
        if not all(example.output.strip() for example in record):
            counts["dropped: empty output"] += 1
            continue
        encoded = [encode_example(example, tokenizer, template, config.loss) for example in record]
        if (longest := max(len(one.ids) for one in encoded)) > config.max_length:
            if config.overlong == "error":
                raise ValueError(
                    f"example {record[0].id} is {longest:,} tokens, over data.max_length "
                    f"{config.max_length:,}; raise it or set data.overlong to truncate or drop"
                )
            counts[overlong] += 1
            encoded = [one.truncated(config.max_length) for one in encoded]
            if config.overlong == "drop":
                continue
            if not all(one.num_targets > 0 for one in encoded):
                counts["dropped: no response is left after truncation"] += 1
                continue
        if answers == 2 and np.array_equal(encoded[0].ids, encoded[1].ids):
            counts["dropped: the two answers are the same"] += 1
            continue
        kept += encoded
    noun, total = NOUNS[answers], len(examples) // answers
    outcomes = [f"{count:,} of {total:,} {noun} {outcome}" for outcome, count in counts.items()]
    if not kept:
        remedy = (
            "give records with outputs"
            if counts["dropped: empty output"] == total
            else "check data.max_length and data.overlong"
        )
        raise ValueError(f"no example is left ({'; '.join(outcomes)}); {remedy}")
    for outcome in outcomes:
        report(outcome)
    return kept
