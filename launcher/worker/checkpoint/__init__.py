"""Checkpoints that hold checksums and no pickle."""
