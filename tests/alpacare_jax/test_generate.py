"""Generation from end to end on a tiny model: what is written, when, and what a second run does."""

import dataclasses
import functools
import json
import os
import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from alpacare_jax import generate
from alpacare_jax.checkpoints import checkpoint, identity, model_folder
from alpacare_jax.data.encoding import encode_prompt
from alpacare_jax.data.prompts import ALPACA
from alpacare_jax.data.tokenizers import load
from alpacare_jax.inference import answer_file, loading
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.requests import Answer, Request
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.inference.text_stream import cut_at_stop
from alpacare_jax.model import params
from common import messages, provenance
from common.records import read_examples
from tests.conftest import make_model, umask_of
from tests.support import commands

pytestmark = pytest.mark.usefixtures("quickly_compiled")

FIELDS = ["instruction", "output", "generator", "id", "input", "dataset"]
FIELDS += ["finish_reason", "num_tokens"]  # the first three are alpaca_eval's
EOS_IDS = [2, *range(400, 406)]  # so many that some answers end before the limit
SAMPLING = Sampling(temperature=0.9, seed=7)
RECORDS = [
    {"id": "a", "instruction": "what is fever", "input": "", "output": "a reference answer"},
    {"id": "b", "instruction": "Fill {instruction} and {0} in {}", "input": "{input} {{x}} %s"},
    {"id": "c", "instruction": "≥ 37.5 °C 🩺 µg\u2028of\x85the 患者", "input": "N/A"},
    {"id": 40, "instruction": 'quote " \\ and\nlines\ttoo', "input": "the lung"},
    {"instruction": "no id here"},
    {"id": "f", "instruction": "why how what", "input": "dose", "difficulty": 5},
    {"id": "g", "instruction": "treat the heart", "input": None},
]
IDS = ["a", "b", "c", "40", "4", "f", "g"]  # a record without id is called by its number
INPUTS = ["", "{input} {{x}} %s", "", "the lung", "", "dose", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny):
    """A model directory whose weights are spread widely enough to say different things."""
    draw = np.random.default_rng(0)
    directory = tmp_path_factory.mktemp("models") / "tiny-medic"
    weights = params.build_tree(
        tiny,
        lambda w: jnp.asarray(0.3 * draw.normal(size=params.weight_shape(w, tiny)), jnp.float32),
    )
    make_model(directory, tiny, weights)
    settings = {"eos_token_id": EOS_IDS, "temperature": 0.6}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Runs of one model with equal settings share an engine: each is compiled once."""
    made = {}

    def shared(weights, config, *, slots, **settings):
        engine = made.get((slots, repr(settings)))
        if engine is None:
            engine = made[slots, repr(settings)] = Engine(weights, config, slots=slots, **settings)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "Engine", shared)
        yield


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "clinic.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def answer(model, records, tmp_path):
    """Runs with the arguments given and returns the output's path."""

    def run(name="out/answers.json", **changes):
        arguments = {
            "checkpoint": model,
            "adapter": None,
            "step": "best",
            "input": records,
            "output": tmp_path / name,
            "template": "alpaca",
            "max_length": 360,
            "max_new_tokens": 40,
            "batch_size": 3,
            "devices": jax.devices()[:1],
            "tensor": 1,
            "sampling": SAMPLING,
            "stop": [],
            "dtype": "float32",
            "generator": "tiny",
        } | changes
        generate.run(generate.GenerationConfig(**arguments))
        return arguments["output"]

    return run


@pytest.fixture
def asked(monkeypatch):
    """Indices of the requests of each run; `asked.stop_after` raises after so many answers."""
    calls = Asked()
    real = Engine.run

    def run(self, requests, *args):
        calls.append([request.index for request in requests])
        for done, found in enumerate(real(self, requests, *args)):
            if done == calls.stop_after:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Engine, "run", run)
    return calls


class Asked(list):
    stop_after = None


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def partial_of(output):
    return output.with_name(output.name + ".partial")


def prompt_text(instruction, input):
    if input:
        return (
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        )
    return (
        "Below is an instruction that describes a task. Write a response that appropriately "
        f"completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
    )


# What is written


