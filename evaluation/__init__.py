"""Dual-sided judging and its statistics. Needs neither JAX nor torch."""

from common import exits

exits.watch_command("evaluation")
