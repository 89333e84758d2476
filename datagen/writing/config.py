"""The section of configs/datagen.py that says what a teacher writes."""

import dataclasses

from common import sections
from common.rouge import TOKENIZERS
from datagen.writing.requests import LAYOUTS


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """What a teacher is to write."""

    num_tasks: int  # that are kept
    seeds: str  # file of seed tasks
    prompt: str  # name in datagen/prompts, or a .txt file of one's own
    reply: str  # key of task_requests.LAYOUTS
    tasks_per_request: int  # that one request asks for
    seeds_per_request: int  # that it shows as examples
    machine_tasks_per_request: int  # and tasks of the teacher's own, once there are any
    machine_lag: int  # requests after which a task may be shown; at least what is out at once
    seed: int  # of the choice of examples
    threshold: float  # ROUGE-L F above which a task is a near-duplicate; 0: no such filter
    tokenizer: str  # key of near_duplicates.TOKENIZERS
    against: str  # files, besides the seeds, that no task may be near to: test sets

    def __post_init__(self):
        sections.choice("tasks.reply", self.reply, LAYOUTS)
        sections.choice("tasks.tokenizer", self.tokenizer, TOKENIZERS)
        for name in ("num_tasks", "tasks_per_request", "seeds_per_request", "machine_lag"):
            if getattr(self, name) < 1:
                raise ValueError(f"tasks.{name} must be at least 1, not {getattr(self, name)}")
        if self.machine_tasks_per_request < 0:
            raise ValueError("tasks.machine_tasks_per_request must be at least 0")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"tasks.threshold {self.threshold} must lie between 0 and 1")
