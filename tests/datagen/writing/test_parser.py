"""What teachers write, and what is read in it."""

import doctest
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.records import Task
from datagen.writing import parser
from datagen.writing.parser import parse, parse_json


def task(number=1, instruction="What is gout?", given="<noinput>", **labels) -> str:
    labels = {"Type": "Open Q&A", "Topic": "Joints", "View": "Patient", "Difficulty": "2"} | labels
    lines = [f"{name}: {value}" for name, value in labels.items()]
    return f"###\n{number}. " + "\n".join(
        [*lines, f"Instruction: {instruction}", f"Input: {given}"]
    )


GOUT = Task("", "What is gout?", "", "Open Q&A", "Joints", "Patient", 2)


def test_doctests():
    assert doctest.testmod(parser).failed == 0


def test_a_list_as_it_is_meant():
    reply = "\n".join([task(1), task(2, given="A note.\n\nTwo lines."), task(3)]) + "\n###\n"
    tasks, rejected = parse(reply, cut=False)
    assert [t.input for t in tasks] == ["", "A note.\n\nTwo lines.", ""]
    assert tasks[0] == tasks[2] == GOUT
    assert rejected == []


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.replace("###\n", ""),
        lambda s: s.replace("1. ", "").replace("2. ", ""),
        lambda s: s.replace("1. ", "7) ").replace("2. ", "7) "),
        lambda s: s.replace("Type:", "**Type:**").replace("View:", "**View**:"),
        lambda s: s.replace("Topic: Joints", "**Topic: Joints**"),
        lambda s: s.replace("\n", "\r\n"),
        lambda s: s.replace("\n", "\r"),
        lambda s: s.replace("\n", "\u2028"),
        lambda s: s.replace("\n", "\x0b"),
        lambda s: s.replace("1. ", "I. ").replace("2. ", "iv) "),
        lambda s: s.replace("Difficulty: 2", "Difficulty: ２ out of 5"),
        lambda s: s.replace("Difficulty: 2", "Difficulty: 2 (on a scale of 1-5)"),
        lambda s: s.replace("Topic:", "topic :").replace("View:", "  VIEW:"),
        lambda s: s.replace("###\n1. ", "### 1. ").replace("###\n2. ", "### Task 2: "),
        lambda s: s.replace("###", "---"),
        lambda s: s.replace("###", "\n\n###\n"),
        lambda s: s.replace("Difficulty: 2", "Difficulty: 2/5"),
        lambda s: s + "\n###\n3.",
        lambda s: re.sub(r"(\d\.) (\w+:)", r"**\1** **\2**", s),
        lambda s: re.sub(r"^(\w+:)", r"- \1", s.replace("1. ", "").replace("2. ", ""), flags=re.M),
        lambda s: re.sub(r"^(\w+:)", r"* **\1**", s, flags=re.M),
        lambda s: re.sub(r"^(In\w+: .*)$", r"**\1**", s, flags=re.M),
        lambda s: "\ufeff" + s,
        lambda s: re.sub(r"(?<=\w):", "：", s),
        lambda s: (
            s.replace("1. ", "1. 🏷️ ").replace("Topic", "📚 Topic").replace("Input", "**📥 Input**")
        ),
        lambda s: s.replace("Topic", "\u00a0Topic").replace("View: ", "View:\u00a0"),
        lambda s: s.replace("Topic", "\u200bTopic").replace("gout?", "gout?\u200b"),
        lambda s: s.replace("Topic", "\u3000Topic").replace("###", "\u00a0###\u00a0"),
        lambda s: (
            s.replace("1. Type", "a) Type").replace("Topic", "b) Topic").replace("View", "c) View")
        ),
        lambda s: (
            s.replace("1. Type", "1️⃣ Type").replace("Topic", "2️⃣ Topic").replace("View", "3️⃣ View")
        ),
        lambda s: (
            s.replace("1. Type", "(1) Type").replace("Topic", "2、Topic").replace("View", "3．View")
        ),
        lambda s: re.sub(r"^(\w+):", r"[\1]:", s, flags=re.M),
        lambda s: re.sub(r"^(\w+):", r"`\1`:", s, flags=re.M),
        lambda s: re.sub(r"^(\w+):", r"> \1:", s, flags=re.M),
        lambda s: re.sub(r"\n(?=[TVDI]\w+:)", " | ", s),
        lambda s: re.sub(r"\n(?=[TVD]\w+:)", "｜", s),
        lambda s: s.replace("<noinput>", "No input required."),
        lambda s: s.replace("<noinput>", "(none)"),
        lambda s: s.replace("<noinput>", "`<noinput>`.").replace("###\n1. ", ""),
    ],
)
def test_other_ways_to_write_the_same(change):
    tasks, rejected = parse(change(task(1) + "\n" + task(2)), cut=False)
    assert tasks == [GOUT, GOUT]
    assert rejected == []


def test_the_same_words_inside_a_text():
    instruction = "Name the Type: 1 or 2? Input: none is given, Topic: any."
    note = "Type: 2 diabetes\nView: lateral\nInput: 1.5 L\nInstruction: rest\nDifficulty: walking"
    tasks, rejected = parse(task(1, instruction, note) + "\n" + task(2), cut=False)
    assert (tasks[0].instruction, tasks[0].input) == (instruction, note)
    assert tasks[1] == GOUT and rejected == []


