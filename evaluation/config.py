"""The configuration of evaluation.judge and evaluation.references."""

import dataclasses

from datagen.chat.config import Limits, ProviderConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Limits):
    """The settings of a run that asks a model."""

    judges: str  # comma-separated names of judges.JUDGES, or NAME=FILE.txt
    reasks: int  # maximum number of repeated requests for a reply without a verdict
    chat: ProviderConfig  # the model that judges or writes references

    def __post_init__(self):
        if self.reasks < 0:
            raise ValueError(f"reasks must be at least 0, not {self.reasks}")
