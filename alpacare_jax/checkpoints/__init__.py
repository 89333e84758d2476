"""Weights on disk and in buckets, in our own format."""
