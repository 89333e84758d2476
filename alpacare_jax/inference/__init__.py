"""Generation with continuous batching, and the file of answers."""
