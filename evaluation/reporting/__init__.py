"""Figures, tables, transcripts and the page of a report."""
