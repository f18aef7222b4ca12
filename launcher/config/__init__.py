"""Hydra configuration in, frozen values out."""
