"""From a small seed set to instruction-tuning data. Needs neither JAX nor torch."""
