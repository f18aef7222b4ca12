"""Measurements of a rank, and where they are reported."""
