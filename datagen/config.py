"""The sections of configs/datagen.py, validated when they are built."""

import dataclasses
from pathlib import Path

from common import sections
from datagen.chat.config import Limits, ProviderConfig
from datagen.writing.filters import FiltersConfig
from datagen.writing.requests import TasksConfig

DATAGEN_PROMPTS = Path(__file__).with_name("prompts")
"""Folder of the prompts that a config names."""

INCLUDABLE = ("truncated", "refused")


@dataclasses.dataclass(frozen=True)
class ResponsesConfig:
    """How tasks are answered, and which answers are good enough."""

    prompt: str  # name in datagen/prompts, or the path of a .txt file
    include: str  # answers to train on all the same: truncated, refused, or both with a comma
    min_rating: float  # 0 to 5: lowest rating of an example, AlpaGasus: 4.5; 0: no rater
    rating_prompt: str  # as `prompt`

    def __post_init__(self):
        for kind in self.included:
            sections.choice("responses.include", kind, INCLUDABLE)
        if not 0 <= self.min_rating <= 5:
            raise ValueError(f"responses.min_rating {self.min_rating} must be between 0 and 5")

    @property
    def included(self) -> tuple[str, ...]:
        """The entries of `include`."""
        return tuple(kind.strip() for kind in self.include.split(",") if kind.strip())


@dataclasses.dataclass(frozen=True)
class DatagenConfig(Limits):
    """All sections of the config."""

    tasks: TasksConfig
    filters: FiltersConfig
    teacher: ProviderConfig  # writes tasks
    responses: ResponsesConfig
    responder: ProviderConfig  # answers tasks
    rater: ProviderConfig  # rates the answers if responses.min_rating is set
