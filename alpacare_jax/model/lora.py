"""What LoRA trains: which projections it adapts, how strongly, and on what base."""

import dataclasses

from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.params import FACTORS, Adapter
from alpacare_jax.model.quantised import FORMATS
from common import messages, sections

BASES = ("auto", "float32", "bfloat16", *FORMATS)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA (arXiv:2106.09685): y = x W + scaling (x A) B, with W frozen. Defaults are peft's."""

    rank: int  # columns of A and rows of B; 0: no LoRA, all weights are trained
    alpha: float  # scaling is alpha / rank
    rslora: bool  # scaling is alpha / sqrt(rank) instead (arXiv:2312.03732)
    dropout: float  # share of its inputs that an adapter does not see in training
    # The projections that are adapted, comma-separated, of q_proj,k_proj,v_proj,o_proj,gate_proj,
    # up_proj,down_proj.
    targets: str
    base: str  # of the frozen projections: float32, bfloat16, int8, nf4; auto: as model.dtype

    def __post_init__(self):
        sections.choice("lora.base", self.base, BASES)
        if self.rank < 0:
            raise ValueError(f"lora.rank is {self.rank}; it must be at least 1, or 0 for no LoRA")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}; it must be in [0, 1)")
        if not self.projections:
            raise ValueError(f"lora.targets is empty; choose from {', '.join(FACTORS)}")
        for name in self.projections:
            if name not in FACTORS:
                raise ValueError(
                    f"lora.targets has no projection {name!r}; {messages.suggestion(name, FACTORS)}"
                )

    @property
    def projections(self) -> tuple[str, ...]:
        """The names in `targets`."""
        return tuple(filter(None, map(str.strip, self.targets.split(","))))

    @property
    def quantised(self) -> str:
        """The format of `base` if it is one of fewer than 16 bits, else ""."""
        return self.base if self.base in FORMATS else ""

    @property
    def scaling(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def adapter(self, model: LlamaConfig) -> Adapter:
        """The weights that are trained. Raises ValueError if the rank is too large for a target."""
        return Adapter(model, self.rank, self.projections)
