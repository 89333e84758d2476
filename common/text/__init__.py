"""Texts that packages share: prompts as files, ROUGE-L, refusals."""
