"""Records to token ids: prompt and targets, BOS and EOS, policies for long and empty examples."""

import dataclasses
import re
from collections import Counter

import pytest
import tokenizers as hf_tokenizers

from alpacare_jax.data import encoding, prompts, tokenizers
from alpacare_jax.data.encoding import DataConfig
from alpacare_jax.data.prompts import Template
from common.records import Example
from tests.conftest import write_tiny_tokenizer

CONFIG = DataConfig(
    path="train.jsonl",
    eval_path="",
    eval_share=0.0,
    template="alpaca",
    loss="template",
    max_length=8,
    overlong="truncate",
    row_multiple=8,
    max_row_length=40,
)
BARE = Template(with_input="{instruction} {input}", without_input="{instruction}")


class Numbers(tokenizers.Tokenizer):
    """A tokenizer whose text is its ids, written out: "10 11" is [10, 11]."""

    bos_id, eos_id, adds_bos = 1, 2, True
    control_ids = _forbidden_ids = frozenset([1, 2])
    _pieces, _spelled = {1: "<s>", 2: "</s>"}, re.compile("(<s>|</s>)")

    def _encode(self, text, continuation):
        return [int(word) for word in text.split()]

    def _decode(self, ids, continuation):
        return " ".join(map(str, ids))


def example(prompt: str, response: str, id: str = "e") -> Example:
    return Example(id, prompt, "", response)


def test_columns_of_one_example():
    one = encoding.encode_example(example("10 11 12", "20 21"), Numbers(), BARE)
    assert one.ids.tolist() == [1, 10, 11, 12, 20, 21, 2]
    assert one.prompt_length == 4
    assert one.num_targets == 3


def test_no_token_straddles_prompt_and_response():
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "a", "b", "ab"])}
    backend = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE(vocab, [("a", "b")]))

    class Merging(Numbers):
        bos_id, eos_id = 0, 1
        control_ids = _forbidden_ids = frozenset([0, 1])
        _pieces = {0: "<s>", 1: "</s>"}  # noqa: RUF012

        def _encode(self, text, continuation):
            return backend.encode(text).ids

    assert Merging().encode("ab") == [vocab["ab"]]
    one = encoding.encode_example(example("aa", "bb"), Merging(), BARE)
    assert one.ids.tolist() == [vocab[token] for token in ("<s>", "a", "a", "b", "b", "</s>")]
    assert one.prompt_length == 3


def test_the_trained_text_is_prompt_then_answer_then_eos(tmp_path):
    write_tiny_tokenizer(tmp_path)
    real, alpaca = tokenizers.load(tmp_path), prompts.TEMPLATES["alpaca"]
    record = Example("e", "what causes fever", "pain in the heart", "the lung\nand </s> the drug")
    one = encoding.encode_example(record, real, alpaca)
    prompt = alpaca.prompt(record.instruction, record.input)
    assert one.ids[0] == real.bos_id
    assert real.decode(one.ids[: one.prompt_length]) == prompt
    assert real.decode(one.ids[one.prompt_length : -1], continuation=True) == record.output
    assert one.ids[-1] == real.eos_id
    assert Counter(one.ids.tolist())[real.eos_id] == 1, "text must not become EOS"


def test_no_bos_where_the_tokenizer_has_no_such_habit():
    class NoBos(Numbers):
        bos_id, adds_bos = None, False

    one = encoding.encode_example(example("10 11", "20"), NoBos(), BARE)
    assert one.ids.tolist() == [10, 11, 20, 2]
    assert one.prompt_length == 2


def encode_all(outlengths, policy, prompt="10 11", **changes):
    """Encodes examples with `outlengths` response tokens each, beside 3 of BOS and prompt."""
    reported = []
    config = dataclasses.replace(CONFIG, overlong=policy, **changes)
    examples = [example(prompt, " ".join(["20"] * n), id=f"e{i}") for i, n in enumerate(outlengths)]
    return encoding.encode_all(examples, Numbers(), BARE, config, reported.append), reported


