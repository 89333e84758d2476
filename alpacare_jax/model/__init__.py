"""The LLaMA model: config, weights, attention, layers and loss. Imports nothing above it."""
