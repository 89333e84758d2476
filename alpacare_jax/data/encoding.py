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
from common.text.conversations import Turn

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

    By default those of the response do: ids[prompt_length:]. Of a conversation, the prompt is all
    before the last answer.
    """

    ids: np.ndarray  # int32
    prompt_length: int
    loss: np.ndarray = None  # pyright: ignore[reportAssignmentType] - bool, as long as ids
    answers: tuple[tuple[int, int], ...] = ()  # start and end of each, of a conversation

    def __post_init__(self):
        if self.loss is None:
            object.__setattr__(self, "loss", np.arange(len(self.ids)) >= self.prompt_length)

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return int(self.loss.sum())

    def truncated(self, length: int, at_turn: bool = True) -> "EncodedExample":
        """Its first `length` tokens; of a conversation with `at_turn`, its first whole turns."""
        whole = tuple(answer for answer in self.answers if answer[1] <= length)
        if at_turn and whole:
            (first, length), kept = whole[-1], whole
        else:
            starts = (start for start, _ in self.answers if start < length)
            first, kept = max(starts, default=self.prompt_length), ()
        return EncodedExample(self.ids[:length], first, self.loss[:length], kept)


def encode_prompt(
    example: Example, tokenizer: Tokenizer, template: Template | ChatTemplate
) -> list[int]:
    """The ids of the prompt, after BOS where tokenizer and template add one."""
    return _encode(example, None, tokenizer, template)[0]


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

    Where the template ends an answer with a control token, it takes the place of EOS. Where it
    marks what is generated, that carries loss and nothing else. Nothing predicts the first token.

    Args:
      loss: one of prompts.LOSSES; of a conversation every answer is a response.
    """
    ids, answers = _encode(example, example.output, tokenizer, template)
    carries = np.zeros(len(ids), bool)
    loss = template.loss if loss == "template" else loss
    for start, end in answers[-1:] if loss == "last" else answers:
        carries[start:end] = True
    if loss == "all":
        carries[1:] = True
    first, _ = answers[-1]
    return EncodedExample(
        np.array(ids, np.int32), first, carries, tuple(answers) if len(answers) > 1 else ()
    )


def _encode(
    example: Example,
    output: str | None,
    tokenizer: Tokenizer,
    template: Template | ChatTemplate,
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a conversation, up to its last question without `output`; spans of its answers."""
    guard = tokenizer.guard
    history = [Turn(role, guard(text)) for role, text in example.history]
    texts = guard(example.instruction), guard(example.input)
    pieces = template.pieces(history, *texts, None if output is None else guard(output))
    bos = tokenizer.bos_id if template.bos and tokenizer.adds_bos else None
    ids, answers = [] if bos is None else [bos], []
    rest: list[int] = []  # of an answer, behind the control token that ends it
    for number, piece in enumerate(pieces):
        found = tokenizer.encode_template(piece, continuation=number > 0)
        if number % 2 == 0:
            last = number == len(pieces) - 1 and output is not None
            ids += rest + (_ended(found, tokenizer)[0] if last else found)
            continue
        if not template.marked:
            found, rest = _ended(found, tokenizer)
            if not found:
                ends = number == len(pieces) - 1 or not template.between
                found, rest = rest + [tokenizer.eos_id] * ends, []
        answers.append((len(ids), len(ids) + len(found)))
        ids += found
    return ids, answers


def _ended(ids: list[int], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids up to the last control token, which ends an answer, and the newline or so behind it."""
    end = max((i for i, id_ in enumerate(ids, 1) if id_ in tokenizer.control_ids), default=0)
    return ids[:end], ids[end:]


def end_id(tokenizer: Tokenizer, template: Template | ChatTemplate) -> int:
    """The token that ends an answer in training: EOS, or a control token of the template."""
    return int(encode_example(Example("", "a", "", "b"), tokenizer, template).ids[-1])


UNMARKED = (
    "without loss on what ends an answer, which the chat template does not mark: the model does "
    "not learn to stop"
)
"""Of examples; the chat template is the one that says so."""

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
    overlong = f"over {config.max_length:,} tokens"
    for start in range(0, len(examples), answers):
        record = examples[start : start + answers]
        if not all(example.output.strip() for example in record):
            counts["dropped: empty output"] += 1
            continue
        try:
            encoded = [encode_example(one, tokenizer, template, config.loss) for one in record]
        except ValueError as error:
            raise ValueError(
                f"example {record[0].id}: {error} (data.template is {config.template})"
            ) from None
        if template.marked and any(
            one.ids[one.loss][-1] not in tokenizer.control_ids for one in encoded
        ):
            counts[UNMARKED] += 1
        if (longest := max(len(one.ids) for one in encoded)) > config.max_length:
            if config.overlong == "error":
                raise ValueError(
                    f"example {record[0].id} is {longest:,} tokens, over data.max_length "
                    f"{config.max_length:,}; raise it or set data.overlong to truncate or drop"
                )
            at_turn = config.overlong == "truncate" and answers == 1
            encoded = [one.truncated(config.max_length, at_turn) for one in encoded]
            counts[f"{action}{' after a whole turn' * bool(encoded[0].answers)}: {overlong}"] += 1
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