def test_labels_in_another_order():
    reply = (
        "Topic: Joints\nType: Open Q&A\nDifficulty: 2\nView: Patient\nInstruction: What is gout?"
    )
    assert parse(reply, cut=False) == ([GOUT], [])


def test_a_cut_reply_loses_its_last_task_and_says_so():
    tasks, rejected = parse(task(1) + "\n" + task(2, "What is go"), cut=True)
    assert tasks == [GOUT]
    assert [r.reason for r in rejected] == ["cut at the length limit"]
    assert "What is go" in rejected[0].text


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (task(Difficulty="hard"), "difficulty is not 1 to 5"),
        (task(Difficulty="9"), "difficulty is not 1 to 5"),
        (task(instruction=""), "the instruction is empty"),
        (task(Topic="Joints\nand bones"), "topic is more than a line"),
        ("###\n1. Type: Q&A\nTopic: Joints\nInstruction: What?", "lacks view, difficulty"),
        ("I cannot help with that.", "no task"),
        (task(Difficulty="Medium"), "difficulty is not 1 to 5"),
        (
            "Type: Q&A, Topic: Joints, View: Nurse, Difficulty: 2, Instruction: What?",
            "several fields on one line",
        ),
        (
            "Type: Q&A | Topic: Joints | View: Nurse | Difficulty: 2 | Instruction: Why | Type: 2?",
            "several fields on one line",
        ),
    ],
)
def test_what_is_no_task_is_told(reply, reason):
    tasks, rejected = parse(reply, cut=False)
    assert tasks == []
    assert [r.reason for r in rejected] == [reason]
    assert parse(reply + "\n" + task(2), cut=False)[0] == [GOUT]


def test_a_task_without_a_label_does_not_become_part_of_the_one_before():
    broken = task(2).replace("View: Patient\n", "")
    tasks, rejected = parse("\n".join([task(1), broken, task(3)]), cut=False)
    assert tasks == [GOUT, GOUT]
    assert [r.reason for r in rejected] == ["lacks view"]


def test_a_cut_in_the_labels_of_a_task_costs_that_task_alone():
    tasks, rejected = parse(task(1) + "\n###\n2. Type: Open Q&A\nTop", cut=True)
    assert tasks == [GOUT]
    assert [r.reason for r in rejected] == ["cut at the length limit"]
    assert rejected[0].text.strip() == "2. Type: Open Q&A\nTop"


def test_a_rule_of_dashes_inside_a_text_stays():
    for note in ("Findings:\n---\nNormal.", "A note.\n***Allergic to penicillin.***"):
        assert parse(task(1, given=note) + "\n" + task(2), cut=False)[0][0].input == note


@pytest.mark.parametrize(
    "endless", ["---" + "\n" * 40_000, "\n" * 40_000, " " * 40_000, "_" * 40_000, "*" * 40_000]
)
def test_a_teacher_that_repeats_itself_is_read_at_once(endless):
    note = f"A note.\n{endless}End."  # once read in exponential or quadratic time: for hours
    assert parse(task(1, given=note), cut=False)[0][0].input == note


def test_a_remark_behind_the_last_task_is_no_input():
    for remark in ("These are the 2 tasks.", "---\n\nThese are the 2 tasks."):
        tasks, rejected = parse(task(1) + "\n" + task(2) + f"\n\n{remark}", cut=False)
        assert tasks == [GOUT, GOUT]
        assert [(r.reason, r.text.strip()) for r in rejected] == [
            ("no task", "These are the 2 tasks.")
        ]


def test_a_number_of_many_digits_is_no_error():
    tasks, rejected = parse(task(1, Difficulty="2" * 5_000) + "\n" + task(2), cut=False)
    assert (tasks, [r.reason for r in rejected]) == ([GOUT], ["difficulty is not 1 to 5"])
    _, rejected = parse_json('{"tasks": [' + "1" * 5_000 + "]}", cut=False)
    assert [r.reason for r in rejected] == ["not JSON of the schema"]


PIECES = st.sampled_from(
    ["###\n", "1. ", "Type: a\n", "Topic: b\n", "View: c\n", "Difficulty: 3\n", "Difficulty: x\n"]
    + ["Instruction: do\n", "Input: this\n", "Input:", "**Type:** d\n", "\n", "text ", "<noinput>"]
    + [task(4) + "\n"]
)


@given(st.one_of(st.lists(PIECES, max_size=40).map("".join), st.text()), st.booleans())
def test_nothing_is_made_up(reply, cut):
    tasks, rejected = parse(reply, cut=cut)
    reply = re.sub("\r\n|[\r\x0b\x0c\x85\u2028\u2029]", "\n", reply)
    for found in tasks:
        for text in (found.type, found.topic, found.view, found.instruction, found.input):
            assert text in reply
        assert found.instruction and 1 <= found.difficulty <= 5
    assert all(piece.text in reply for piece in rejected)
    if re.sub(r"[\s#*\d.):-]", "", reply):
        assert tasks or rejected


