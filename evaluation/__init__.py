"""Dual-sided judging and its statistics. Needs neither JAX nor torch."""

from common import extras

extras.explain_missing("evaluation")
