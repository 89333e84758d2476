"""Domain instruction tuning of LLaMA in JAX."""

from common import extras

extras.explain_missing("train")
