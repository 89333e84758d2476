"""Weights on disk and in buckets, and the formats they are converted from and to."""
