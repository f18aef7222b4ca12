"""Checkpoints with checksums and without pickle."""
