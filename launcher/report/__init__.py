"""Presentation of plans and runs."""