def test_the_output_holds_the_engines_answers_in_input_order(
    answer, model, tiny, capsys, monkeypatch
):
    monkeypatch.setattr(messages, "LOG_INTERVAL", 0.01)
    output = answer()
    rows = read(output)
    assert [list(row) for row in rows] == [FIELDS] * len(RECORDS)
    assert [row["instruction"] for row in rows] == [record["instruction"] for record in RECORDS]
    assert [row["id"] for row in rows] == IDS
    assert [row["input"] for row in rows] == INPUTS
    assert {row["generator"] for row in rows} == {"tiny"}
    assert {row["dataset"] for row in rows} == {"clinic"}

    tokenizer = model_folder.load_tokenizer(model)
    prompts = [
        [tokenizer.bos_id, *tokenizer.encode(prompt_text(row["instruction"], row["input"]))]
        for row in rows
    ]
    engine = Engine(
        checkpoint.load_params(model, tiny),
        tiny,
        dtype=jnp.dtype("float32"),
        eos_ids=EOS_IDS,
        max_length=360,
        slots=3,
        sampling=SAMPLING,
    )
    requests = [Request(i, prompt, 40) for i, prompt in enumerate(prompts)]
    for found in engine.run(requests):
        row = rows[found.index]
        assert row["output"] == tokenizer.decode(found.ids, continuation=True).strip()
        assert row["num_tokens"] == len(found.ids)
        assert row["finish_reason"] == found.finish_reason
    reasons = [row["finish_reason"] for row in rows]
    assert set(reasons) == {"stop", "length"}, "the test needs both"

    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"compiling prefill of \d+ rows: \d+s so far\n", said.err)
    assert re.search(r"compiling decode of 3 rows: \d+s so far\n", said.err)
    assert re.search(r"0/7 answers \| 0 tokens \| 0 tokens/s \| \d+s so far\n", said.err)
    assert "7/7 answers | " in said.err and "tokens/s | 0s left" in said.err
    truncated = reasons.count("length")
    assert f"{output}: 7 answers; {truncated} of them were truncated at the length" in said.err
    counted = read(output.with_name("answers.json.run.json"))["finish_reasons"]
    assert counted == {"stop": 7 - truncated, "length": truncated}


