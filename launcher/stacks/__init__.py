"""Profiles of training software, as frozen values with their sources."""

from launcher.stacks.profiles import stack_of
from launcher.stacks.stack import Stack

__all__ = ["Stack", "stack_of"]
