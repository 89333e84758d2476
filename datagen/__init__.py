"""From a small seed set to instruction-tuning data. Needs neither JAX nor torch."""

from common import exits

exits.watch_command("datagen")
