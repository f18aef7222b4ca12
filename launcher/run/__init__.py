"""The run folder: all names in it, and all reads and writes. No torch."""