def test_a_conversation_is_answered_after_all_its_turns(answer, model, tmp_path):
    turns = [("user", "What is fever?"), ("assistant", "Heat."), ("user", "Why?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"id": "c", "messages": messages}) + "\n")
    (record,) = read(answer("chats.json", input=path))
    assert (record["instruction"], record["messages"]) == ("Why?", messages)
    tokenizer = load(model)
    prompt = prompt_text("What is fever?", "")
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    ids += [*tokenizer.encode("Heat.", continuation=True), tokenizer.eos_id]
    further = "\n\n### Instruction:\nWhy?\n\n### Response:"
    ids += tokenizer.encode(further, continuation=True)
    assert encode_prompt(read_examples(path, answered=False)[0], tokenizer, ALPACA) == ids


def test_several_questions_are_answered_one_after_the_other(answer, asked, model, tmp_path):
    def write(name, *turns):
        messages = [{"role": role, "content": text} for role, text in turns]
        (tmp_path / name).write_text(json.dumps({"id": "c", "messages": messages}) + "\n")
        return tmp_path / name

    first, second = ("user", "What is fever?"), ("user", "Why?")
    (alone,) = read(answer("one.json", input=write("one.jsonl", first)))
    given = write("given.jsonl", first, ("assistant", alone["output"]), second)
    (want,) = read(answer("given.json", input=given, stop=["\n"]))
    del asked[:]
    both = write("two.jsonl", first, second, second)
    long = read(answer("two.json", input=both, max_length=420))[0]
    assert asked == [[0], [0], [0]]
    said = [turn["content"] for turn in long["messages"] if turn["role"] == "assistant"]
    assert said[0] == alone["output"] and len(said) == 2
    assert want["messages"] == long["messages"][:3]
    (question,) = read_examples(given, answered=False)
    length = len(encode_prompt(question, load(model), ALPACA))
    short = read(answer("short.json", input=both, max_length=length))[0]
    assert (short["output"], short["finish_reason"]) == ("", "too_long")
    assert short["messages"] == want["messages"]


def test_a_killed_run_goes_on_at_the_turn_it_had_reached(answer, asked, monkeypatch, tmp_path):
    chats, lines = tmp_path / "chats.jsonl", []
    ask = [{"role": "user", "content": text} for text in ("What is fever?", "Why?", "And then?")]
    chats.write_text(json.dumps({"messages": ask}) + "\n")
    settings = {"input": chats, "max_length": 480, "max_new_tokens": 8}
    with monkeypatch.context() as patch:
        finish = answer_file.PartialOutput.finish
        keep = lambda self, run: (lines.extend(self.path.open()), finish(self, run))  # noqa: E731
        patch.setattr(answer_file.PartialOutput, "finish", keep)
        whole = answer("a.json", **settings).read_bytes()
    header, *turns = lines
    assert len(turns) == len(asked) == 3
    for there, missing in {
        (0,): 2,
        (0, 1): 1,
        (0, 1, 2): 0,
        (1,): 3,  # a turn without the one before it answers another question
        (1, 0): 2,
    }.items():
        (tmp_path / "b.json").unlink(missing_ok=True)
        partial_of(tmp_path / "b.json").write_text(header + "".join(turns[i] for i in there))
        del asked[:]
        assert answer("b.json", **settings).read_bytes() == whole
        assert len(asked) == missing, there


def test_nothing_is_left_beside_the_output_but_its_run_json(answer):
    output = answer()
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "answers.json",
        "answers.json.run.json",
    ]


def test_run_json_explains_the_output(answer, model, records):
    output = answer(stop=["xyz"])
    record = read(output.with_name("answers.json.run.json"))
    config = record["config"]
    assert record["source"] == {"checkpoint": str(model), "step": 0}
    assert config["model"] == identity.of_model(model, 0)
    assert config["input"] == provenance.sha256(records)
    assert config["sampling"] == vars(SAMPLING)
    assert config["stop"] == ["xyz"]
    assert (config["template"], config["generator"]) == ("alpaca", "tiny")
    assert (config["max_length"], config["max_new_tokens"]) == (360, 40)
    assert record["packages"]["jax"]
    assert record["start"] <= record["end"]


def test_jsonl_holds_the_same_records_one_a_line(answer):
    array, lines = read(answer("a.json")), answer("a.jsonl").read_bytes()
    assert lines.endswith(b"\n")
    assert [json.loads(line) for line in lines.split(b"\n")[:-1]] == array


def test_the_number_of_slots_changes_nothing(answer):
    assert answer("a.json").read_bytes() == answer("b.json", batch_size=1).read_bytes()


def test_relative_paths(answer, model, records, tmp_path, monkeypatch):
    whole = answer("whole.json").read_bytes()
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    directory = epath.Path(os.path.relpath(model))
    assert ".." in directory.parts
    inputs = {"checkpoint": directory, "input": epath.Path("../clinic.jsonl")}
    assert answer(output=epath.Path("../cut.json"), **inputs).read_bytes() == whole
    assert answer("whole.json", **inputs).read_bytes() == whole, "the same run"


@pytest.mark.parametrize(("most", "limit"), [(0, 360), (17, 17)])
def test_max_new_tokens_reaches_the_engine_and_0_is_no_limit(answer, monkeypatch, most, limit):
    requests = []

    def canned(self, wanted, *_):
        return requests.extend(wanted) or map(say_nothing, wanted)

    monkeypatch.setattr(Engine, "run", canned)
    rows = read(answer(max_new_tokens=most))
    assert [request.index for request in requests] == list(range(7))
    assert {request.max_new_tokens for request in requests} == {limit}
    assert [(row["output"], row["num_tokens"]) for row in rows] == [("", 0)] * 7


def say_nothing(request: Request) -> Answer:
    return Answer(request.index, [], "stop")


def test_a_prompt_that_is_too_long_has_an_empty_answer(answer, asked, records, tmp_path, capsys):
    whole = read(answer("whole.json"))
    longer = {"id": "long", "instruction": "why " * 400}
    path = tmp_path / "longer" / records.name
    path.parent.mkdir()
    path.write_text(json.dumps(longer) + "\n" + records.read_text())
    capsys.readouterr()
    empty, *rows = read(answer("a.json", input=path))
    assert (empty["id"], empty["output"], empty["num_tokens"]) == ("long", "", 0)
    assert empty["finish_reason"] == "too_long" and list(empty) == FIELDS
    assert [row["id"] for row in rows] == [*IDS[:4], "5", *IDS[5:]] and len(whole) == len(rows)
    assert asked[-1] == [1, 2, 3, 4, 5, 6, 7]
    printed = capsys.readouterr().err
    assert re.search(r"1 of 8 prompts leave no room within max_length 360, .*record long", printed)
    assert ", 1 because the prompt is too long" in printed
    answer("a.json", input=path)
    assert "already complete" in capsys.readouterr().err


def test_where_no_prompt_fits_all_answers_are_empty(answer):
    rows = read(answer("a.json", max_length=20))
    assert {(row["output"], row["finish_reason"]) for row in rows} == {("", "too_long")}


@pytest.mark.parametrize(
    "run_json, positions, length",
    [
        ({"config": {"train": {}, "data": {"max_length": 400}}}, 512, 400),
        ({"config": {"train": {}, "data": {"max_length": 400}}}, 256, 256),
        ({"command": "convert from_hf"}, 512, 512),
        ({"command": "convert from_hf"}, 4096, 1024),
    ],
)
def test_the_default_length_is_that_of_the_training_or_of_the_model(
    tiny, tmp_path, run_json, positions, length
):
    (tmp_path / "run.json").write_text(json.dumps(run_json))
    config = dataclasses.replace(tiny, max_position_embeddings=positions)
    assert loading.default_max_length(epath.Path(tmp_path), config) == length


@pytest.mark.parametrize("length", ["400", -1, None])
def test_a_damaged_length_of_the_training_is_named(tiny, tmp_path, length):
    run_json = {"config": {"train": {}, "data": {"max_length": length}}}
    (tmp_path / "run.json").write_text(json.dumps(run_json))
    with pytest.raises(ValueError, match=r"run\.json is damaged: .* or give --max_length"):
        loading.default_max_length(epath.Path(tmp_path), tiny)


def test_without_max_length_the_default_is_taken(answer, monkeypatch):
    monkeypatch.setattr(Engine, "run", lambda self, wanted, *_: map(say_nothing, wanted))
    run = read(answer("a.json", max_length=None).with_name("a.json.run.json"))
    assert run["config"]["max_length"] == 512


# Stop strings


def test_cut_at_stop_takes_the_first():
    assert cut_at_stop("one two three", ["three", "two"]) == ("one ", True)
    assert cut_at_stop("one two", ["four"]) == ("one two", False)
    assert cut_at_stop("one", []) == ("one", False)


def test_a_stop_string_cuts_the_text(answer):
    whole = read(answer("whole.json"))
    longest = max(whole, key=lambda row: len(row["output"]))["output"]
    stop = longest[10:12]
    rows = read(answer("cut.json", stop=["never said", stop]))
    cut = 0
    for before, row in zip(whole, rows, strict=True):
        if stop in before["output"]:
            cut += 1
            assert row["output"] == before["output"].split(stop)[0].strip()
            assert row["finish_reason"] == "stop"
            assert 0 < row["num_tokens"] <= before["num_tokens"]
        else:
            assert row == before
    assert cut


def test_a_stopped_answer_does_not_depend_on_its_neighbours(answer):
    """The engine looks for stop strings between bursts, whose ends depend on the other rows."""
    whole = read(answer("whole.json"))
    letters = random.Random(0).sample(sorted(set("".join(row["output"] for row in whole))), 12)
    results = {slots: answer(f"{slots}.json", stop=letters, batch_size=slots) for slots in (1, 3)}
    assert results[1].read_bytes() == results[3].read_bytes()


def test_of_two_stop_strings_the_one_said_first_counts(answer, model, monkeypatch):
    """Text that a burst adds after "pain" must not make " the heart pain and" the stop."""
    tokenizer = model_folder.load_tokenizer(model)
    ids = tokenizer.encode("fever of the heart pain and drug")
    monkeypatch.setattr(
        Engine, "run", lambda self, requests, *_: [Answer(r.index, ids, "length") for r in requests]
    )
    row = read(answer(stop=[" the heart pain and", "pain"]))[0]
    assert row["output"] == "fever of the heart"
    assert row["num_tokens"] == len(tokenizer.encode("fever of the heart pain"))
    assert row["finish_reason"] == "stop"


def test_an_empty_stop_string_is_an_error(answer):
    with pytest.raises(ValueError, match="--stop"):
        answer(stop=["x", ""])


# Resuming


def other_weights(model, tmp_path):
    """A copy of the model with other weights, of the same shapes."""
    directory, config = tmp_path / "other" / model.name, model_folder.read_config(model)
    weights = jax.tree.map(lambda leaf: leaf + 1, checkpoint.load_params(model, config))
    return make_model(directory, config, weights)


def interrupt(answer, asked, output) -> None:
    """Starts a run and stops it after four answers."""
    asked.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        answer(output)
    asked.stop_after = None


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(answer, asked, tmp_path, suffix, capsys):
    whole = answer(f"whole{suffix}").read_bytes()
    interrupt(answer, asked, f"cut{suffix}")
    output = tmp_path / f"cut{suffix}"
    assert not output.exists()
    lines = partial_of(output).read_bytes().split(b"\n")[1:-1]
    there = [json.loads(line)["index"] for line in lines]
    assert len(there) == 4
    assert answer(output.name, batch_size=1).read_bytes() == whole
    assert asked[-1] == [i for i in range(7) if i not in there]
    assert "resuming: 4 answers already generated" in capsys.readouterr().err
    assert not partial_of(output).exists()


def test_a_run_killed_before_the_output_was_written_only_writes_it(answer, asked, monkeypatch):
    whole = answer("whole.json").read_bytes()

    def full_disk(self, run):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(answer_file.PartialOutput, "finish", full_disk)
        answer("cut.json")
    assert answer("cut.json").read_bytes() == whole
    assert len(asked) == 2, "whole.json and cut.json: the third run asks nothing"


def test_each_answer_is_in_the_file_before_the_next_is_made(answer, monkeypatch, tmp_path):
    lines, real = [], Engine.run

    def run(self, *args):
        for found in real(self, *args):
            yield found
            lines.append(partial_of(tmp_path / "a.json").read_bytes().count(b"\n"))

    monkeypatch.setattr(Engine, "run", run)
    answer("a.json")
    assert lines == [2, 3, 4, 5, 6, 7, 8]


def test_private_answers_stay_private(answer, asked, tmp_path):
    with umask_of(0o077):
        interrupt(answer, asked, "out/a.json")
        partial = partial_of(tmp_path / "out" / "a.json")
        assert partial.stat().st_mode & 0o777 == 0o600
        output = answer("out/a.json")
    assert {path.stat().st_mode & 0o777 for path in output.parent.iterdir()} == {0o600}


def test_another_run_does_not_touch_a_partial_file(answer, asked, records, model, tmp_path):
    interrupt(answer, asked, "cut.json")
    partial = partial_of(tmp_path / "cut.json")
    before = partial.read_bytes()
    other_input = tmp_path / "other" / "clinic.jsonl"
    other_input.parent.mkdir()
    other_input.write_text(records.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    for changes in (
        {"max_length": 350},
        {"max_new_tokens": 39},
        {"sampling": Sampling()},
        {"stop": ["x"]},
        {"dtype": "bfloat16"},
        {"generator": "other"},
        {"input": other_input},
        {"checkpoint": other_weights(model, tmp_path)},
    ):
        with pytest.raises(ValueError, match=r"cut\.json\.partial .*other settings.*delete"):
            answer("cut.json", **changes)
        assert partial.read_bytes() == before, changes
    assert len(asked) == 1


def test_records_that_share_an_id_are_an_error(answer, tmp_path):
    path = tmp_path / "same.jsonl"
    ids = ['"id": "a"', '"id": 2', '"id": "b"', '"id": "2"']
    path.write_text("".join(f'{{"instruction": "why", {each}}}\n' for each in ids))
    with pytest.raises(
        ValueError, match=r"records 1 and 3 .from 0. share the id '2'; .* unique id"
    ):
        answer("same.json", input=path)
    assert not (tmp_path / "same.json").exists()


def test_a_finished_run_is_not_made_again(answer, asked, capsys):
    output = answer()
    before = output.read_bytes(), output.stat().st_mtime_ns
    assert answer() == output
    assert len(asked) == 1
    assert "already complete" in capsys.readouterr().err
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before


def test_a_finished_output_that_was_cut_short_is_named(answer, asked):
    output = answer()
    output.write_bytes(output.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"answers\.json is damaged or was edited; delete it"):
        answer()
    assert len(asked) == 1


def replace_weights(directory, other) -> None:
    shutil.rmtree(directory / "checkpoints")
    shutil.copytree(other / "checkpoints", directory / "checkpoints")


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps(read(path) | changes))


@pytest.mark.parametrize(
    "changed, difference",
    [
        ("weights", r"model\.weights: '[0-9a-f]{12}\.\.\.' before"),
        ("tokenizer_config.json", r"model\.tokenizer_config\.json: "),
        ("config.json", r"model\.config\.json: "),
        (
            "generation_config.json",
            r"model\.generation_config\.json: '.*' before, None now",
        ),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_answers_of_another_model_in_the_same_folder_are_refused(
    answer, asked, model, tmp_path, finished, changed, difference
):
    directory = shutil.copytree(model, tmp_path / "mine" / model.name)
    output = tmp_path / "a.json"
    if finished:
        answer("a.json", checkpoint=directory)
    else:
        interrupt(lambda output: answer(output, checkpoint=directory), asked, "a.json")
    path = output if finished else partial_of(output)
    before = path.read_bytes()
    if changed == "weights":
        replace_weights(directory, other_weights(model, tmp_path))
    elif changed == "generation_config.json":
        (directory / changed).unlink()
    else:
        edit_json(directory / changed, added=1)
    with pytest.raises(ValueError, match=rf"{path.name} .*\({difference}.*\); .*delete it"):
        answer("a.json", checkpoint=directory)
    assert path.read_bytes() == before and len(asked) == 1


@pytest.mark.parametrize("finished", [True, False])
def test_model_and_input_may_be_renamed(answer, asked, model, records, tmp_path, finished, capsys):
    directory = shutil.copytree(model, tmp_path / "mine" / model.name)
    started = functools.partial(answer, checkpoint=directory, generator="")
    if finished:
        started("a.json")
    else:
        interrupt(started, asked, "a.json")
    moved = {
        "checkpoint": directory.rename(tmp_path / "renamed"),
        "input": records.rename(tmp_path / "other.jsonl"),
    }
    rows = read(answer("a.json", generator="", **moved))
    assert {(row["generator"], row["dataset"]) for row in rows} == {(model.name, "clinic")}
    assert len(asked) == (1 if finished else 2)
    assert ("already complete" in capsys.readouterr().err) is finished


@pytest.mark.parametrize("made_by", ["other flags", "somebody else"])
def test_a_finished_output_is_not_overwritten(answer, asked, tmp_path, made_by):
    output = tmp_path / "out" / "answers.json"
    if made_by == "other flags":
        answer()
    else:
        output.parent.mkdir()
        output.write_text("[]")
    before = output.read_bytes()
    with pytest.raises(ValueError, match=r"answers\.json .*--output"):
        answer(sampling=Sampling(seed=1))
    assert output.read_bytes() == before


# Errors


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 513}, "--max_length 513 .*max_position_embeddings 512; lower it"),
        (
            {"template": "alpacca"},
            "unknown template 'alpacca'; choose from alpaca, baize, .*, chat",
        ),
        ({"step": "3"}, "no step '3'"),
        ({"output": "answers.json.gz"}, "answers.json.gz must end in .json or .jsonl"),
    ],
)
def test_a_wrong_run_writes_nothing(answer, tmp_path, changes, said):
    before = sorted(tmp_path.rglob("*"))
    if "output" in changes:
        changes = {"output": tmp_path / changes["output"]}
    with pytest.raises(ValueError, match=said):
        answer(**changes)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_file_that_names_an_eos_is_heard(model, tiny, tmp_path):
    tokenizer = model_folder.load_tokenizer(model)
    assert model_folder.eos_ids(model, tokenizer) == EOS_IDS
    (tmp_path / "config.json").write_text(json.dumps(tiny.to_hf()))
    assert model_folder.eos_ids(tmp_path, tokenizer) == [2]
    for stated, ids in ((5, [2, 5]), ([7, 2, 6], [2, 6, 7]), (None, [2])):
        content = json.dumps({"eos_token_id": stated})
        (tmp_path / "generation_config.json").write_text(content)
        assert model_folder.eos_ids(tmp_path, tokenizer) == ids
    (tmp_path / "config.json").write_text(json.dumps(tiny.to_hf() | {"eos_token_id": [2, 9]}))
    assert model_folder.eos_ids(tmp_path, tokenizer) == [2, 9]


