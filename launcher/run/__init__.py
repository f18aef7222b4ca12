"""The run folder: every name in it, and everything that is read from it or written to it. No torch."""