@pytest.mark.parametrize(
    "words",
    [
        *(
            "No input required.",
            "There is no input for this task.",
            "Not applicable",
            "无需输入。",
            "无",
        ),
        *("किसी इनपुट की आवश्यकता नहीं है।", "No se requiere entrada.", "لا توجد مدخلات"),
        *("Aucune entrée requise.", "কোনো ইনপুট প্রয়োজন নেই।", "Nenhuma entrada necessária."),
        *("Ввод не требуется.", "کسی ان پٹ کی ضرورت نہیں ہے۔", "Tidak ada masukan."),
        *("Keine Eingabe erforderlich.", "入力は不要です。", "[no input]", "<no_input>", "*None*"),
    ],
)
def test_no_input_in_words(words):
    assert parse(task(given=words.strip()), cut=False) == ([GOUT], [])
    assert parse_json(as_json(FIELDS | {"input": words.strip()}), cut=False) == ([GOUT], [])


@pytest.mark.parametrize(
    "given", ["DNA repair", "No known allergies.", "Нет аллергии.", "无发热。", "NaCl"]
)
def test_an_input_that_begins_as_none_does(given):
    assert parse(task(given=given), cut=False)[0][0].input == given


# Replies in JSON.

FIELDS = {
    "type": "Open Q&A",
    "topic": "Joints",
    "view": "Patient",
    "difficulty": 2,
    "instruction": "What is gout?",
    "input": "",
}


def as_json(*records) -> str:
    return json.dumps({"tasks": records}, indent=1)


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps({"tasks": [{"type": "Open Q&A"} | FIELDS | {"input": None}]}),
        json.dumps([FIELDS]),
        json.dumps({"Tasks": [{name.capitalize(): value for name, value in FIELDS.items()}]}),
        json.dumps({"items": [{n: v for n, v in FIELDS.items() if n != "input"}]}),
        json.dumps(FIELDS),
        "```json\n" + json.dumps([FIELDS | {"difficulty": "2"}]) + "\n```",
    ],
)
def test_json_that_is_not_quite_the_schema(reply):
    assert parse_json(reply, cut=False) == parse(reply, cut=False) == ([GOUT], [])


def test_json_behind_words_and_one_object_after_another():
    reply = f"Here they are:\n{json.dumps(FIELDS)}\n{json.dumps(FIELDS)}"
    tasks, rejected = parse_json(reply, cut=False)
    assert (tasks, [r.text for r in rejected]) == ([GOUT, GOUT], ["Here they are:"])
    assert parse_json(task(), cut=False) == ([GOUT], []), "a reply in text is read, too"


def test_json_that_says_two_things_is_no_task():
    record = FIELDS | {"Input": "A note."}
    assert parse_json(json.dumps([record]), cut=False)[0] == []


@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```", " {}\n"])
def test_replies_in_json(wrap):
    reply = wrap.replace("{}", as_json(FIELDS, FIELDS | {"input": " N/A "}))
    assert parse_json(reply, cut=False) == ([GOUT, GOUT], [])
    assert parse_json(as_json(), cut=False) == ([], [])


@pytest.mark.parametrize(
    "record, reason",
    [
        (FIELDS | {"difficulty": 0}, "difficulty is not 1 to 5"),
        (FIELDS | {"difficulty": True}, "difficulty is not 1 to 5"),
        (FIELDS | {"instruction": " "}, "the instruction is empty"),
        (FIELDS | {"view": None}, "not JSON of the schema"),
        (FIELDS | {"input": "\ud83d"}, "half a surrogate pair"),
        ({"type": "Chat"}, "not JSON of the schema"),
        ("a text", "not JSON of the schema"),
    ],
)
def test_what_is_no_task_in_json_is_told(record, reason):
    tasks, rejected = parse_json(as_json(FIELDS, record, FIELDS), cut=False)
    assert tasks == [GOUT, GOUT] and [piece.reason for piece in rejected] == [reason]


def test_a_reply_in_json_that_is_cut_loses_its_last_task_alone():
    reply = as_json(FIELDS, FIELDS)
    for end in range(len(reply) - 1):
        tasks, rejected = parse_json(reply[:end], cut=True)
        assert tasks == [GOUT] * len(tasks)
        assert [piece.reason for piece in rejected] == ["cut at the length limit"]
    assert len(tasks) == 2


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*FIELDS]), inner, max_size=6)
    ),
)


@given(st.lists(VALUES, max_size=4), st.text(max_size=20), st.booleans(), st.integers(0, 400))
def test_nothing_is_made_up_from_json(records, noise, cut, end):
    reply = (json.dumps({"tasks": [FIELDS, *records]}) + noise)[:end]
    tasks, rejected = parse_json(reply, cut=cut)
    texts = {json.dumps(r["instruction"].strip()) for r in [FIELDS, *records] if _is_task(r)}
    assert {json.dumps(task.instruction) for task in tasks} <= texts
    assert all(piece.text in reply for piece in rejected)
    assert tasks or rejected


def _is_task(record) -> bool:
    return isinstance(record, dict) and isinstance(record.get("instruction"), str)
