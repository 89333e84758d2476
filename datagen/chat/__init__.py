"""A client for language models: rate limits, a budget, and a store of paid answers."""
