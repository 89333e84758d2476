"""Weights and adapters in the formats of other programs."""
