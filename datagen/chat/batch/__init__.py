"""Requests in batches, at half the price."""
