"""How counts and times are written in the lines that every command prints."""

from collections.abc import Mapping


def format_counts(counts: Mapping[str, int]) -> str:
    """Counts in one line.

    >>> format_counts({"near-duplicate": 1200, "blacklisted": 3, "too long": 0}), format_counts({})
    ('1,200 near-duplicate, 3 blacklisted', 'none')
    """
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"
