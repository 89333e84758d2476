"""The sections of configs/datagen.py, checked at once."""

import dataclasses

from contract import sections
from datagen.chat_config import Limits, ModelConfig
from datagen.near_duplicates import TOKENIZERS
from datagen.task_filters import FiltersConfig
from datagen.task_requests import LAYOUTS


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


INCLUDABLE = ("truncated", "refused")


@dataclasses.dataclass(frozen=True)
class ResponsesConfig:
    """How tasks are answered, and which answers are good enough."""

    prompt: str  # name in datagen/prompts, or a .txt file of one's own
    include: str  # of INCLUDABLE: answers that are to be trained on all the same
    min_rating: float  # 0 to 5: what the rater must give an answer; 0: nobody is asked
    rating_prompt: str  # as prompt

    def __post_init__(self):
        for kind in self.included:
            sections.choice("responses.include", kind, INCLUDABLE)
        if not 0 <= self.min_rating <= 5:
            raise ValueError(f"responses.min_rating {self.min_rating} must lie between 0 and 5")

    @property
    def included(self) -> tuple[str, ...]:
        return tuple(kind.strip() for kind in self.include.split(",") if kind.strip())


@dataclasses.dataclass(frozen=True)
class DatagenConfig(Limits):
    """All sections."""

    tasks: TasksConfig
    filters: FiltersConfig
    teacher: ModelConfig  # writes tasks
    responses: ResponsesConfig
    responder: ModelConfig  # answers them
    rater: ModelConfig  # rates the answers, if that is asked for
