"""From a small seed set to instruction-tuning data. Needs neither JAX nor torch."""

from common import extras

extras.explain_missing("datagen")
