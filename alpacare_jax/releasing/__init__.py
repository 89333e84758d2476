"""A release: the folder for the Hub, GGUF, the proof that it answers as here, and its card."""
