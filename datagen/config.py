"""The sections of configs/datagen.py, checked at once."""

import dataclasses

from common import sections
from datagen.chat.config import Limits, ProviderConfig
from datagen.writing.config import TasksConfig
from datagen.writing.filters import FiltersConfig

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
    teacher: ProviderConfig  # writes tasks
    responses: ResponsesConfig
    responder: ProviderConfig  # answers them
    rater: ProviderConfig  # rates the answers, if that is asked for
