"""Test sets, published files and model outputs, matched to each other."""
