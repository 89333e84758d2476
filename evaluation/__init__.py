"""Dual-sided judging and its statistics. Needs neither JAX nor torch."""
