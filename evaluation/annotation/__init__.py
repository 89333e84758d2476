"""Blinded judgements by people: the pairs they get, their page, and what they send back."""