# Several devices


def test_answers_do_not_depend_on_the_devices(answer, monkeypatch):
    made, shared = [], loading.Engine
    monkeypatch.setattr(loading, "Engine", lambda *a, **k: made.append(shared(*a, **k)) or made[-1])
    one = answer("one.json")
    eight = answer("eight.json", devices=jax.devices(), tensor=2)
    assert eight.read_bytes() == one.read_bytes()
    assert [engine.slots for engine in made] == [3, 4], "a multiple of the four groups"
    spread = made[1].params["layers"][0]["self_attn"]["q_proj"].sharding
    assert len(spread.device_set) == 8 and "tensor" in spread.spec


def test_groups_of_devices_are_of_one_size(answer):
    with pytest.raises(ValueError, match=r"--tensor=3 does not divide .* devices, 8; choose"):
        answer(devices=jax.devices(), tensor=3)


# The command


def command(*arguments):
    return commands.run("alpacare_jax.generate", *arguments)


@pytest.mark.slow
def test_the_command(model, records, tmp_path):
    output = tmp_path / "answers.jsonl"
    required = [f"--checkpoint={model}", f"--output={output}"]
    missing = command(*required, f"--input={tmp_path / 'none.jsonl'}")
    assert missing.returncode == 1
    assert missing.stderr == f"error: no such file: {tmp_path / 'none.jsonl'}\n"
    unknown = command(*required, f"--input={records}", "--max_new_token=3")
    assert unknown.returncode == 2
    assert "max_new_token" in unknown.stderr and "Traceback" not in unknown.stderr
    assert not output.exists()

    short = tmp_path / "short.json"
    short.write_text(json.dumps([RECORDS[0], RECORDS[6]]))
    limits = ["--max_new_tokens=2", "--batch_size=1", "--stop=a", "--stop=b"]
    done = command(*required, f"--input={short}", *limits)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert f"{output}: 2 answers" in done.stderr
    rows = [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]]
    assert [row["id"] for row in rows] == ["a", "g"]
    assert {row["generator"] for row in rows} == {"tiny-medic"}, "the checkpoint's folder"
    config = read(output.with_name("answers.jsonl.run.json"))["config"]
    assert config["stop"] == ["a", "b"]
    assert config["max_new_tokens"] == 2


