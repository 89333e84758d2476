"""Drawings and pages that reports share: SVG, PNG, HTML."""
