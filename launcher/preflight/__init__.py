"""Checks of a node before a job starts there."""
