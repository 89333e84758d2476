"""What a stand-in for a teacher model writes: many tasks, some of them flawed."""

import hashlib
import json
import random

from tests.support.chat_server import question

WORDS = tuple(
    """
    fever cough rash dose kidney heart liver sepsis insulin asthma stroke wound biopsy anaemia
    pregnancy thyroid lung nausea dialysis vaccine gout malaria cancer skin bone infant nurse
    surgery diet
    """.split()
)


def drawn(body: dict) -> random.Random:
    """The same question always gets the same answer, in whatever order questions come."""
    return random.Random(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())


def instruction(draw: random.Random) -> str:
    return f"Explain how {' '.join(draw.sample(WORDS, 8))} belong together."


def fields(draw: random.Random) -> dict:
    return {
        "Type": draw.choice(("Open Q&A", "Chat", "Rewrite")),
        "Topic": draw.choice(WORDS),
        "View": draw.choice(("Nurse", "Patient")),
        "Difficulty": draw.randrange(1, 6),
        "Instruction": instruction(draw),
        "Input": draw.choice(("<noinput>", "DNA of NA, sodium.")),
    }


def write_tasks(body: dict, count: int = 12) -> str:
    """A reply with `count` tasks: one says the same as another, one has no difficulty."""
    draw = drawn(body)
    tasks = [fields(draw) for _ in range(count)]
    tasks[3] = tasks[2] | {"Instruction": tasks[2]["Instruction"].replace("Explain", "Tell")}
    tasks[5] = tasks[5] | {"Difficulty": "hard"}
    if "response_format" in body or "output_config" in body:
        lower = [{name.lower(): value for name, value in task.items()} for task in tasks]
        return json.dumps({"tasks": lower})
    shown = ("\n".join(f"{name}: {value}" for name, value in task.items()) for task in tasks)
    return "".join(f"###\n{number}. {task}\n" for number, task in enumerate(shown, start=1))


def is_for_tasks(body: dict) -> bool:
    return "new tasks" in question(body)