def test_what_fits_is_kept_and_nothing_is_reported():
    for policy in ("truncate", "drop", "error"):
        kept, reported = encode_all([1, 4], policy)
        assert [len(e.ids) for e in kept] == [5, 8]
        assert reported == []


def test_truncation_cuts_the_end_and_counts():
    kept, reported = encode_all([4, 5, 9], "truncate")
    assert [e.ids.tolist() for e in kept] == [
        [1, 10, 11, 20, 20, 20, 20, 2],
        [1, 10, 11, 20, 20, 20, 20, 20],
        [1, 10, 11, 20, 20, 20, 20, 20],
    ]
    assert [e.num_targets for e in kept] == [5, 5, 5]
    assert reported == ["2 of 3 examples truncated: over 8 tokens"]


def test_truncation_drops_what_keeps_no_answer():
    long_prompt = " ".join(["10"] * 7)
    reported = []
    examples = [example(long_prompt, "20"), example("10", "20")]
    kept = encoding.encode_all(examples, Numbers(), BARE, CONFIG, reported.append)
    assert [len(e.ids) for e in kept] == [4]
    assert reported == [
        "1 of 2 examples truncated: over 8 tokens",
        "1 of 2 examples dropped: no response is left after truncation",
    ]


def test_drop_counts():
    kept, reported = encode_all([4, 5, 9], "drop")
    assert [len(e.ids) for e in kept] == [8]
    assert reported == ["2 of 3 examples dropped: over 8 tokens"]


def test_error_names_the_example_and_the_remedy():
    with pytest.raises(ValueError, match=r"example e1 is 9 tokens, over data\.max_length 8; raise"):
        encode_all([4, 5], "error")


@pytest.mark.parametrize("policy", ["truncate", "drop", "error"])
def test_empty_outputs_are_dropped_and_counted(policy):
    examples = [example("10", ""), example("10", "20"), example("10", " \n")]
    reported = []
    config = dataclasses.replace(CONFIG, overlong=policy)
    kept = encoding.encode_all(examples, Numbers(), BARE, config, reported.append)
    assert [e.ids.tolist() for e in kept] == [[1, 10, 20, 2]]
    assert reported == ["2 of 3 examples dropped: empty output"]


def test_a_pair_stays_or_goes_as_a_whole():
    long = " ".join(["20"] * 9)
    pairs = [("20", "21"), ("20", long), ("", "21"), ("20", "20"), (long, long + " 21")]
    examples = [example("10", answer) for pair in pairs for answer in pair]

    def encode(policy):
        config, reported = dataclasses.replace(CONFIG, overlong=policy), []
        kept = encoding.encode_all(examples, Numbers(), BARE, config, reported.append, answers=2)
        return [e.ids.tolist() for e in kept], reported

    whole = [[1, 10, 20, 2], [1, 10, 21, 2]]
    cut = [1, 10, *[20] * 6]
    assert encode("drop") == (
        whole,
        [
            "2 of 5 pairs dropped: over 8 tokens",
            "1 of 5 pairs dropped: empty output",
            "1 of 5 pairs dropped: the two answers are the same",
        ],
    )
    kept, reported = encode("truncate")
    assert kept == [*whole, [1, 10, 20, 2], cut]
    assert reported[-1] == "2 of 5 pairs dropped: the two answers are the same"


@pytest.mark.parametrize("policy, lengths", [("drop", [9, 10]), ("truncate", [0]), ("error", [0])])
def test_nothing_left_is_an_error(policy, lengths):
    with pytest.raises(ValueError, match=r"no example is left \(\d of \d"):
        encode_all(lengths, policy)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"overlong": "cut"}, "data.overlong is 'cut'; choose from truncate, drop, error"),
        ({"eval_share": 1.0}, r"data.eval_share is 1.0; it must be in \[0, 1\)"),
        ({"eval_share": -0.1}, "data.eval_share is -0.1"),
        ({"eval_share": 0.1, "eval_path": "x"}, "data.eval_path or data.eval_share, not both"),
        ({"row_multiple": 0}, "data.row_multiple must be at least 1"),
        ({"max_length": 1}, "data.max_length at least 2"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
