"""Prints training examples token by token, with the loss mask in colour.

python -m alpacare_jax.tokenizer --checkpoint=DIR --input=examples.jsonl --show=3
"""

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np
from absl import flags

from alpacare_jax.checkpoints import model_folder
from alpacare_jax.data import chat_template, prompts, tokenizers
from alpacare_jax.data.encoding import EncodedExample, encode_example
from alpacare_jax.data.tokenizers import Tokenizer
from common import cli, paths
from common.records import read_examples

DIM, GREEN = "\x1b[2m{}\x1b[0m", "\x1b[32m{}\x1b[0m"  # terminal colours


def render(encoded: EncodedExample, tokenizer: Tokenizer, color: bool) -> str:
    """One record as text, with `|` between tokens.

    With `color`, tokens that carry loss are green and the others dim; otherwise those are in
    brackets: `<s>|Say| hi|:[Hi][</s>]`.
    """
    marks, drawn = (DIM, GREEN) if color else ("{}", "[{}]"), []
    borders = np.flatnonzero(np.diff(encoded.loss)) + 1
    for ids, loss in zip(*(np.split(x, borders) for x in (encoded.ids, encoded.loss)), strict=True):
        cells = _cells([int(i) for i in ids], tokenizer)
        between = "" if loss.any() and not color else marks[0].format("|")
        drawn.append(between.join(marks[int(loss.any())].format(cell) for cell in cells))
    return marks[0].format("|").join(drawn) if color else "".join(drawn)


def _cells(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Printable text of each token; tokens that share one character form one cell."""
    pending: list[int] = []
    for token_id, following in zip_longest(ids, ids[1:]):
        if token_id in tokenizer.control_ids:
            yield tokenizer.piece(token_id)
            continue
        pending.append(token_id)
        text = tokenizer.decode(pending, continuation=True)
        is_last = following is None or following in tokenizer.control_ids
        if is_last or not text.endswith("\ufffd"):  # otherwise the character is incomplete
            cell = (c if c.isprintable() else "↵\n" if c == "\n" else ascii(c)[1:-1] for c in text)
            yield "".join(cell) + (f"‹{len(pending)}›" if len(pending) > 1 else "")
            pending = []


def define_flags() -> None:
    """Defines this command's flags; at module level they would clash with other commands'."""
    flags.DEFINE_string("checkpoint", None, "Folder with the tokenizer files.", required=True)
    flags.DEFINE_string("input", None, "Examples, in any form.", required=True)
    flags.DEFINE_integer("show", 3, "Number of records to print.", lower_bound=0)
    flags.DEFINE_string(
        "template", None, "Prompt template, as of generate; default: of the model's training."
    )
    flags.DEFINE_enum("loss", "template", prompts.LOSSES, "Tokens that carry it, as data.loss.")
    flags.DEFINE_integer("max_length", 1024, "Limit for counting long records.", lower_bound=1)
    flags.DEFINE_enum(
        "color", "auto", ["auto", "always", "never"], "Use colour; auto: on a terminal."
    )


def main(argv: Sequence[str]) -> None:
    """Prints the first records of a file, then token counts of all."""
    del argv
    args = flags.FLAGS
    paths.check(args.checkpoint, args.input)
    on_terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org
    color = args.color == "always" or (args.color == "auto" and on_terminal)
    tokenizer = tokenizers.load(args.checkpoint)
    examples = read_examples(args.input)
    name = args.template or model_folder.trained_template(args.checkpoint) or "alpaca"
    template = chat_template.load(name, args.checkpoint, tokenizer)
    no_loss = DIM.format("dim: no loss") if color else "no loss"
    loss = GREEN.format("green: loss") if color else "[loss]"
    print(
        f"legend: {no_loss}, {loss}, | between tokens, ↵ newline, ‹3› one character in 3 tokens, "
        "special tokens by name"
    )
    tokens = loss_tokens = over_long = empty = 0
    for number, example in enumerate(examples):
        encoded = encode_example(example, tokenizer, template, args.loss)
        if number < args.show:
            print(f"\n{example.id}: {len(encoded.ids):,} tokens")
            print(render(encoded, tokenizer, color))
        tokens += len(encoded.ids)
        loss_tokens += encoded.num_targets
        over_long += len(encoded.ids) > args.max_length
        empty += not example.output.strip()
    print(
        f"\n{len(examples):,} records: {tokens:,} tokens, {loss_tokens:,} carry loss; "
        f"{over_long:,} records over max_length {args.max_length:,}"
        + f"; {empty:,} with an empty output, which train leaves out"
        * bool(empty)
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
