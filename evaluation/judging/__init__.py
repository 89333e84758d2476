"""Judges, their prompts, and what their replies say."""
