"""What all packages share: how a command starts and ends, JSONL, and run.json. Leaves only."""
