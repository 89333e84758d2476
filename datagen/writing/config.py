"""The section `tasks` of configs/datagen.py."""

import dataclasses

from common import sections
from common.rouge import TOKENIZERS

LAYOUTS = {
    "text": (
        "Begin every task with a line that holds ### alone. Then write its number and its fields, "
        "each on a new line with its name and a colon, in the order of the examples: Type, Topic, "
        "View, Difficulty, Instruction, Input. Write plain text, without Markdown."
    ),
    "json": (
        "Answer with one JSON object whose field tasks is a list of the tasks, each with the "
        "fields of the examples."
    ),
}
"""Layout of replies: `text` is the paper's and works with every model; `json` requires a model with
structured outputs."""


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """What the teacher writes, and what it is shown."""

    num_tasks: int  # to keep
    seeds: str  # file of seed tasks
    prompt: str  # name in datagen/prompts, or the path of a .txt file
    reply: str  # text or json; json requires a model with structured outputs
    tasks_per_request: int  # asked for in one request
    seeds_per_request: int  # shown as examples in one request
    machine_tasks_per_request: int  # kept tasks also shown as examples, once there are any
    machine_lag: int  # requests before a kept task may be shown; limits the requests in flight
    seed: int  # of the random choice of examples
    threshold: float  # ROUGE-L F above which a task is a near-duplicate; 0: no such filter
    tokenizer: str  # rouge (a to z and digits) or unicode (any script)
    against: str  # comma-separated files, besides the seeds, that no task may be near: test sets

    def __post_init__(self):
        sections.choice("tasks.reply", self.reply, LAYOUTS)
        sections.choice("tasks.tokenizer", self.tokenizer, TOKENIZERS)
        for name in ("num_tasks", "tasks_per_request", "seeds_per_request", "machine_lag"):
            if getattr(self, name) < 1:
                raise ValueError(f"tasks.{name} must be at least 1, not {getattr(self, name)}")
        if self.machine_tasks_per_request < 0:
            raise ValueError("tasks.machine_tasks_per_request must be at least 0")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"tasks.threshold {self.threshold} must be at least 0 and below 1")
