"""Next to the script, and imported by it."""

from launcher import NAME

__all__ = ["NAME"]
