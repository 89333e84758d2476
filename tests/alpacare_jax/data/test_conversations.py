"""Conversations of several turns: which tokens carry loss, where they are cut, what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from alpacare_jax.data import chat_template, encoding, tokenizers
from alpacare_jax.data.prompts import ALPACA, TEMPLATES
from alpacare_jax.tokenizer import render
from common.records import Example, read_examples
from common.text.conversations import Turn, read_turn
from tests.alpacare_jax.data.test_chat_template import CONTROLS, CONVERSATIONS, FAMILIES, TURNS
from tests.alpacare_jax.data.test_encoding import BARE, CONFIG, Numbers
from tests.conftest import REPOSITORY, write_tiny_tokenizer

GOLDEN = REPOSITORY / "tests/golden/three_turns.json"

THREE_TURNS = Example(
    id="c",
    instruction="What dose?",
    input="",
    output="One drug.",
    history=(
        Turn("user", "What is fever?"),
        Turn("assistant", "Pain and\nheat."),
        Turn("user", "Why the lung?"),
        Turn("assistant", "It causes pain."),
    ),
)


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    """The tiny tokenizer, with two control tokens of ChatML and its template."""
    write_tiny_tokenizer(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    first = len(spec["model"]["vocab"])
    for number, token in enumerate(CONTROLS["chatml"]):
        spec["added_tokens"].append(
            spec["added_tokens"][0] | {"id": first + number, "content": token, "special": True}
        )
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "chat_template.jinja").write_text(FAMILIES["chatml"])
    return tmp_path


def three_turns(folder: Path) -> dict[str, str]:
    """Template and loss -> the record as `alpacare tokenizer` shows it: [loss]."""
    ours = tokenizers.load(folder)
    found = {}
    for name in ("alpaca", "chat"):
        template = chat_template.load(name, folder, ours)
        for loss in ("responses", "last", "all"):
            encoded = encoding.encode_example(THREE_TURNS, ours, template, loss)
            found[f"{name}, {loss}"] = render(encoded, ours, color=False)
    return found


def test_masks_of_three_turns_are_golden(tiny_folder):
    """Written by `write_golden`, and read by a person before it was committed."""
    assert three_turns(tiny_folder) == json.loads(GOLDEN.read_text())


def write_golden(folder: Path) -> None:
    GOLDEN.write_text(json.dumps(three_turns(folder), indent=1, ensure_ascii=False) + "\n")


def as_example(messages: list[dict[str, str]]) -> Example:
    *history, question, answer = (Turn(m["role"], m["content"]) for m in messages)
    return Example("c", question.text, "", answer.text, tuple(history))


# transformers leaves out all but the first token of a character that ends what is marked.
WHOLE = [*TURNS[:3], {"role": "assistant", "content": "No 🩺."}]


@pytest.mark.parametrize("messages", [TURNS[:2], WHOLE, [CONVERSATIONS[3][0], *WHOLE]])
def test_masks_are_those_of_transformers_where_a_template_marks_them(
    transformers, marked_folder, messages
):
    ours = tokenizers.load(marked_folder)
    template = chat_template.ChatTemplate(marked_folder, ours)
    assert template.marked
    theirs = transformers.AutoTokenizer.from_pretrained(str(marked_folder))
    want = theirs.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = encoding.encode_example(as_example(messages), ours, template)
    ids, mask = list(want["input_ids"]), list(want["assistant_masks"])
    end = len(encoded.ids)
    assert encoded.ids.tolist() == ids[:end]
    assert encoded.loss.tolist() == [bool(m) for m in mask[:end]]
    assert ours.decode(ids[end:], continuation=True).strip() == "" and not any(mask[end:])
    assert sum(mask) > 4 * len(messages[1::2]) / 2


@pytest.fixture(params=["with its end", "without its end"])
def marked_folder(request, byte_level_dir, tmp_path) -> Path:
    """ChatML that marks answers, with the token that ends them and without it."""
    import tokenizers as backends

    backend = backends.Tokenizer.from_file(str(byte_level_dir / "tokenizer.json"))
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = FAMILIES["chatml"]
    if request.param == "without its end":
        text = text.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>", 1)
        assert text != FAMILIES["chatml"]
    (tmp_path / "chat_template.jinja").write_text(text)
    return tmp_path


def test_a_template_that_does_not_mark_the_end_is_reported(marked_folder):
    ours = tokenizers.load(marked_folder)
    template = chat_template.ChatTemplate(marked_folder, ours)
    config, reported = dataclasses.replace(CONFIG, max_length=500), []
    encoding.encode_all([THREE_TURNS], ours, template, config, reported.append)
    marks_end = "<|im_end|>{% endgeneration" in (marked_folder / "chat_template.jinja").read_text()
    assert reported == ([] if marks_end else [f"1 of 1 examples {encoding.UNMARKED}"])


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_the_prompt_is_what_generation_begins_with(tiny_folder, name):
    ours = tokenizers.load(tiny_folder)
    template = chat_template.load(name, tiny_folder, ours)
    whole = encoding.encode_example(THREE_TURNS, ours, template)
    prompt = encoding.encode_prompt(THREE_TURNS, ours, template)
    assert prompt == whole.ids[: whole.prompt_length].tolist()
    # Every turn is predicted from the same tokens as when it is the last.
    first = dataclasses.replace(THREE_TURNS, history=(), instruction="What is fever?")
    alone = encoding.encode_prompt(first, ours, template)
    assert whole.ids[: len(alone)].tolist() == alone
    assert np.flatnonzero(whole.loss)[0] == len(alone)


CONVERSING = dataclasses.replace(BARE, further="{instruction}")


def conversation(*lengths: int) -> Example:
    """Questions of one token; answers of these lengths, which EOS follows."""
    *earlier, last = (" ".join(["20"] * length) for length in lengths)
    history = [turn for text in earlier for turn in (Turn("user", "10"), Turn("assistant", text))]
    return Example("c", "10", "", last, tuple(history))


def test_conversations_are_cut_after_a_whole_turn():
    def encode(examples, **changes):
        config, reported = dataclasses.replace(CONFIG, **changes), []
        kept = encoding.encode_all(examples, Numbers(), CONVERSING, config, reported.append)
        return [
            (e.ids.tolist(), e.loss.astype(int).tolist(), e.prompt_length) for e in kept
        ], reported

    one, two = [1, 10, 20, 2], [1, 10, 20, 2, 10, 20, 20, 2]
    examples = [conversation(1, 2), conversation(1, 2, 3), conversation(1, 9), conversation(9, 1)]
    kept, reported = encode(examples, overlong="truncate")
    assert kept == [
        (two, [0, 0, 1, 1, 0, 1, 1, 1], 5),
        (two, [0, 0, 1, 1, 0, 1, 1, 1], 5),
        (one, [0, 0, 1, 1], 2),
        ([1, 10, *[20] * 6], [0, 0, *[1] * 6], 2),
    ]
    assert reported == [
        "2 of 4 examples truncated after a whole turn: over 8 tokens",
        "1 of 4 examples truncated: over 8 tokens",
    ]
    kept, reported = encode(examples, overlong="truncate", loss="last")
    assert kept == [(two, [0, 0, 0, 0, 0, 1, 1, 1], 5)]
    assert "3 of 4 examples dropped: no response is left after truncation" in reported
    kept, reported = encode(examples, overlong="drop")
    assert len(kept) == 1 and reported == ["3 of 4 examples dropped: over 8 tokens"]


def test_templates_without_a_place_for_it_refuse(tiny_folder):
    ours = tokenizers.load(tiny_folder)
    system = dataclasses.replace(THREE_TURNS, history=(Turn("system", "Be brief."),))
    with pytest.raises(ValueError, match="no place for a system prompt; choose template chat"):
        encoding.encode_example(system, ours, ALPACA)
    others = (
        "choose template chat, the tokenizer's own, or alpaca, chatdoctor, baize, baize-dialogue"
    )
    with pytest.raises(ValueError, match=f"of one question and its answer; {others}, llama3"):
        encoding.encode_example(THREE_TURNS, ours, TEMPLATES["medalpaca"])
    (tiny_folder / "chat_template.jinja").write_text(FAMILIES["gemma"])
    template = chat_template.ChatTemplate(tiny_folder, ours)
    with pytest.raises(ValueError, match="has no place for a system prompt, so that it cannot"):
        encoding.encode_example(system, ours, template)


def says(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


def test_forms_of_conversations(tmp_path):
    path, reported = tmp_path / "c.jsonl", []
    records = [
        {"messages": [{"role": t.role, "content": t.text} for t in THREE_TURNS.history[:2]]},
        {"conversations": says(("human", "q"), ("gpt", "a"), ("human", "q2")), "id": "s"},
        {"conversations": says(("system", "s"), ("user", "q"), ("assistant", "a"))},
        {"system": "s", "messages": says(("human", "q"), ("gpt", "a"))},
        {"instruction": "q", "output": "a", "messages": []},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    fever, share, system, field, plain = read_examples(path, report=reported.append)
    assert fever == Example("0", "What is fever?", "", "Pain and\nheat.")
    assert share == Example("s", "q", "", "a")
    assert system == Example("2", "q", "", "a", (Turn("system", "s"),))
    assert field == dataclasses.replace(system, id="3")
    assert plain == Example("4", "q", "", "a")
    assert reported == [f"{path}: 1 conversations end with a question, which is left out"]
    baize = "The conversation between human and AI assistant.\n[|Human|] q\n[|AI|] a\n\nb [|AI|]\n"
    path.write_text(
        json.dumps({"topic": "t", "input": f"{baize}[|Human|] q2\n[|AI|] a2\n[|Human|] "})
    )
    begun = (Turn("user", "q"), Turn("assistant", "a\n\nb [|AI|]"))
    assert read_examples(path) == [Example("0", "q2", "", "a2", begun)]


def test_questions_that_are_to_be_asked(tmp_path):
    path = tmp_path / "c.jsonl"
    share = {"conversations": says(("human", "q"), ("gpt", "a"), ("human", "q2")), "id": "s"}
    path.write_text(json.dumps(share))
    asked = read_examples(path, answered=False)
    assert asked[0] == Example("s", "q2", "", "", (Turn("user", "q"), Turn("assistant", "a")))
    questions = [("system", "s"), *[("human", f"q{i}") for i in range(3)]]
    path.write_text(json.dumps({"messages": says(*questions)}))
    (first,) = read_examples(path, answered=False)
    assert first == Example("0", "q0", "", "", (Turn("system", "s"),), ("q1", "q2"))
    second = first.following("a0")
    begun = (Turn("system", "s"), Turn("user", "q0"), Turn("assistant", "a0"))
    assert second == Example("0", "q1", "", "", begun, ("q2",))


def test_openais_text_parts_are_one_text():
    parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "fever?"}]
    assert read_turn("here", {"role": "user", "content": parts}) == Turn("user", "Why fever?")


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"messages": says(("human", "q"))}, "the conversation has no question with an answer"),
        ({"messages": says(("gpt", "a"), ("human", "q"))}, "must begin with a question"),
        (
            {"messages": says(("human", "q"), ("human", "q"), ("gpt", "a"))},
            "turn 1: user where assistant must speak",
        ),
        ({"messages": says(("human", "q"), ("robot", "a"))}, "turn 1: from is 'robot'; it must be"),
        ({"messages": says(("system", "s"))}, "must begin with a question of the user"),
        ({"messages": ["q", "a"]}, "turn 0: a turn must be an object, not 'q'"),
        ({"messages": [{"role": "user"}]}, "turn 0: field 'content' is missing; it has role"),
        ({"messages": [{"role": "user", "content": 3}]}, "field 'content' must be a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "field 'content' must be a string",
        ),
        ({"messages": "q"}, "field 'messages' must be a list of turns, not 'q'"),
        (
            {"system": "s", "messages": says(("system", "s"), ("human", "q"))},
            "a field 'system' and a system turn; keep one of them",
        ),
    ],
)
def test_wrong_conversations_are_named(tmp_path, record, reason):
    path = tmp_path / "c.jsonl"
    good = {"messages": says(("human", "q"), ("gpt", "a"))}
    path.write_text("".join(json.dumps(each) + "\n" for each in (good, record)))
    with pytest.raises(ValueError, match=r"c\.jsonl:2: ") as raised:
        read_examples(path)
    assert reason in str(raised.value)
