"""What judges and people decided: judgements of any tool, read into arrays of verdicts."""
