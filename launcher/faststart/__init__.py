"""Faster starts: a warm server, and importing torch while planning."""
