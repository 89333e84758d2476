"""Domain instruction tuning of LLaMA in JAX."""

from common import exits

exits.watch_command("train")
