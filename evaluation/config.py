"""The configuration of evaluation.judge and evaluation.references."""

import dataclasses

from datagen.chat.config import Limits, ProviderConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Limits):
    judges: str  # comma-separated names of judges.JUDGES, or NAME=FILE.txt
    reasks: int  # most times that a reply without a verdict is asked for again
    chat: ProviderConfig  # the model that judges, or whose answers are the reference

    def __post_init__(self):
        if self.reasks < 0:
            raise ValueError(f"reasks must be at least 0, not {self.reasks}")
