"""Judges, their prompts and parsers, and the verdicts they give."""
