"""Read Hydra configuration into frozen values."""