@pytest.mark.slow
def test_modes_of_the_command(model, records, tmp_path):
    """A model trained with ChatDoctor's template, asked as by the paper and as by its authors."""
    directory = shutil.copytree(model, tmp_path / "chatdoctor")
    trained = {"data": {"template": "chatdoctor", "max_length": 400}, "train": {}}
    (directory / "run.json").write_text(json.dumps({"config": trained}))

    def settings(name, *arguments):
        paths = [f"--checkpoint={directory}", f"--input={records}", f"--output={tmp_path / name}"]
        done = command(*paths, "--generator=x", *arguments)
        assert done.returncode == 0, done.stderr
        assert re.search(r"7 answers; \d+ of them were truncated", done.stderr)
        return read(tmp_path / f"{name}.run.json")["config"]

    paper = settings("paper.json", "--mode=paper")
    assert (paper["template"], paper["stop"], paper["max_length"]) == ("alpaca", [], 512)
    assert paper["sampling"] == vars(Sampling()) and paper["max_new_tokens"] == 0
    native = settings("native.json", "--mode=native", "--max_new_tokens=3", "--seed=5")
    assert (native["template"], native["stop"]) == ("chatdoctor", ["Patient: "])
    assert native["sampling"] == vars(Sampling(0.5, 50, 1.0, 1.1, 5))
    assert (native["max_length"], native["max_new_tokens"]) == (512, 3)
    assert max(row["num_tokens"] for row in read(tmp_path / "native.json")) == 3
    refused = command(
        *(f"--checkpoint={directory}", f"--input={records}", f"--output={tmp_path / 'no.json'}"),
        *("--mode=paper", "--template=chatdoctor"),
    )
    assert refused.returncode == 2 and "--mode=paper is Alpaca's template" in refused.stderr
