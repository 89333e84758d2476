"""What the teacher is shown and asked for."""

import dataclasses
import doctest

from common.records import Task, read_tasks
from common.text.prompt_file import Prompt
from datagen.config import DATAGEN_PROMPTS
from datagen.writing import requests
from datagen.writing.requests import TasksConfig, Teacher

SEEDS = "datagen/starter/seeds.jsonl"


def test_doctests():
    assert doctest.testmod(requests).failed == 0


def make_teacher(config: TasksConfig | None = None, **changes) -> Teacher:
    config = config or TasksConfig(
        num_tasks=60,
        seeds=SEEDS,
        prompt="tasks",
        reply="text",
        tasks_per_request=12,
        seeds_per_request=3,
        machine_tasks_per_request=0,
        machine_lag=200,
        max_requests=0,
        seed=42,
        threshold=0.7,
        tokenizer="rouge",
        against="",
    )
    prompt = Prompt.read(config.prompt, DATAGEN_PROMPTS)
    return Teacher(dataclasses.replace(config, **changes), prompt, read_tasks(SEEDS))


def test_a_request_shows_seeds_and_the_rules():
    asks = make_teacher()
    examples = asks.examples(7, [])
    request = asks.request(examples)
    assert len({task.id for task in examples}) == 3
    assert request.system == "Your objective is to generate diverse medical-related tasks."
    assert "Write 12 new tasks" in request.user
    assert all(f"\n{rule}. " in request.user for rule in range(1, 16)), "the fifteen rules"
    for task in examples:
        assert (
            f"Instruction: {task.instruction}\nInput: {task.input or '<noinput>'}" in request.user
        )
    assert request.schema is None


def test_examples_depend_on_seed_and_number_alone():
    asks = make_teacher()
    assert asks.examples(7, []) == make_teacher().examples(7, [])
    assert asks.examples(7, []) != asks.examples(8, [])
    assert asks.examples(7, []) != make_teacher(seed=43).examples(7, [])


def test_machine_tasks_take_their_places_once_there_are_any():
    asks = make_teacher(machine_tasks_per_request=2)
    own = [Task(f"m{i}", f"Task {i}.", "", "Chat", "Gout", "Nurse", 1) for i in range(9)]
    shown = [asks.examples(3, own[:n]) for n in (0, 1, 9)]
    assert [sum(task in own for task in examples) for examples in shown] == [0, 1, 2]
    assert [len(examples) for examples in shown] == [5, 5, 5]
